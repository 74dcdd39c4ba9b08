// How many images are marked, in the head of the page, and whether there is something to undo.

import { $, classes, make } from "./page.js";

export function drawProgress({ counts, can_undo: canUndo, progress }) {
  const [bar, words] = $("progress").children;
  bar.max = progress.of;
  bar.value = progress.marked;
  words.textContent = `marked ${progress.marked} of ${progress.of} suggested`;
  $("counts").replaceChildren(
    make("span", { className: "tag real" }, `${counts.real} real${classes.length ? `, ${counts.labeled} labeled` : ""}`),
    make("span", { className: "tag synthetic" }, `${counts.synthetic} synthetic`),
    make("span", { className: "tag" }, `${counts.skip} skipped`),
  );
  for (const button of document.querySelectorAll("[data-action=undo]")) button.disabled = !canUndo;
}
