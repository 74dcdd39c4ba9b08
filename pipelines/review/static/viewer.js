// One image, large, with what is known about it and its nearest neighbors.

import { describe, known, learn } from "./descriptions.js";
import { goTo } from "./grid.js";
import { bar, inWords, picture, score, tag, text } from "./image.js";
import { $, classes, hasDetector, inEnglish, make, trouble } from "./page.js";
import { fetchOk } from "./server.js";
import { view } from "./view.js";

export const viewer = $("viewer");
export const shown = { key: null, row: null }; // the image in the viewer; its key is null while it is loading

export async function open(key) {
  shown.key = key;
  if (!viewer.open) {
    viewer.showModal();
    viewer.focus();
  }
  try {
    const item = await (await fetchOk(`/api/image/${key}`)).json();
    if (shown.key !== key) return; // another image was opened meanwhile
    learn([item, ...item.neighbors].map(({ neighbors, probs, ...plain }) => plain));
    shown.row = item.row;
    drawHead(item);
    drawFacts(item);
    drawNeighbors(item);
  } catch (error) {
    trouble(error);
    viewer.close();
  }
}

// Open the image `by` positions after the cursor.
export async function step(by) {
  goTo(view.cursor + by);
  const row = view.rows[view.cursor];
  shown.key = null; // a mark made before the next image has loaded must not go to this one
  shown.row = row;
  await describe([row]).catch(trouble);
  if (known.has(row)) await open(known.get(row).key);
}

function drawHead(item) {
  $("viewer-name").textContent = item.key;
  const inView = view.rows[view.cursor] === item.row;
  $("viewer-position").textContent = inView ? `${inEnglish(view.cursor + 1)} of ${inEnglish(view.rows.length)}` : "a neighbor";
  const image = picture(item, "image");
  image.id = "viewer-image";
  image.alt = inWords(item);
  $("viewer-image").replaceWith(image);
}

function drawFacts(item) {
  const verdict = `model: ${item.verdict}, ${item.prob_synthetic?.toFixed(3)}`;
  $("viewer-verdict").replaceChildren(
    ...(item.prob_synthetic === null ? [] : [make("span", { className: `tag ${item.verdict}` }, verdict)]),
  );
  if (item.marked) {
    const marked = tag(item);
    marked.prepend("marked ");
    $("viewer-verdict").append(marked);
  }
  const size = `${item.width} × ${item.height}, ${item.format}, ${inEnglish(item.num_bytes)} bytes`;
  const declares = item.declared ? `${item.declared} (${item.declared_by})` : "nothing about its origin";
  const facts = [
    ...Object.entries({ file: item.member, from: item.source, size, declares }),
    ...Object.entries(item.crawl).map(([name, value]) => [name.replaceAll("_", " "), String(value)]),
    ...Object.entries(item.outside).map(([name, value]) => [name, value === null ? "no value" : String(Number(value.toPrecision(4)))]),
  ];
  $("viewer-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  $("viewer-probs").replaceChildren(...item.probs.map(({ label, prob }) =>
    make("li", {}, make("span", {}, label), bar(prob), make("span", {}, prob.toFixed(2)))));
}

function drawNeighbors(item) {
  const ten = item.neighbors.slice(0, 10);
  const otherLabel = ten.filter((other) => other.pseudo_label !== item.pseudo_label).length;
  const otherVerdict = ten.filter((other) => other.verdict !== item.verdict).length;
  const differing = [classes.length && `${otherLabel} have another label`, hasDetector && `${otherVerdict} have another verdict`];
  $("viewer-neighbors-said").textContent = `of ${ten.length}, ${differing.filter(Boolean).join(" and ")}`;
  $("viewer-neighbors").replaceChildren(...item.neighbors.map((other) => {
    const words = text(other), button = make("button", { type: "button" }, picture(other), score(other), words);
    if (other.verdict) button.classList.add(other.verdict);
    button.dataset.key = other.key;
    button.setAttribute("aria-label", `Neighbor at distance ${other.distance.toFixed(3)}, ${inWords(other)}`);
    if (other.pseudo_label !== item.pseudo_label) words.firstChild.className = "other";
    return make("li", {}, button);
  }));
}

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close-viewer").addEventListener("click", () => viewer.close());
viewer.addEventListener("close", () => {
  shown.key = null;
  $("grid").focus();
});
$("viewer-neighbors").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) open(button.dataset.key);
});
