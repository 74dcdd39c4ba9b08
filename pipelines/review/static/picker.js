// The class picker: mark as real and label, by typing the beginning of a class.

import { mark } from "./marks.js";
import { $, classes } from "./page.js";
import { view } from "./view.js";
import { viewer } from "./viewer.js";

const picker = $("picker"), field = $("picker-text");

export function pick() {
  if (!classes.length || (!viewer.open && !view.rows.length)) return;
  field.value = "";
  narrow();
  picker.showModal();
  field.focus();
}

function narrow() {
  const typed = field.value.trim().toLowerCase();
  const items = [...document.querySelectorAll("#picker-classes li")];
  // Classes that begin with the typed letters come first.
  const starts = items.filter((item) => label(item).startsWith(typed));
  const contains = items.filter((item) => !label(item).startsWith(typed) && label(item).includes(typed));
  for (const item of items) {
    item.hidden = !starts.includes(item) && !contains.includes(item);
    item.firstElementChild.classList.remove("first");
  }
  (starts[0] ?? contains[0])?.firstElementChild.classList.add("first");
}

const label = (item) => item.firstElementChild.dataset.label.toLowerCase();

function picked(name) {
  picker.close();
  mark("real", name);
}

for (const button of picker.querySelectorAll("[data-label]")) button.addEventListener("click", () => picked(button.dataset.label));
field.addEventListener("input", narrow);
field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  const first = document.querySelector("#picker-classes li:not([hidden]) .first");
  if (!first) return;
  event.preventDefault();
  picked(first.dataset.label);
});
picker.addEventListener("close", () => (viewer.open ? viewer : $("grid")).focus());
