// Requests to the server. What goes wrong is an Error whose message a person can act on.

import { noTrouble } from "./page.js";

export async function fetchOk(address, options) {
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

export async function post(address, body) {
  const answer = await fetchOk(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  noTrouble();
  return answer.json();
}
