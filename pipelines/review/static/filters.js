// The filters, and the view that they ask for. The address of the page keeps them.

import { known } from "./descriptions.js";
import { showView } from "./grid.js";
import { drawHistogram, drawRange, onRange } from "./histogram.js";
import { showMap } from "./map.js";
import { $, inEnglish, noTrouble, trouble } from "./page.js";
import { drawProgress } from "./progress.js";
import { fetchOk } from "./server.js";
import { view } from "./view.js";

const filters = $("filters");

function query() {
  const wanted = new URLSearchParams(new FormData(filters));
  for (const name of ["label", "text", "region"]) if (wanted.get(name) === "") wanted.delete(name);
  return wanted;
}

export async function load() {
  const wanted = query(), number = ++view.number;
  history.replaceState(null, "", `#${wanted}`);
  drawRange();
  $("region").hidden = !wanted.get("region");
  $("shown").textContent = "Loading";
  try {
    const [rows, scores] = await Promise.all([
      fetchOk(`/api/view?${wanted}`).then((answer) => answer.arrayBuffer()),
      fetchOk(`/api/histogram?${wanted}`).then((answer) => answer.json()),
    ]);
    if (number !== view.number) return;
    noTrouble();
    known.clear(); // another page may have marked some images
    Object.assign(view, { rows: new Int32Array(rows), query: wanted, cursor: 0, anchor: 0 });
    view.chosen.clear();
    $("shown").textContent = inImages(view.rows.length);
    $("empty").hidden = view.rows.length > 0;
    drawProgress(scores);
    drawHistogram(scores.bins);
    showView();
    if ($("map").open) showMap();
  } catch (error) {
    $("shown").textContent = "";
    trouble(error);
  }
}

export const inImages = (number) => (number === 1 ? "1 image" : `${inEnglish(number)} images`);

// The filters of the view in words.
export function filtersInWords() {
  const words = [];
  for (const [name, value] of view.query) {
    const field = filters.elements[name], plain = { low: "0", high: "1", marked: "any", verdict: "any" }[name] ?? "";
    if (name === "order" || value === plain) continue;
    if (name === "region") words.push("within the outline on the map");
    else if (field.options) words.push(field.selectedOptions[0].text.toLowerCase());
    else words.push({ text: `search ${value}`, low: `score from ${value}`, high: `score to ${value}` }[name] ?? value);
  }
  return words.join("; ") || "all images of the pool";
}

export function setRegion(outline) {
  filters.elements.region.value = outline;
  load();
}

// Set the filters that a reload of the page, or a link, has in its address.
export function restoreFilters() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = filters.elements[name];
    if (field) field.value = value;
  }
}

// On a narrow screen the filters cover the images until they are closed.
export function openFilters(open) {
  document.body.classList.toggle("filtering", open);
  $("open-filters").setAttribute("aria-expanded", open);
}

function showImages() {
  openFilters(false);
  $("grid").focus();
}

filters.addEventListener("submit", (event) => {
  event.preventDefault();
  showImages(); // by Enter in the search
});
filters.addEventListener("change", () => String(query()) !== String(view.query) && load()); // a search may be loaded already
filters.addEventListener("input", drawRange);
filters.addEventListener("reset", () => {
  filters.elements.region.value = ""; // hidden fields are not reset
  setTimeout(load);
});
let typed = 0; // a search waits for the end of the word
$("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(load, 400);
});
$("search").addEventListener("change", () => clearTimeout(typed)); // the form loads
onRange(load);
$("clear-region").addEventListener("click", () => setRegion(""));
$("open-filters").addEventListener("click", () => {
  openFilters(true);
  $("aside").focus(); // not the search, for which a phone would show its keyboard
});
$("close-filters").addEventListener("click", showImages);
