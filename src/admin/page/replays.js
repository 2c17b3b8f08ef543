// Replays: delivered reports are delivered again. A job of the service does it; here it is asked for, counted first, watched and ended.

import { get, post, send } from "./api.js";
import { byId, foreign, h, notice, rows, say } from "./dom.js";
import { named, who } from "./decide.js";
import { fields, fill, mark, values, words } from "./filters.js";
import { count, moment, number, size } from "./format.js";
import { cell } from "./list.js";
import * as token from "./token.js";

/** What was counted, and is asked for if it is confirmed. */
let asked = null;
let isRunning = false;

function said(error) {
  return error.isNoRoute ? "This service has no replays." : error.message;
}

/** A key of the request's own: whoever presses twice, or asks again after a broken connection, gets the one job. */
function key() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function ask(event) {
  event.preventDefault();
  const form = byId("replay-form");
  const { rate, ...filter } = values(form);
  asked = { filter, ...(rate && { rate: Number(rate) }), key: key() };
  const { key: turn } = asked;
  say(byId("replay-error"), "");
  mark(form, null);
  say(byId("replay-submit-note"), "Counting …");
  try {
    const counted = await post("/v1/replays", { filter, ...(rate && { rate: Number(rate) }), ...named("dashboard, counting"), dry_run: true });
    if (asked?.key !== turn) return;
    const atLeast = counted.complete === false ? "at least " : "";
    say(byId("replay-count"), `${atLeast}${count(counted.matches, "delivered report is", "delivered reports are")} delivered again (${atLeast}${size(counted.bytes)}), ${rate ? `at most ${number(Number(rate))} each second` : "in the gaps that fresh ones leave"}.`);
    say(byId("replay-which"), `Chosen: ${words(filter)}`);
    say(byId("replay-confirm-error"), "");
    byId("replay-reason").value = "";
    who("replay-by", "replay-by-hint");
    byId("replay-go").disabled = counted.matches === 0;
    byId("replay-confirm").showModal();
    (byId("replay-by").value === "" ? byId("replay-by") : byId("replay-cancel")).focus();
  } catch (error) {
    say(byId("replay-error"), said(error));
    mark(form, error.field ?? null);
  } finally {
    say(byId("replay-submit-note"), "");
  }
}

async function go(event) {
  event.preventDefault();
  const [by, reason, button] = [byId("replay-by").value.trim(), byId("replay-reason").value.trim(), byId("replay-go")];
  if (by === "" && token.get() === null) return say(byId("replay-confirm-error"), "Who decides? The history shows it.");
  const { key: own, ...wanted } = asked;
  button.disabled = true;
  token.rememberName(by);
  try {
    const job = await post("/v1/replays", { ...wanted, ...named(by), ...(reason && { reason }) }, { headers: { "Idempotency-Key": own } });
    byId("replay-confirm").close();
    notice(`Replay ${job.id} has begun.`);
    await update();
  } catch (error) {
    say(byId("replay-confirm-error"), said(error));
    button.disabled = false;
  }
}

/** Which jobs there are. */
export async function update() {
  try {
    const { replays } = await get("/v1/replays");
    isRunning = replays.some((job) => job.state === "running");
    rows(byId("replay-jobs").querySelector("tbody"), replays, (job) => job.id, (job) => h("tr", null, cells(job)));
    byId("replay-jobs").hidden = replays.length === 0;
    say(byId("replay-note"), replays.length === 0 ? "No replay was asked for." : "");
  } catch (error) {
    isRunning = false;
    say(byId("replay-note"), said(error));
  }
}

/** Whether there is something to watch. */
export function isBusy() {
  return isRunning;
}

function cells(job) {
  const [created, delivered] = [job.created ?? 0, job.delivered ?? 0];
  const searched = Number(job.searched_percent ?? (job.state === "running" ? 0 : 100));
  const kinds = { running: "warn", ended: "good", cancelled: "idle" };
  const lost = (job.not_delivered ?? 0) > 0 ? `, ${number(job.not_delivered)} not delivered` : "";
  const label = `${searched} % searched; ${number(delivered)} of ${number(created)} delivered${lost}`;
  const ended = job.state === "cancelled" ? [`cancelled by `, foreign(job.cancelled_by ?? "?")] : job.ended_at ? `ended ${moment(job.ended_at)}` : "";
  return [
    cell("Replay", [foreign(job.id), h("span", { class: "more" }, ["by ", foreign(job.by)])]),
    cell("State", [h("span", { class: `state ${kinds[job.state] ?? "idle"}` }, job.state), h("span", { class: "more" }, ended)]),
    cell("Begun", moment(job.started_at)),
    cell("Of", [foreign(words(job.filter ?? {})), h("span", { class: "more" }, job.rate ? `at most ${number(job.rate)} each second` : "")], "wide"),
    cell("Progress", [
      h("progress", { max: 100, value: searched, "aria-label": `Searched, replay ${job.id}` }),
      h("progress", { max: Math.max(created, 1), value: delivered, "aria-label": `Delivered, replay ${job.id}` }),
      h("span", { class: "more" }, label),
    ], "wide"),
    h("td", { class: "acts" }, job.state === "running" && h("button", { type: "button", "data-cancel": job.id, "aria-label": `Cancel replay ${job.id}` }, "Cancel")),
  ];
}

async function cancel(event) {
  event.preventDefault();
  const { job } = byId("replay-end").dataset;
  try {
    await send(`/v1/replays/${encodeURIComponent(job)}`, { method: "DELETE" });
    byId("replay-end").close();
    notice(`Replay ${job} is cancelled: what it has created is still delivered.`);
    await update();
  } catch (error) {
    say(byId("replay-end-error"), said(error));
  }
}

/** Shows the form with this filter. */
export function open(filter) {
  if (Object.keys(filter).length > 0) fill(byId("replay-form"), filter);
  return update();
}

export function start() {
  byId("replay-form").querySelector(".fields").append(...fields("replay").filter(Boolean), h("label", { class: "field" }, h("span", null, "Rate"),
    h("input", { name: "rate", type: "number", min: "1", step: "1", placeholder: "each second, at most" })));
  byId("replay-form").addEventListener("submit", ask);
  byId("replay-confirm-form").addEventListener("submit", go);
  byId("replay-cancel").addEventListener("click", () => byId("replay-confirm").close());
  byId("replay-jobs").addEventListener("click", (event) => {
    const job = event.target.closest("[data-cancel]")?.dataset.cancel;
    if (!job) return;
    byId("replay-end").dataset.job = job;
    say(byId("replay-end-which"), `Replay ${job} creates no further deliveries. Those that it has created are still delivered.`);
    say(byId("replay-end-error"), "");
    byId("replay-end").showModal();
  });
  byId("replay-end-form").addEventListener("submit", cancel);
  byId("replay-end-cancel").addEventListener("click", () => byId("replay-end").close());
}
