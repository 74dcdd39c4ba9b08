// The review page: a grid that draws only the images in the window, a viewer with an image's neighbors, and marks by
// keyboard. A view is a list of row numbers, loaded at once; their descriptions are fetched when they come into the window.
// All text is set as text, never as HTML, because names come from a crawl.

import { drawMap, loadMap, onOutline } from "./map.js";

const PAGE = 200; // images described in one request
const GAP = 10; // pixels between cells
const BELOW = 30; // pixels of a cell below its image
const SMALL = 96; // pixels; smaller images are enlarged without smoothing

const $ = (id) => document.getElementById(id);
const grid = $("grid"), space = $("space"), viewer = $("viewer"), picker = $("picker"), filters = $("filters");
const hasDetector = document.body.dataset.hasDetector === "1";
const [realBelow, syntheticFrom] = ["realBelow", "syntheticFrom"].map((name) => Number(document.body.dataset[name]));
const MOST = Number(document.body.dataset.maxMarks); // images that one request marks by their keys
const MAX_SPACE = Number(document.body.dataset.maxSpace); // pixels; browsers draw nothing that is much higher
const classes = [...document.querySelectorAll("#picker [data-label]")].map((button) => button.dataset.label);

let view = new Int32Array(); // rows in order
let viewQuery = null; // the filters that the view was made by
let viewNumber = 0; // answers for an earlier view are dropped
let cursor = 0, anchor = 0; // positions in the view
const chosen = new Set(); // positions
const known = new Map(); // row -> its description
const asked = new Map(); // row -> promise of the answer that will describe it
const cells = new Map(); // position -> element
let shown = null; // key of the image in the viewer, null while it is loading

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// The server

async function fetchOk(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Start curate review again; marks that were shown are saved.");
  }
  if (answer.ok) return answer;
  if (answer.status === 403) throw new Error("The server was restarted. Open the address that it printed.");
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error || `The server answered ${answer.status}.`);
}

function trouble(error) {
  $("trouble").textContent = error.message;
}

