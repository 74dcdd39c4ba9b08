// The map of the pool: a dot for each image, and an outline that a person draws around some of them. The dots of the view
// have the color of their verdict, all others are gray.

import { $, total, trouble } from "./page.js";
import { fetchOk } from "./server.js";
import { view } from "./view.js";

const CORNERS = 300; // of an outline
const COLORS = ["--real-fill", "--unsure-fill", "--synthetic-fill"]; // by verdict

const dialog = $("map"), canvas = $("map-dots"), outline = $("map-outline");
let found = null; // { dots: Uint16Array of x and y, verdicts: Int8Array, share }

export async function showMap() {
  if (!dialog.open) dialog.showModal();
  outline.setAttribute("points", $("filters").elements.region.value);
  try {
    if (!found) $("map-said").textContent = "Loading";
    found ??= await fetchMap();
    draw(found);
    $("map-said").textContent = `The two main directions of the embeddings, ${Math.round(100 * found.share)} % of their variance`;
  } catch (error) {
    dialog.close();
    trouble(error);
  }
}

async function fetchMap() {
  const answer = await fetchOk("/api/map");
  const bytes = await answer.arrayBuffer();
  const dots = new Uint16Array(bytes, 0, 2 * total), verdicts = new Int8Array(bytes, 4 * total, total);
  return { dots, verdicts, share: Number(answer.headers.get("x-share-of-variance")) };
}

// Draw all dots, those of the view last and in color.
function draw({ dots, verdicts }) {
  const side = canvas.width, image = new ImageData(side, side), pixels = new Uint32Array(image.data.buffer);
  const [gray, plain, ...colors] = ["--line", "--soft", ...COLORS].map(packed);
  const reach = total < 3000 ? 3 : total < 30000 ? 1 : 0;
  const dot = (row, color) => {
    const x = dots[2 * row], y = dots[2 * row + 1];
    for (let down = Math.max(0, y - reach); down <= Math.min(side - 1, y + reach); down++) {
      for (let across = Math.max(0, x - reach); across <= Math.min(side - 1, x + reach); across++) pixels[down * side + across] = color;
    }
  };
  for (let row = 0; row < total; row++) dot(row, gray);
  for (const row of view.rows) dot(row, colors[verdicts[row]] ?? plain);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// A color of the style sheet as a pixel of ImageData on a little-endian machine.
function packed(name) {
  canvas.style.color = `var(${name})`; // a color, where the variable itself may be a function of the theme
  const one = new OffscreenCanvas(1, 1).getContext("2d");
  one.fillStyle = getComputedStyle(canvas).color;
  one.fillRect(0, 0, 1, 1);
  return new Uint32Array(one.getImageData(0, 0, 1, 1).data.buffer)[0];
}

// Let a person draw an outline with the pointer; `done` gets it as "x,y x,y x,y" in the map's own units.
export function onOutline(done) {
  let corners = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((part) =>
      Math.round(Math.max(0, Math.min(1, part)) * (canvas.width - 1)));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    corners = [at(event)];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!corners) return;
    const [x, y] = at(event), [fromX, fromY] = corners.at(-1);
    if (Math.hypot(x - fromX, y - fromY) < 5) return;
    corners.push([x, y]);
    outline.setAttribute("points", corners.join(" "));
  });
  canvas.addEventListener("pointercancel", () => (corners = null));
  canvas.addEventListener("pointerup", () => {
    const every = corners ? Math.ceil(corners.length / CORNERS) : 1;
    const kept = corners ? corners.filter((_, i) => i % every === 0) : [];
    corners = null;
    if (kept.length >= 3) done(kept.map((corner) => corner.join(",")).join(" "));
  });
}
