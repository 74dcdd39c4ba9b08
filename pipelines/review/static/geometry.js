// Where the cells of the grid lie, and which of them are in the window.
//
// A million images are higher than what a browser can draw. Then the space is `maxSpace` high, and `scrolled` pixels of the
// whole are above the window: a jump of the scroll bar goes to the same share of the whole, a turn of the wheel on by as
// many pixels. Cells lie `shift` pixels further down than they would in the whole.

import { $, maxSpace } from "./page.js";
import { view } from "./view.js";

const GAP = 10; // pixels between cells
const BELOW = 30; // pixels of a cell below its image

const grid = $("grid"), space = $("space");

export let columns = 1;
let side = 128, rowHeight = 158; // pixels
let scrolled = 0, shift = 0, seen = 0; // `seen`: the scroll bar's position that `scrolled` is for

const whole = () => Math.ceil(view.rows.length / columns) * rowHeight + GAP;
const lowest = () => whole() - grid.clientHeight; // the most that can be scrolled
// Pixels of the whole that a pixel of the scroll bar stands for.
const scale = () => lowest() / Math.max(1, space.clientHeight - grid.clientHeight);

// Make the cells fill the window's width, and scroll to `top`.
export function measure(top = scrolled) {
  const wanted = Number($("size").value), width = space.clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (wanted + GAP)));
  side = Math.floor((width - GAP * (columns - 1)) / columns);
  rowHeight = side + BELOW + GAP;
  space.style.height = `${Math.min(maxSpace, whole())}px`;
  scrollTo(top);
}

// Follow the scroll bar; true if all cells must move.
export function follow() {
  const top = grid.scrollTop, moved = top - seen, most = space.clientHeight - grid.clientHeight;
  const jumped = Math.abs(moved) > 1.5 * grid.clientHeight || top <= 0 || top >= most, factor = scale();
  if (factor <= 1) scrolled = top;
  else scrolled = jumped ? top * factor : Math.max(0, Math.min(lowest(), scrolled + moved));
  seen = top;
  return settle();
}

// True if all cells must move.
function scrollTo(top) {
  const factor = scale();
  scrolled = Math.max(0, Math.min(lowest(), top));
  grid.scrollTop = factor <= 1 ? scrolled : scrolled / factor;
  seen = grid.scrollTop;
  if (factor <= 1) scrolled = seen;
  return settle();
}

// True if the window now shows another part of the whole.
function settle() {
  const before = shift;
  shift = Math.round(seen - scrolled);
  return shift !== before;
}

// Bring a position into the window; true if all cells must move.
export function reveal(position) {
  const top = Math.floor(position / columns) * rowHeight, bottom = top + rowHeight;
  if (top < scrolled) return scrollTo(top);
  if (bottom > scrolled + grid.clientHeight) return scrollTo(bottom - grid.clientHeight);
  return false;
}

export function move(cell, position) {
  cell.style.width = `${side}px`;
  cell.style.height = `${side + BELOW}px`;
  const x = (position % columns) * (side + GAP), y = Math.floor(position / columns) * rowHeight + 3 + shift;
  cell.style.transform = `translate(${x}px, ${y}px)`;
}

// The first position in the window, and the first below it; `margin` more rows on both sides.
export function inWindow(margin = 0) {
  const first = Math.floor(scrolled / rowHeight) - margin;
  const last = Math.ceil((scrolled + grid.clientHeight) / rowHeight) + margin;
  return [Math.max(0, first * columns), Math.min(view.rows.length, last * columns)];
}

// Images of the rows that fit into the window, at least one row.
export const onePage = () => columns * Math.max(1, Math.floor(grid.clientHeight / rowHeight));