async function post(address, body) {
  const answer = await fetchOk(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  $("trouble").textContent = "";
  return answer.json();
}

function learn(items) {
  for (const item of items) known.set(item.row, item);
}

async function describe(rows) {
  const missing = rows.filter((row) => !known.has(row) && !asked.has(row));
  for (let start = 0; start < missing.length; start += PAGE) {
    const part = missing.slice(start, start + PAGE);
    const answer = fetchOk(`/api/rows?rows=${part.join(",")}`).then((found) => found.json()).then(learn).finally(() => {
      for (const row of part) asked.delete(row);
    });
    for (const row of part) asked.set(row, answer);
  }
  await Promise.all(rows.map((row) => asked.get(row))); // including rows that another call asked for
}

// The view

function query() {
  const wanted = new URLSearchParams(new FormData(filters));
  for (const name of ["label", "text", "region"]) if (wanted.get(name) === "") wanted.delete(name);
  return wanted;
}

async function load(goTo = 0) {
  const wanted = query(), number = ++viewNumber;
  history.replaceState(null, "", `#${wanted}`);
  drawRange();
  $("region").hidden = !wanted.get("region");
  $("shown").textContent = "Loading";
  try {
    const [rows, scores] = await Promise.all([
      fetchOk(`/api/view?${wanted}`).then((answer) => answer.arrayBuffer()),
      fetchOk(`/api/histogram?${wanted}`).then((answer) => answer.json()),
    ]);
    if (number !== viewNumber) return;
    view = new Int32Array(rows);
    viewQuery = wanted;
    $("trouble").textContent = "";
    known.clear(); // another page may have marked some images
    chosen.clear();
    cursor = anchor = Math.min(goTo, Math.max(0, view.length - 1));
    for (const cell of cells.values()) cell.remove();
    cells.clear();
    $("shown").textContent = view.length === 1 ? "1 image" : `${view.length.toLocaleString("en")} images`;
    $("empty").hidden = view.length > 0;
    grid.scrollTop = 0;
    scrolled = 0;
    drawState(scores);
    drawHistogram(scores.bins);
    layOut();
    if ($("map").open) showMap();
  } catch (error) {
    $("shown").textContent = "";
    trouble(error);
  }
}

function drawState({ counts, can_undo: canUndo, progress }) {
  $("progress").firstElementChild.max = progress.of;
  $("progress").firstElementChild.value = progress.marked;
  $("progress").lastElementChild.textContent = `marked ${progress.marked} of ${progress.of} suggested`;
  $("counts").replaceChildren(
    make("span", { className: "tag real" }, `${counts.real} real${classes.length ? `, ${counts.labeled} labeled` : ""}`),
    make("span", { className: "tag synthetic" }, `${counts.synthetic} synthetic`),
    make("span", { className: "tag" }, `${counts.skip} skipped`),
  );
  for (const button of document.querySelectorAll("[data-action=undo]")) button.disabled = !canUndo;
}

function drawHistogram(bins) {
  if (!hasDetector) return;
  const [low, high] = range(), tallest = Math.sqrt(Math.max(1, ...bins)), width = 100 / bins.length;
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const bars = bins.map((count, i) => {
    const height = (30 * Math.sqrt(count)) / tallest, middle = (i + 0.5) / bins.length;
    const out = middle < low || middle > high ? " out" : "";
    return svg("rect", {
      x: i * width + 0.1, width: width - 0.2, y: 32 - height, height,
      class: (middle < realBelow ? "real" : middle < syntheticFrom ? "unsure" : "synthetic") + out,
    });
  });
  const lines = [...new Set([realBelow, syntheticFrom])].map((at) => svg("line", { x1: at * 100, x2: at * 100, y1: 0, y2: 32 }));
  $("histogram").replaceChildren(...bars, ...lines);
  drawHistogram.bins = bins;
}

function range() {
  return [Number(filters.elements.low.value), Number(filters.elements.high.value)];
}

function drawRange() {
  if (!hasDetector) return;
  const [low, high] = range();
  $("low-shown").textContent = low.toFixed(2);
  $("high-shown").textContent = high.toFixed(2);
  if (drawHistogram.bins) drawHistogram(drawHistogram.bins);
}

// The grid

let columns = 1, side = 128, rowHeight = 158;
// A million images are higher than what a browser can draw. Then the space is MAX_SPACE high, and `scrolled` pixels of the
// whole are above the window: a jump of the scroll bar goes to the same share of the whole, a turn of the wheel on by as
// many pixels. Cells lie `shift` pixels further down than they would in the whole.
let scrolled = 0, shift = 0, seen = 0; // `seen`: the scroll bar's position that `scrolled` is for

const whole = () => Math.ceil(view.length / columns) * rowHeight + GAP;

function follow() {
  const top = grid.scrollTop, moved = top - seen, most = space.clientHeight - grid.clientHeight;
  const scale = (whole() - grid.clientHeight) / Math.max(1, most);
  const jumped = Math.abs(moved) > 1.5 * grid.clientHeight || top <= 0 || top >= most;
  scrolled = scale <= 1 ? top : jumped ? top * scale : Math.max(0, Math.min(whole() - grid.clientHeight, scrolled + moved));
  seen = top;
  settle();
}

function scrollTo(top) {
  const most = space.clientHeight - grid.clientHeight, scale = (whole() - grid.clientHeight) / Math.max(1, most);
  scrolled = Math.max(0, Math.min(whole() - grid.clientHeight, top));
  grid.scrollTop = scale <= 1 ? scrolled : scrolled / scale;
  seen = grid.scrollTop;
  if (scale <= 1) scrolled = seen;
  settle();
}

// Move all cells if the window now shows another part of the whole.
function settle() {
  const now = Math.round(seen - scrolled);
  if (now === shift) return;
  shift = now;
  for (const [position, cell] of cells) move(cell, position);
}

function layOut() {
  const wanted = Number($("size").value), width = space.clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (wanted + GAP)));
  side = Math.floor((width - GAP * (columns - 1)) / columns);
  rowHeight = side + BELOW + GAP;
  space.style.height = `${Math.min(MAX_SPACE, whole())}px`;
  scrollTo(scrolled);
  for (const [position, cell] of cells) move(cell, position);
  draw();
}

function move(cell, position) {
  cell.style.width = `${side}px`;
  cell.style.height = `${side + BELOW}px`;
  const x = (position % columns) * (side + GAP), y = Math.floor(position / columns) * rowHeight + 3 + shift;
  cell.style.transform = `translate(${x}px, ${y}px)`;
}

function inWindow(margin = 0) {
  const first = Math.floor(scrolled / rowHeight) - margin;
  const last = Math.ceil((scrolled + grid.clientHeight) / rowHeight) + margin;
  return [Math.max(0, first * columns), Math.min(view.length, last * columns)];
}

let waiting = 0;

