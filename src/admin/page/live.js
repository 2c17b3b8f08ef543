// What happens, as it happens: the last events, newest first.

import { byId, foreign, h, rows, say } from "./dom.js";
import { clock, count } from "./format.js";

const SHOWN = 200;
/** A flood is drawn a few times a second. */
const DRAW_MS = 400;

const events = [];
let [isPaused, isVisible, timer, number, dropped] = [false, false, null, 0, 0];

/** An event has come. It is read only when it is shown. */
export function add(name, data) {
  if (isPaused) return void (dropped += 1);
  events.unshift({ key: ++number, name, data, seen: Date.now() });
  if (events.length > SHOWN) events.length = SHOWN;
  if (isVisible) soon();
}

function soon() {
  timer ??= setTimeout(() => ((timer = null), draw()), DRAW_MS);
}

export function setVisible(is) {
  isVisible = is;
  if (is) draw();
}

function draw() {
  if (!isVisible) return;
  rows(byId("live-rows"), events, (event) => String(event.key), row);
  say(byId("live-note"), isPaused ? `Paused; ${count(dropped, "event has", "events have")} gone by.` : events.length === 0 ? "Nothing has happened since the page was opened." : "");
}

function row(event) {
  let data = {};
  try {
    data = JSON.parse(event.data);
  } catch {
    // It is shown without.
  }
  return h("tr", null,
    h("td", { "data-head": "At" }, h("div", null, clock(data.at ?? event.seen))),
    h("td", { "data-head": "Event" }, h("div", null, h("span", { class: `state ${KINDS[event.name] ?? "idle"}` }, event.name.replaceAll("_", " ")))),
    h("td", { "data-head": "What", class: "wide" }, h("div", null, says(event.name, data))));
}

const KINDS = { accepted: "idle", delivered: "good", refused: "warn", sent_again: "warn", dead: "bad", missed: "warn", discarded: "warn", expired: "warn" };

function link(id) {
  return h("a", { href: `#delivery/${encodeURIComponent(id)}` }, foreign(id));
}

function says(name, data) {
  const lane = data.connection === undefined ? "" : [foreign(data.connection), data.lane === undefined ? "" : ` lane ${data.lane}`];
  const of = data.id === undefined ? "" : [" ", link(data.id)];
  const many = () => [count(data.count ?? 0, "delivery", "deliveries"), " of ", lane, (data.ids ?? []).length > 0 && [": ", data.ids.slice(0, 5).map((id, at) => [at > 0 && ", ", link(id)]), data.ids.length > 5 && ", …"]];
  switch (name) {
    case "accepted": return [link(data.id), " for ", foreign(data.topic), ` at QoS ${data.qos}, `, foreign([data.pipeline, data.action, data.project, data.change].filter(Boolean).join(" "))];
    case "delivered": return [many(), data.proof ? ` (${data.proof})` : ""];
    case "expired": case "discarded": case "moved": return [many(), data.by ? [", by ", foreign(data.by)] : "", data.reason ? [": ", foreign(data.reason)] : ""];
    case "refused": return [lane, of, `: refused, ${count(data.attempts ?? 0, "attempt", "attempts")} so far`];
    case "dead": return [lane, of, ": ", foreign(data.message)];
    case "requeued": return [lane, of, " by ", foreign(data.by)];
    case "lane": return [lane, ` is ${String(data.state).replaceAll("_", " ")}`, data.error ? [": ", foreign(data.error)] : data.server ? [", ", foreign(data.server)] : ""];
    case "audit": return [foreign(data.who), ": ", foreign(data.what)];
    case "missed": return `${count(data.events ?? 0, "event was", "events were")} missed: ${data.why}`;
    case "session": return [lane, `: a new session over MQTT ${data.protocol}, epoch ${data.epoch}`, data.possible_duplicates > 0 && `, ${data.possible_duplicates} may arrive twice`];
    case "lanes": return [lane, `: lanes ${data.first} to ${data.first + data.count - 1}`];
    case "joined": return [foreign(data.name), ` (${data.instance})`];
    case "left": return data.by === data.instance ? data.instance : `${data.instance}, as ${data.by} says, which has not heard of it`;
    case "lane_taken": return [lane, ` by ${data.instance}, term ${data.term}`];
    case "lane_left": return [lane, ` by ${data.instance}`];
    default: return [lane, of];
  }
}

export function start() {
  byId("live-pause").addEventListener("click", () => {
    isPaused = !isPaused;
    dropped = 0;
    byId("live-pause").setAttribute("aria-pressed", String(isPaused));
    draw();
  });
}
