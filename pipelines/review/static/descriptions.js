// What the server says about images: fetched once, when an image comes into the window or is marked.

import { fetchOk } from "./server.js";

const AT_ONCE = 200; // images described in one request

export const known = new Map(); // row -> its description
const asked = new Map(); // row -> promise of the answer that will describe it

export function learn(items) {
  for (const item of items) known.set(item.row, item);
}

// Resolves when all `rows` are known; rejects if the server does not describe them.
export async function describe(rows) {
  const missing = rows.filter((row) => !known.has(row) && !asked.has(row));
  for (let start = 0; start < missing.length; start += AT_ONCE) {
    const part = missing.slice(start, start + AT_ONCE);
    const answer = fetchOk(`/api/rows?rows=${part.join(",")}`).then((found) => found.json()).then(learn).finally(() => {
      for (const row of part) asked.delete(row);
    });
    for (const row of part) asked.set(row, answer);
  }
  await Promise.all(rows.map((row) => asked.get(row))); // including rows that another call asked for
}