function draw() {
  const [first, last] = inWindow(2);
  for (const [position, cell] of cells) {
    if (position < first || position >= last) {
      cell.remove();
      cells.delete(position);
    }
  }
  for (let position = first; position < last; position++) drawCell(position);
  const active = cells.get(cursor);
  if (active) grid.setAttribute("aria-activedescendant", active.id);
  else grid.removeAttribute("aria-activedescendant");
  $("chosen").textContent = chosen.size ? `${chosen.size.toLocaleString("en")} selected` : "";
  clearTimeout(waiting);
  waiting = setTimeout(async () => {
    const [from, to] = inWindow(2), number = viewNumber;
    const rows = Array.from(view.subarray(from, to)).filter((row) => !known.has(row));
    if (!rows.length) return;
    try {
      await describe(rows);
    } catch (error) {
      trouble(error);
    }
    if (number === viewNumber) for (const position of cells.keys()) drawCell(position);
  }, 30); // nothing is fetched while the scroll bar is dragged
}

function drawCell(position) {
  let cell = cells.get(position);
  const item = known.get(view[position]);
  if (!cell) {
    cell = make("div", { id: `cell-${position}`, role: "option" });
    cell.dataset.position = position;
    cell.setAttribute("aria-posinset", position + 1);
    cell.setAttribute("aria-setsize", view.length);
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
  if (position === cursor) cell.classList.add("cursor");
  cell.setAttribute("aria-selected", chosen.has(position));
}

function picture(item, kind = "thumbnail") {
  const image = make("img", { alt: "", draggable: false, decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL));
  image.src = `/${kind}/${item.key}?v=${item.version}`;
  return image;
}

function score(item) {
  const bar = make("div", { className: "score" }, make("i"));
  bar.style.setProperty("--score", item.prob_synthetic ?? 0);
  return bar;
}

function text(item) {
  const prob = item.prob_synthetic === null ? item.confidence : item.prob_synthetic;
  return make("div", { className: "text" }, make("span", {}, labelOf(item)), make("span", {}, prob.toFixed(2)));
}

const WORDS = { real: "real", synthetic: "synthetic", "off-class": "none of the classes", skip: "skipped" };

// A person's label, else the model's; nothing without classes, and for an image of none of them.
function labelOf(item) {
  if (item.marked === "off-class") return "";
  return item.label ?? item.pseudo_label ?? "";
}

function tag(item) {
  const name = item.marked === "real" && item.label ? item.label : WORDS[item.marked];
  return make("span", { className: `tag ${item.marked}` }, name);
}

function inWords(item) {
  const verdict = item.prob_synthetic === null ? "" : `${item.verdict} ${item.prob_synthetic.toFixed(2)}`;
  const marked = item.marked ? `marked ${item.label ? `real and ${item.label}` : WORDS[item.marked]}` : "";
  const said = [item.pseudo_label, verdict, marked].filter(Boolean).join(", ");
  return said ? `${item.key}: ${said}` : item.key;
}

function goTo(position, extend = false) {
  if (!view.length) return;
  cursor = Math.max(0, Math.min(view.length - 1, position));
  if (extend) {
    chosen.clear();
    for (let i = Math.min(anchor, cursor); i <= Math.max(anchor, cursor); i++) chosen.add(i);
  } else {
    anchor = cursor;
  }
  const top = Math.floor(cursor / columns) * rowHeight;
  if (top < scrolled) scrollTo(top);
  else if (top + rowHeight > scrolled + grid.clientHeight) scrollTo(top + rowHeight - grid.clientHeight);
  draw();
}

// Marks

let marking = Promise.resolve(); // requests run one after the other, in the order of the keys

function mark(verdict, label = null) {
  const inViewer = viewer.open;
  const positions = inViewer ? [] : chosen.size ? [...chosen] : view.length ? [cursor] : [];
  const rows = positions.map((position) => view[position]);
  const keys = inViewer ? [shown] : null;
  if (inViewer ? !shown : !rows.length) return;
  if (rows.length > MOST) return trouble(new Error(`At most ${MOST.toLocaleString("en")} images can be marked at once.`));
  if (inViewer && view[cursor] === viewer.row) step(1);
  else if (!inViewer && chosen.size) {
    chosen.clear();
    draw();
  } else if (!inViewer) goTo(cursor + 1);
  marking = marking.then(async () => {
    try {
      await describe(rows);
      const changed = await post("/api/marks", { keys: keys ?? rows.map((row) => known.get(row).key), verdict, label });
      take(changed);
      const what = label ? `real: ${label}` : WORDS[verdict];
      say(`${changed.rows.length === 1 ? changed.rows[0].key : `${changed.number.toLocaleString("en")} images`} ${what}`);
      if (!changed.rows.length) await load();
    } catch (error) {
      trouble(error);
    }
  });
}

function undo() {
  marking = marking.then(async () => {
    try {
      const changed = await post("/api/undo", {});
      take(changed);
      if (!changed.number) return say("Nothing to undo");
      say(`Undone: ${changed.number === 1 ? changed.rows[0].key : `${changed.number.toLocaleString("en")} images`}`);
      if (!changed.rows.length) return load();
      const position = view.indexOf(changed.rows[0].row);
      if (position >= 0) {
        goTo(position);
        if (viewer.open) open(changed.rows[0].key);
      }
    } catch (error) {
      trouble(error);
    }
  });
}

// Mark all images that the filters of the view let through, as one action.
function markAll(verdict) {
  const wanted = Object.fromEntries(viewQuery), count = view.length;
  const label = (verdict === "real" && $("all-label")?.value) || null;
  $("all").close();
  marking = marking.then(async () => {
    try {
      say("Marking");
      const changed = await post("/api/marks/all", { wanted, count, verdict, label });
      say(`${changed.number.toLocaleString("en")} images ${label ? `real: ${label}` : WORDS[verdict]}`);
      await load();
    } catch (error) {
      say("");
      trouble(error);
    }
  });
}

function askAll() {
  if (!view.length || !viewQuery) return;
  $("all-count").textContent = view.length === 1 ? "1 image" : `${view.length.toLocaleString("en")} images`;
  const words = [];
  for (const [name, value] of viewQuery) {
    const field = filters.elements[name], plain = { low: "0", high: "1", marked: "any", verdict: "any" }[name] ?? "";
    if (name === "order" || value === plain) continue;
    if (name === "region") words.push("within the outline on the map");
    else if (field.options) words.push(field.selectedOptions[0].text.toLowerCase());
    else words.push({ text: `search ${value}`, low: `score from ${value}`, high: `score to ${value}` }[name] ?? value);
  }
  $("all-filters").textContent = words.join("; ") || "all images of the pool";
  $("all").showModal();
}

async function showMap() {
  const dialog = $("map");
  if (!dialog.open) dialog.showModal();
  $("map-outline").setAttribute("points", filters.elements.region.value);
  try {
    if (!showMap.found) $("map-said").textContent = "Loading";
    showMap.found = await loadMap(fetchOk, Number(document.body.dataset.total));
    drawMap($("map-dots"), showMap.found, view);
    $("map-said").textContent = `The two main directions of the embeddings, ${Math.round(100 * showMap.found.share)} % of their variance`;
  } catch (error) {
    dialog.close();
    trouble(error);
  }
}

function take(changed) {
  learn(changed.rows);
  drawState(changed);
  draw();
  if (viewer.open && changed.rows.some((item) => item.key === shown)) open(shown);
}

function say(words) {
  $("said").textContent = words;
}

function act(action) {
  if (action === "undo") undo();
  else if (action === "label") pick();
  else mark(action);
}

// One image

async function open(key) {
  shown = key;
  if (!viewer.open) {
    viewer.showModal();
    viewer.focus();
  }
  try {
    const item = await (await fetchOk(`/api/image/${key}`)).json();
    if (shown !== key) return; // another image was opened meanwhile
    learn([item, ...item.neighbors].map(({ neighbors, probs, ...plain }) => plain));
    viewer.row = item.row;
    drawViewer(item);
  } catch (error) {
    trouble(error);
    viewer.close();
  }
}

function drawViewer(item) {
  $("viewer-name").textContent = item.key;
  const position = view[cursor] === item.row ? `${(cursor + 1).toLocaleString("en")} of ${view.length.toLocaleString("en")}` : "a neighbor";
  $("viewer-position").textContent = position;
  const image = picture(item, "image");
  image.id = "viewer-image";
  image.alt = inWords(item);
  $("viewer-image").replaceWith(image);
  const verdict = make("span", { className: `tag ${item.verdict}` });
  verdict.textContent = `model: ${item.verdict}, ${item.prob_synthetic?.toFixed(3)}`;
  $("viewer-verdict").replaceChildren(...(item.prob_synthetic === null ? [] : [verdict]));
  if (item.marked) {
    const marked = tag(item);
    marked.textContent = `marked ${marked.textContent}`;
    $("viewer-verdict").append(marked);
  }
  const facts = {
    file: item.member, from: item.source, size: `${item.width} × ${item.height}, ${item.format}, ${item.num_bytes.toLocaleString("en")} bytes`,
    declares: item.declared ? `${item.declared} (${item.declared_by})` : "nothing about its origin",
  };
  const outside = Object.entries(item.outside).map(([name, value]) => [name, value === null ? "no value" : String(Number(value.toPrecision(4)))]);
  const crawl = Object.entries(item.crawl).map(([name, value]) => [name.replaceAll("_", " "), String(value)]);
  $("viewer-facts").replaceChildren(...Object.entries(facts).concat(crawl, outside).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  $("viewer-probs").replaceChildren(...item.probs.map(({ label, prob }) => {
    const bar = make("div", { className: "score" }, make("i"));
    bar.style.setProperty("--score", prob);
    return make("li", {}, make("span", {}, label), bar, make("span", {}, prob.toFixed(2)));
  }));
  const others = item.neighbors, ten = others.slice(0, 10);
  const otherLabel = ten.filter((other) => other.pseudo_label !== item.pseudo_label).length;
  const otherVerdict = ten.filter((other) => other.verdict !== item.verdict).length;
  const differing = [classes.length ? `${otherLabel} another label` : "", hasDetector ? `${otherVerdict} another verdict` : ""];
  $("viewer-neighbors-said").textContent = `of ${ten.length}, ${differing.filter(Boolean).join(" and ")}`;
  $("viewer-neighbors").replaceChildren(...others.map((other) => {
    const button = make("button", { type: "button" }, picture(other), score(other));
    if (other.verdict) button.classList.add(other.verdict);
    button.dataset.key = other.key;
    button.setAttribute("aria-label", `Neighbor at distance ${other.distance.toFixed(3)}, ${inWords(other)}`);
    const words = make("span", { className: "text" }, make("span", {}, labelOf(other)));
    if (other.pseudo_label !== item.pseudo_label) words.firstChild.className = "other";
    words.append(` ${(other.prob_synthetic ?? other.confidence).toFixed(2)}`);
    button.append(words);
    return make("li", {}, button);
  }));
}

async function step(by) {
  goTo(cursor + by);
  const row = view[cursor];
  shown = null; // a mark made before the next image has loaded must not go to this one
  viewer.row = row;
  await describe([row]).catch(trouble);
  if (known.has(row)) await open(known.get(row).key);
}

// The class picker

function pick() {
  if (!classes.length || (!viewer.open && !view.length)) return;
  $("picker-text").value = "";
  narrow();
  picker.showModal();
  $("picker-text").focus();
}

function narrow() {
  const typed = $("picker-text").value.trim().toLowerCase();
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

// Keyboard and mouse

function key(event) {
  const typing = event.target.matches?.("input[type=text], input[type=search], select");
  if (picker.open || $("help").open || $("all").open || $("map").open || (typing && event.key !== "Escape")) return;
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "z") return run(event, undo);
  if (event.altKey || (control && event.key.toLowerCase() !== "a")) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (/^[0-9]$/.test(pressed) && !control) {
    const name = classes[(Number(pressed) + 9) % 10];
    return name === undefined ? undefined : run(event, () => mark("real", name));
  }
  const anywhere = {
    r: () => mark("real"), s: () => mark("synthetic"), x: () => mark("skip"), l: pick, u: undo,
    o: () => classes.length && mark("off-class"), "?": () => $("help").showModal(),
  };
  const outside = { n: () => load(), m: showMap, a: askAll, "/": () => openFilters(true) || $("search").focus() };
  if (!control && !viewer.open && outside[pressed]) return run(event, outside[pressed]);
  if (!control && anywhere[pressed]) return run(event, anywhere[pressed]);
  if (viewer.open) {
    const inViewer = { ArrowLeft: () => step(-1), ArrowRight: () => step(1) };
    return inViewer[pressed] && run(event, inViewer[pressed]);
  }
  if (event.target !== grid && event.target !== document.body) return;
  const page = columns * Math.max(1, Math.floor(grid.clientHeight / rowHeight));
  const moves = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
  };
  if (pressed in moves) return run(event, () => goTo(cursor + moves[pressed], event.shiftKey));
  if (pressed === "a" && control) return run(event, () => choose(...inWindow()));
  const inGrid = {
    " ": () => toggle(cursor),
    Enter: () => step(0),
    Escape: () => { chosen.clear(); draw(); },
  };
  if (inGrid[pressed]) run(event, inGrid[pressed]);
}

function run(event, action) {
  event.preventDefault();
  action();
}

function choose(first, last) {
  for (let position = first; position < last; position++) chosen.add(position);
  draw();
}

function toggle(position) {
  if (!chosen.delete(position)) chosen.add(position);
  anchor = position;
  draw();
}

function positionOf(event) {
  const cell = event.target.closest(".cell");
  return cell ? Number(cell.dataset.position) : null;
}

document.addEventListener("keydown", key);
let frame = 0;
grid.addEventListener("scroll", () => {
  follow();
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    draw();
  });
}, { passive: true });
grid.addEventListener("click", (event) => {
  const position = positionOf(event);
  if (position === null) return;
  if (event.ctrlKey || event.metaKey || $("selecting").getAttribute("aria-pressed") === "true") {
    cursor = position;
    toggle(position);
  } else if (event.pointerType === "touch" && position === cursor && !event.shiftKey) {
    step(0); // a second tap
  } else {
    if (!event.shiftKey) chosen.clear();
    goTo(position, event.shiftKey);
  }
});
grid.addEventListener("dblclick", (event) => positionOf(event) !== null && step(0));
new ResizeObserver(layOut).observe(grid);
$("size").addEventListener("input", layOut);
$("reload").addEventListener("click", () => load());
$("open-help").addEventListener("click", () => $("help").showModal());
$("open-map").addEventListener("click", showMap);
$("open-all").addEventListener("click", askAll);
$("selecting").addEventListener("click", (event) => {
  const button = event.currentTarget, on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  if (!on) chosen.clear();
  draw();
});
for (const button of document.querySelectorAll("[data-all]")) button.addEventListener("click", () => markAll(button.dataset.all));

