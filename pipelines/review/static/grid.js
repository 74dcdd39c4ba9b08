// The grid of the view's images. Only those in the window are drawn and described, so that a million images do not lag.

import { describe, known } from "./descriptions.js";
import { follow, inWindow, measure, move, reveal } from "./geometry.js";
import { inWords, picture, score, tag, text } from "./image.js";
import { $, inEnglish, make, trouble } from "./page.js";
import { view } from "./view.js";

const { chosen } = view;
const grid = $("grid"), space = $("space");
const cells = new Map(); // position -> element

// Show a view that was just loaded, from its top.
export function showView() {
  for (const cell of cells.values()) cell.remove();
  cells.clear();
  layOut(0);
}

function layOut(top) {
  measure(top);
  moveAll();
  draw();
}

function moveAll() {
  for (const [position, cell] of cells) move(cell, position);
}

let waiting = 0;

export function draw() {
  const [first, last] = inWindow(2);
  for (const [position, cell] of cells) {
    if (position < first || position >= last) {
      cell.remove();
      cells.delete(position);
    }
  }
  for (let position = first; position < last; position++) drawCell(position);
  const active = cells.get(view.cursor);
  if (active) grid.setAttribute("aria-activedescendant", active.id);
  else grid.removeAttribute("aria-activedescendant");
  $("chosen").textContent = chosen.size ? `${inEnglish(chosen.size)} selected` : "";
  clearTimeout(waiting);
  waiting = setTimeout(drawUnknown, 30); // nothing is fetched while the scroll bar is dragged
}

// Describe and draw the cells that are still empty.
async function drawUnknown() {
  const [first, last] = inWindow(2), number = view.number;
  const rows = Array.from(view.rows.subarray(first, last)).filter((row) => !known.has(row));
  if (!rows.length) return;
  try {
    await describe(rows);
  } catch (error) {
    trouble(error);
  }
  if (number === view.number) for (const position of cells.keys()) drawCell(position);
}

function drawCell(position) {
  let cell = cells.get(position);
  const item = known.get(view.rows[position]);
  if (!cell) {
    cell = make("div", { id: `cell-${position}`, role: "option" });
    cell.dataset.position = position;
    cell.setAttribute("aria-posinset", position + 1);
    cell.setAttribute("aria-setsize", view.rows.length);
    cell.setAttribute("aria-label", "loading");
    move(cell, position);
    cells.set(position, cell);
    space.append(cell);
  }
  if (item && cell.item !== item) {
    if (cell.item?.key !== item.key) cell.replaceChildren(picture(item), score(item), text(item));
    cell.querySelector(".tag")?.remove();
    if (item.marked) cell.append(tag(item));
    cell.querySelector(".text").replaceWith(text(item));
    cell.setAttribute("aria-label", inWords(item));
    cell.item = item;
  }
  cell.className = `cell ${item?.verdict ?? ""}${item?.marked ? " marked" : ""}`;
  if (position === view.cursor) cell.classList.add("cursor");
  cell.setAttribute("aria-selected", chosen.has(position));
}

// The cursor and the selection

export function goTo(position, extend = false) {
  if (!view.rows.length) return;
  view.cursor = Math.max(0, Math.min(view.rows.length - 1, position));
  if (extend) {
    chosen.clear();
    const [first, last] = [view.anchor, view.cursor].sort((a, b) => a - b);
    for (let i = first; i <= last; i++) chosen.add(i);
  } else {
    view.anchor = view.cursor;
  }
  if (reveal(view.cursor)) moveAll();
  draw();
}

export function choose(first, last) {
  for (let position = first; position < last; position++) chosen.add(position);
  draw();
}

export function toggle(position) {
  if (!chosen.delete(position)) chosen.add(position);
  view.anchor = position;
  draw();
}

export function clearChosen() {
  chosen.clear();
  draw();
}

export function positionOf(event) {
  const cell = event.target.closest(".cell");
  return cell ? Number(cell.dataset.position) : null;
}

let frame = 0;
grid.addEventListener("scroll", () => {
  if (follow()) moveAll();
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    draw();
  });
}, { passive: true });
new ResizeObserver(() => layOut()).observe(grid);
$("size").addEventListener("input", () => layOut());
