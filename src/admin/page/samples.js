// Figures over time: the service's own of the last hour, asked for once and then only what is new, and at the end what the status says right now.

import { get } from "./api.js";

/** Twice what the service keeps: after its restart what was known before is still drawn. */
const KEPT = 1_440;

const samples = [];
let [run, newest, step] = [null, 0, 5];
let now = null;

/** Asks for what is new. */
export async function update() {
  let answer = await get(`/v1/history?after=${newest}`);
  if (run !== null && answer.started_at !== run) {
    // Another run counts anew.
    answer = await get("/v1/history");
  }
  [run, step] = [answer.started_at, answer.step_s];
  for (const sample of answer.samples) {
    const at = Date.parse(sample.at);
    newest = sample.n;
    // A clock that was set back draws no loops.
    while (samples.length > 0 && samples.at(-1).at >= at) samples.pop();
    samples.push({ ...sample, at });
  }
  samples.splice(0, Math.max(0, samples.length - KEPT));
}

/** Forgets everything: somebody else looks now, or another service. */
export function forget() {
  samples.length = 0;
  [run, newest, now] = [null, 0, null];
}

/** What the status says now, as if it were a sample. */
export function at(status) {
  const sum = (of) => status.connections.reduce((all, connection) => all + of(connection), 0);
  now = {
    at: Date.parse(status.now),
    flow: status.verdict?.flow,
    backlog: sum((connection) => connection.backlog),
    accepted: sum((connection) => connection.totals.accepted),
    replayed: sum((connection) => connection.totals.replayed),
    delivered: sum((connection) => connection.totals.acknowledged + connection.totals.sent),
  };
}

/** What is drawn: at each time the backlog, the rates since the time before, and whether the service was there in between. */
export function points() {
  const last = samples.at(-1);
  // A moment that is hardly over has no rate worth showing.
  const all = now !== null && (!last || now.at - last.at > 900) ? [...samples, now] : samples;
  return all.map((sample, index) => {
    const before = all[index - 1];
    const span = before ? (sample.at - before.at) / 1_000 : null;
    const isGap = span !== null && span > 3 * step;
    const rate = (of) => (before && !isGap && of(sample) >= of(before) ? (of(sample) - of(before)) / span : null);
    return {
      at: sample.at, flow: sample.flow, isGap, backlog: sample.backlog,
      accepted: rate((each) => each.accepted + each.replayed), delivered: rate((each) => each.delivered),
    };
  });
}

/** What comes in and goes out each second, over the last samples. */
export function rates() {
  const shown = points().slice(-3).filter((point) => point.accepted !== null);
  const mean = (of) => (shown.length === 0 ? null : shown.reduce((all, point) => all + of(point), 0) / shown.length);
  return { accepted: mean((point) => point.accepted), delivered: mean((point) => point.delivered ?? 0) };
}