// On a narrow screen the filters cover the images until they are closed.
function openFilters(open) {
  document.body.classList.toggle("filtering", open);
  $("open-filters").setAttribute("aria-expanded", open);
}
$("open-filters").addEventListener("click", () => openFilters(true));
$("close-filters").addEventListener("click", () => {
  openFilters(false);
  grid.focus();
});

function setRegion(outline) {
  filters.elements.region.value = outline;
  load();
}
onOutline($("map-dots"), $("map-outline"), (outline) => {
  setRegion(outline);
  $("map").close();
});
$("clear-region").addEventListener("click", () => setRegion(""));
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", (event) => {
    act(button.dataset.action);
    if (event.detail && !viewer.open && !picker.open) grid.focus(); // after a mouse click, keys work in the grid again
  });
}
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const button of document.querySelectorAll("#picker [data-label]")) button.addEventListener("click", () => picked(button.dataset.label));
$("picker-text").addEventListener("input", narrow);
$("picker-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  const first = document.querySelector("#picker-classes li:not([hidden]) .first");
  if (first) run(event, () => picked(first.dataset.label));
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close-viewer").addEventListener("click", () => viewer.close());
viewer.addEventListener("close", () => {
  shown = null;
  grid.focus();
});
picker.addEventListener("close", () => (viewer.open ? viewer : grid).focus());
$("viewer-neighbors").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) open(button.dataset.key);
});

filters.addEventListener("submit", (event) => run(event, () => grid.focus())); // by Enter in the search
filters.addEventListener("change", () => String(query()) !== String(viewQuery) && load()); // a search may be loaded already
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

if (hasDetector) {
  // Dragging over the histogram selects a range of scores.
  const histogram = $("histogram");
  let from = null;
  const at = (event) => {
    const box = histogram.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const select = (event) => {
    const ends = [from, at(event)].sort((a, b) => a - b);
    filters.elements.low.value = ends[0];
    filters.elements.high.value = ends[1];
    drawRange();
  };
  histogram.addEventListener("pointerdown", (event) => {
    from = at(event);
    histogram.setPointerCapture(event.pointerId);
    select(event);
  });
  histogram.addEventListener("pointermove", (event) => from !== null && select(event));
  histogram.addEventListener("pointerup", (event) => {
    select(event);
    if (filters.elements.high.value - filters.elements.low.value < 0.02) {
      filters.elements.low.value = 0; // a mere click clears the range
      filters.elements.high.value = 1;
    }
    from = null;
    load();
  });
}

// Reloading the page keeps the filters.

for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  const field = filters.elements[name];
  if (field) field.value = value;
}
load();
grid.focus();
