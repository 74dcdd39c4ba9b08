// How an image appears: its picture, score, label and mark as elements, and all of it in words.

import { make } from "./page.js";

const SMALL = 96; // pixels; smaller images are enlarged without smoothing

export const WORDS = { real: "real", synthetic: "synthetic", "off-class": "none of the classes", skip: "skipped" };

export function picture(item, kind = "thumbnail") {
  const image = make("img", { alt: "", draggable: false, decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL));
  image.src = `/${kind}/${item.key}?v=${item.version}`;
  return image;
}

export function bar(share) {
  const element = make("div", { className: "score" }, make("i"));
  element.style.setProperty("--score", share);
  return element;
}

export const score = (item) => bar(item.prob_synthetic ?? 0);

export function text(item) {
  const prob = item.prob_synthetic === null ? item.confidence : item.prob_synthetic;
  return make("div", { className: "text" }, make("span", {}, labelOf(item)), make("span", {}, prob.toFixed(2)));
}

// A person's label, else the model's; nothing without classes, and for an image of none of them.
function labelOf(item) {
  if (item.marked === "off-class") return "";
  return item.label ?? item.pseudo_label ?? "";
}

export function tag(item) {
  const name = item.marked === "real" && item.label ? item.label : WORDS[item.marked];
  return make("span", { className: `tag ${item.marked}` }, name);
}

export function inWords(item) {
  const verdict = item.prob_synthetic === null ? "" : `${item.verdict} ${item.prob_synthetic.toFixed(2)}`;
  const marked = item.marked ? `marked ${item.label ? `real and ${item.label}` : WORDS[item.marked]}` : "";
  const said = [item.pseudo_label, verdict, marked].filter(Boolean).join(", ");
  return said ? `${item.key}: ${said}` : item.key;
}
