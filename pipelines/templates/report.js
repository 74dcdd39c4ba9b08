"use strict";
// What the page does with scripts; without them all text, tables and pictures are there. Names come from a crawl, so all
// text is set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A click on a column's header sorts the table by it.
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const numeric = head.classList.contains("number");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // unknown values come last

        return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// A table or command that is wider than its place scrolls by keyboard, too.
const wide = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const each of document.querySelectorAll(".scroll, pre")) wide.observe(each);

// Paper shows what is folded on the screen.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));

// A picture opens a larger view with what is known about it.
let opened = null; // the image on the page

for (const image of document.querySelectorAll("[data-picture]")) {
  const button = make("button", { type: "button" });
  button.addEventListener("click", () => enlarge(image));
  image.replaceWith(button);
  button.append(image);
}

function enlarge(image) {
  opened = image;
  const known = data.pictures[image.dataset.picture];
  $("large-name").textContent = known.key;
  $("large-figure").replaceChildren(make("img", { id: "large-picture", src: image.src, alt: image.alt, className: image.className }));
  $("large-reason").textContent = known.reason;
  $("large-facts").replaceChildren(...known.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  $("large-neighbors-head").hidden = !known.neighbors.length;
  $("large-neighbors").replaceChildren(...known.neighbors.map((other) => {
    const picture = other.picture === null ? [] : [make("img", { src: data.thumbnails[other.picture], alt: "" })];
    return make("li", {}, ...picture, make("span", {}, other.key), make("br"), make("span", { className: "soft" }, `${other.text}; distance ${other.distance}`));
  }));
  if (!$("large").open) $("large").showModal();
}

function step(by) {
  const all = [...opened.closest("ul").querySelectorAll("[data-picture]")];
  enlarge(all[(all.indexOf(opened) + by + all.length) % all.length]);
}

$("large-previous").addEventListener("click", () => step(-1));
$("large-next").addEventListener("click", () => step(1));
$("large-close").addEventListener("click", () => $("large").close());
$("large").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
});

// The maps tell what is under the pointer, and list the images that are drawn around or named.
const LISTED = 300; // tiles
const NEAR = 9; // units of the map
const SVG = "http://www.w3.org/2000/svg";
const map = data.map;

// Show the small picture of an image of the map as the background of an element; false if it has none.
function showTile(element, number) {
  if (number >= map.tiles) return false;
  const [x, y] = [number % map.columns, Math.floor(number / map.columns)];
  element.style.backgroundImage = `url(${map.sheet})`;
  element.style.backgroundPosition = `-${x * map.tile}px -${y * map.tile}px`;
  return true;
}

const inWords = (number) => [map.keys[number], map.labels[number], map.verdicts[number], map.scores[number]].filter((each) => each !== null).join(", ");

function list(numbers, what) {
  const counts = new Map();
  for (const number of numbers) counts.set(map.verdicts[number], (counts.get(map.verdicts[number]) ?? 0) + 1);
  const said = ["real", "unsure", "synthetic"].filter((name) => counts.has(name)).map((name) => `${counts.get(name)} ${name}`);
  $("region").hidden = false;
  $("region-head").textContent = `${numbers.length === 1 ? "1 image" : `${numbers.length} images`} ${what}`;
  $("region-said").textContent = [said.join(", "), numbers.length > LISTED ? `the first ${LISTED} are shown` : ""].filter(Boolean).join("; ");
  $("region-tiles").replaceChildren(...numbers.slice(0, LISTED).map((number) => {
    const button = make("button", { type: "button", title: inWords(number), className: map.verdicts[number] ?? "" });
    button.setAttribute("aria-label", inWords(number));
    if (!showTile(button, number)) {
      button.classList.add("bare");
      button.textContent = map.keys[number];
    }
    button.addEventListener("click", () => ($("region-said").textContent = inWords(number)));
    return make("li", {}, button);
  }));
  $("region-keys").value = numbers.map((number) => map.keys[number]).join(" ");
  $("region-head").focus({ preventScroll: true });
  $("region").scrollIntoView({ block: "nearest" });
}

// Whether a point lies within a polygon: a line from it to the left crosses the outline an odd number of times.
function within([x, y], corners) {
  let inside = false;
  corners.forEach(([x1, y1], i) => {
    const [x2, y2] = corners.at(i - 1);
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  });
  return inside;
}

function point(drawing, event) {
  const box = drawing.getBoundingClientRect(), side = drawing.viewBox.baseVal.width;
  return [((event.clientX - box.left) * side) / box.width, ((event.clientY - box.top) * side) / box.height];
}

function tell(drawing, event) {
  const [x, y] = point(drawing, event);
  let nearest = null, least = NEAR ** 2;
  for (let number = 0; number < map.x.length; number++) {
    const distance = (map.x[number] - x) ** 2 + (map.y[number] - y) ** 2;
    if (distance < least) [nearest, least] = [number, distance];
  }
  const tip = $("tip");
  tip.hidden = nearest === null;
  if (nearest === null) return;
  tip.firstElementChild.hidden = !showTile(tip.firstElementChild, nearest);
  tip.lastElementChild.textContent = inWords(nearest);
  tip.style.left = `${Math.min(event.pageX + 14, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 4)}px`;
  tip.style.top = `${event.pageY + 14}px`;
}

(map ? document.querySelectorAll("#map .chart") : []).forEach((drawing, which) => {
  const outline = drawing.appendChild(document.createElementNS(SVG, "polygon"));
  let corners = null;
  drawing.classList.add("live");
  drawing.addEventListener("pointerleave", () => ($("tip").hidden = true));
  drawing.addEventListener("pointerdown", (event) => {
    drawing.setPointerCapture(event.pointerId);
    corners = [point(drawing, event)];
    outline.setAttribute("points", "");
  });
  drawing.addEventListener("pointermove", (event) => {
    if (!corners) return tell(drawing, event);
    corners.push(point(drawing, event));
    outline.setAttribute("points", corners.join(" "));
  });
  drawing.addEventListener("pointercancel", () => (corners = null));
  drawing.addEventListener("pointerup", () => {
    const drawn = corners ?? [];
    corners = null;
    if (drawn.length < 3) return;
    list([...map.x.keys()].filter((number) => within([map.x[number], map.y[number]], drawn)), "within the outline");
  });
  for (const item of drawing.parentElement.querySelectorAll(".legend li")) {
    const button = make("button", { type: "button" }, ...item.childNodes);
    item.removeAttribute("tabindex");
    item.append(button);
    const color = item.className;
    button.addEventListener("click", () => list([...map.x.keys()].filter((number) => map.colors[which][number] === color), button.textContent));
  }
});
