// What each key does: anywhere, outside the viewer, in the viewer, in the grid.

import { load, openFilters } from "./filters.js";
import { columns, inWindow, onePage } from "./geometry.js";
import { choose, clearChosen, goTo, toggle } from "./grid.js";
import { showMap } from "./map.js";
import { askAll, mark, undo } from "./marks.js";
import { $, classes } from "./page.js";
import { pick } from "./picker.js";
import { view } from "./view.js";
import { step, viewer } from "./viewer.js";

const anywhere = {
  r: () => mark("real"),
  s: () => mark("synthetic"),
  x: () => mark("skip"),
  o: () => classes.length && mark("off-class"),
  l: pick,
  u: undo,
  "?": () => $("help").showModal(),
};
const outsideViewer = {
  n: load,
  m: showMap,
  a: askAll,
  "/": () => {
    openFilters(true);
    $("search").focus();
  },
};
const inViewer = { ArrowLeft: () => step(-1), ArrowRight: () => step(1) };
const inGrid = { " ": () => toggle(view.cursor), Enter: () => step(0), Escape: clearChosen };
const moves = {
  ArrowLeft: () => -1,
  ArrowRight: () => 1,
  ArrowUp: () => -columns,
  ArrowDown: () => columns,
  PageUp: () => -onePage(),
  PageDown: () => onePage(),
  Home: () => -Infinity,
  End: () => Infinity,
};

function actionOf(event) {
  const typing = event.target.matches?.("input[type=text], input[type=search], select");
  const isAsked = ["picker", "help", "all", "map"].some((id) => $(id).open);
  if (isAsked || (typing && event.key !== "Escape")) return null;
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "z") return undo;
  if (event.altKey || (control && event.key.toLowerCase() !== "a")) return null;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (/^[0-9]$/.test(pressed)) {
    const name = classes[(Number(pressed) + 9) % 10];
    return name === undefined ? null : () => mark("real", name);
  }
  if (!control && !viewer.open && outsideViewer[pressed]) return outsideViewer[pressed];
  if (!control && anywhere[pressed]) return anywhere[pressed];
  if (viewer.open) return inViewer[pressed];
  if (event.target !== $("grid") && event.target !== document.body) return null;
  if (pressed in moves) return () => goTo(view.cursor + moves[pressed](), event.shiftKey);
  if (pressed === "a" && control) return () => choose(...inWindow());
  return inGrid[pressed];
}

document.addEventListener("keydown", (event) => {
  const action = actionOf(event);
  if (!action) return;
  event.preventDefault();
  action();
});
