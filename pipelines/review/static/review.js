// The review page: a grid of the images that pass the filters, a viewer for one of them, and marks. Starts everything, and
// says what the mouse and the buttons do that concern several parts.

import { load, restoreFilters, setRegion } from "./filters.js";
import { clearChosen, draw, goTo, positionOf, toggle } from "./grid.js";
import "./keyboard.js";
import { onOutline, showMap } from "./map.js";
import { askAll, mark, undo } from "./marks.js";
import { $ } from "./page.js";
import { pick } from "./picker.js";
import { view } from "./view.js";
import { step, viewer } from "./viewer.js";

const grid = $("grid"), selecting = $("selecting");
const isSelecting = () => selecting.getAttribute("aria-pressed") === "true";

grid.addEventListener("click", (event) => {
  const position = positionOf(event);
  if (position === null) return;
  if (event.ctrlKey || event.metaKey || isSelecting()) {
    view.cursor = position;
    toggle(position);
  } else if (event.pointerType === "touch" && position === view.cursor && !event.shiftKey) {
    step(0); // a second tap
  } else {
    if (!event.shiftKey) view.chosen.clear();
    goTo(position, event.shiftKey);
  }
});
grid.addEventListener("dblclick", (event) => positionOf(event) !== null && step(0));

selecting.addEventListener("click", () => {
  selecting.setAttribute("aria-pressed", !isSelecting());
  if (isSelecting()) draw();
  else clearChosen();
});
$("reload").addEventListener("click", () => load());
$("open-help").addEventListener("click", () => $("help").showModal());
$("open-map").addEventListener("click", showMap);
$("open-all").addEventListener("click", askAll);
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", (event) => {
    const { action } = button.dataset;
    if (action === "undo") undo();
    else if (action === "label") pick();
    else mark(action);
    if (event.detail && !viewer.open && !$("picker").open) grid.focus(); // after a mouse click, keys work in the grid again
  });
}
onOutline((outline) => {
  setRegion(outline);
  $("map").close();
});

restoreFilters();
load();
grid.focus();
