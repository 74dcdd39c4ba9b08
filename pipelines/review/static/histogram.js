// The histogram of the scores, and the range of scores that a person chooses on it or with its two sliders.

import { $, hasDetector, realBelow, syntheticFrom } from "./page.js";

const { low, high } = $("filters").elements; // sliders; absent without a detector
const histogram = $("histogram");
let bins = null; // images by score, of the view without the range

export function drawHistogram(counts) {
  if (!hasDetector) return;
  bins = counts;
  const tallest = Math.sqrt(Math.max(1, ...bins)), width = 100 / bins.length;
  const bars = bins.map((count, i) => {
    const height = (30 * Math.sqrt(count)) / tallest, middle = (i + 0.5) / bins.length;
    const out = middle < Number(low.value) || middle > Number(high.value) ? " out" : "";
    return svg("rect", {
      x: i * width + 0.1, width: width - 0.2, y: 32 - height, height,
      class: (middle < realBelow ? "real" : middle < syntheticFrom ? "unsure" : "synthetic") + out,
    });
  });
  const lines = [...new Set([realBelow, syntheticFrom])].map((at) => svg("line", { x1: at * 100, x2: at * 100, y1: 0, y2: 32 }));
  histogram.replaceChildren(...bars, ...lines);
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function drawRange() {
  if (!hasDetector) return;
  $("low-shown").textContent = Number(low.value).toFixed(2);
  $("high-shown").textContent = Number(high.value).toFixed(2);
  if (bins) drawHistogram(bins);
}

// Let a person drag over the histogram to choose a range; `done` is called at the end.
export function onRange(done) {
  if (!hasDetector) return;
  let from = null;
  const at = (event) => {
    const box = histogram.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const select = (event) => {
    [low.value, high.value] = [from, at(event)].sort((a, b) => a - b);
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
    if (high.value - low.value < 0.02) [low.value, high.value] = [0, 1]; // a mere click clears the range
    from = null;
    done();
  });
}
