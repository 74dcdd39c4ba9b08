// Marks: of the selected images or the one at the cursor, of the one in the viewer, or of all that pass the filters.

import { describe, known, learn } from "./descriptions.js";
import { filtersInWords, inImages, load } from "./filters.js";
import { clearChosen, draw, goTo } from "./grid.js";
import { WORDS } from "./image.js";
import { $, inEnglish, maxMarks, say, trouble } from "./page.js";
import { drawProgress } from "./progress.js";
import { post } from "./server.js";
import { view } from "./view.js";
import { open, shown, step, viewer } from "./viewer.js";

let marking = Promise.resolve(); // requests run one after the other, in the order of the keys

function enqueue(request) {
  marking = marking.then(request).catch(trouble);
}

export function mark(verdict, label = null) {
  const { rows, cursor, chosen } = view, inViewer = viewer.open;
  const positions = inViewer ? [] : chosen.size ? [...chosen] : rows.length ? [cursor] : [];
  const marked = positions.map((position) => rows[position]);
  const keys = inViewer ? [shown.key] : null;
  if (inViewer ? !shown.key : !marked.length) return;
  if (marked.length > maxMarks) return trouble(new Error(`At most ${inEnglish(maxMarks)} images can be marked at once.`));
  if (inViewer && rows[cursor] === shown.row) step(1);
  else if (!inViewer && chosen.size) clearChosen();
  else if (!inViewer) goTo(cursor + 1);
  enqueue(async () => {
    await describe(marked);
    const changed = await post("/api/marks", { keys: keys ?? marked.map((row) => known.get(row).key), verdict, label });
    take(changed);
    const what = changed.rows.length === 1 ? changed.rows[0].key : `${inEnglish(changed.number)} images`;
    say(`${what} ${inMarkWords(verdict, label)}`);
    if (!changed.rows.length) await load();
  });
}

export function undo() {
  enqueue(async () => {
    const changed = await post("/api/undo", {});
    take(changed);
    if (!changed.number) return say("Nothing to undo");
    say(`Undone: ${changed.number === 1 ? changed.rows[0].key : `${inEnglish(changed.number)} images`}`);
    if (!changed.rows.length) return load();
    const position = view.rows.indexOf(changed.rows[0].row);
    if (position >= 0) {
      goTo(position);
      if (viewer.open) open(changed.rows[0].key);
    }
  });
}

// Ask what to mark all images of the view as.
export function askAll() {
  if (!view.rows.length || !view.query) return;
  $("all-count").textContent = inImages(view.rows.length);
  $("all-filters").textContent = filtersInWords();
  $("all").showModal();
}

// Mark all images that the filters of the view let through, as one action.
function markAll(verdict) {
  const wanted = Object.fromEntries(view.query), count = view.rows.length;
  const label = (verdict === "real" && $("all-label")?.value) || null;
  $("all").close();
  enqueue(async () => {
    try {
      say("Marking");
      const changed = await post("/api/marks/all", { wanted, count, verdict, label });
      say(`${inEnglish(changed.number)} images ${inMarkWords(verdict, label)}`);
      await load();
    } catch (error) {
      say("");
      throw error;
    }
  });
}

const inMarkWords = (verdict, label) => (label ? `real: ${label}` : WORDS[verdict]);

// Show what the server has changed.
function take(changed) {
  learn(changed.rows);
  drawProgress(changed);
  draw();
  if (viewer.open && changed.rows.some((item) => item.key === shown.key)) open(shown.key);
}

for (const button of document.querySelectorAll("[data-all]")) button.addEventListener("click", () => markAll(button.dataset.all));
