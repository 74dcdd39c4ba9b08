// The page that the server rendered: its elements, what it says about the pool, and where it tells the person something.
// All text is set as text, never as HTML, because names come from a crawl.

export const $ = (id) => document.getElementById(id);

const data = document.body.dataset;

export const total = Number(data.total); // images of the pool
export const hasDetector = data.hasDetector === "1";
export const [realBelow, syntheticFrom] = [Number(data.realBelow), Number(data.syntheticFrom)];
export const maxMarks = Number(data.maxMarks); // images that one request marks by their keys
export const maxSpace = Number(data.maxSpace); // pixels; browsers draw nothing that is much higher
export const classes = [...document.querySelectorAll("#picker [data-label]")].map((button) => button.dataset.label);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const inEnglish = (number) => number.toLocaleString("en");

export function say(words) {
  $("said").textContent = words;
}

export function trouble(error) {
  $("trouble").textContent = error.message;
}

export function noTrouble() {
  $("trouble").textContent = "";
}
