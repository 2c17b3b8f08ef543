// Whether reports flow: the service's own verdict, in the words of `tidings status`, so that both say the same. Then figures, connections and lanes.

import * as cluster from "./cluster.js";
import { byId, foreign, h, say, show } from "./dom.js";
import { age, between, count, moment, number, rate, size } from "./format.js";
import * as fresh from "./fresh.js";
import { rates } from "./samples.js";

const WORDS = {
  flowing: ["flowing", "Flowing"],
  partly: ["partly", "Partly flowing"],
  not_flowing: ["not_flowing", "Not flowing"],
};
const UNKNOWN = ["unknown", "Not known"];
/** With these nothing is accepted. */
const REFUSING = ["store_failed", "stopping", "store_full", "no_quorum", "cut_off"];
const STATES = {
  connected: "good", connecting: "warn", backing_off: "bad", suspended: "bad", stopped: "bad", idle: "idle",
  elsewhere: "idle", unowned: "bad",
};

let status = null;

/** Shows a status. */
export function update(newer) {
  status = newer;
  draw();
}

export function latest() {
  return status;
}

/** Shows the last one again: it may be old by now. */
export function draw() {
  verdict();
  if (status === null) return;
  figures();
  show(byId("troubles"), troubles().map((each) => h("li", null, each)));
  cluster.draw(status);
  show(byId("connections"), status.connections.length === 0 ? h("p", { class: "empty" }, "No connection is configured.") : status.connections.map(connection));
  show(byId("about"), about().map(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
  const dead = status.connections.reduce((all, each) => all + each.dead_letters, 0);
  const badge = byId("dead-count");
  badge.hidden = dead === 0;
  say(badge, number(dead));
}

function verdict() {
  const box = byId("verdict");
  const old = fresh.isOld() || status === null;
  const isAsking = status === null && byId("unreachable").hidden;
  const [kind, word] = isAsking ? ["unknown", "Asking …"] : old ? UNKNOWN : WORDS[status.verdict?.flow] ?? UNKNOWN;
  box.dataset.flow = kind;
  say(byId("verdict-word"), word);
  document.title = `${{ flowing: "✓", partly: "!", not_flowing: "✗", unknown: "?" }[kind]} ${word} · Tidings`;
  const reasons = (!old && status.verdict?.reasons) || [];
  say(byId("verdict-why"), isAsking ? "" : old ? "The service does not say, so this page does not know whether reports flow." : why(reasons));
  say(byId("verdict-detail"), reasons[0]?.detail ?? "");
  show(byId("verdict-more"), reasons.slice(1).map((reason) => h("li", null, said(reason))));
  // Read aloud when it changes, and not each time that a second has gone by.
  say(byId("verdict-aloud"), old ? word : [word, ...reasons.map((reason) => reason.message)].join(". "));
}

function why(reasons) {
  const [first] = reasons;
  if (!first) return `reports are accepted and delivered; ${waiting()}`;
  const lasts = first.since && between(first.since, status.now);
  const since = lasts === null || lasts === undefined || first.since === null ? "" : `for ${age(lasts)} (since ${moment(first.since)}): `;
  return `${since}${first.message}; ${REFUSING.includes(first.code) ? "" : "reports are accepted and kept, "}${waiting()}`;
}

function said(reason) {
  const lasts = reason.since === null ? null : between(reason.since, status.now);
  return [reason.message, lasts === null ? "" : `, for ${age(lasts)}`, reason.detail ? [": ", foreign(reason.detail)] : ""];
}

function waiting() {
  const backlog = status.connections.reduce((all, each) => all + each.backlog, 0);
  const oldest = oldestAge();
  if (backlog === 0) return "nothing waits";
  if (oldest === null) return `${count(backlog, "report waits", "reports wait")} to be delivered`;
  return backlog === 1 ? `1 delivery waits, for ${age(oldest)}` : `${number(backlog)} deliveries wait, the oldest for ${age(oldest)}`;
}

function oldestAge() {
  const ages = status.connections.map((each) => each.oldest_pending_age_seconds).filter((each) => each !== null);
  return ages.length === 0 ? null : Math.max(...ages);
}

function figures() {
  const sum = (of) => status.connections.reduce((all, each) => all + of(each), 0);
  const [oldest, now, store] = [oldestAge(), rates(), status.store];
  const dead = sum((each) => each.dead_letters);
  const all = [
    ["Backlog", number(sum((each) => each.backlog)), "pending deliveries"],
    ["Oldest pending", oldest === null ? "–" : age(oldest), oldest === null ? "nothing waits" : "is its age"],
    ["In", rate(now.accepted), "each second, of late"],
    ["Out", rate(now.delivered), "each second, of late"],
    ["In flight", number(sum((each) => each.inflight)), "sent, not acknowledged"],
    ["Dead letters", dead === 0 ? "0" : h("a", { href: "#dead" }, number(dead)), "wait for a decision"],
    ["Store", size(store.bytes), `of ${size(store.max_bytes)}, ${size(store.free_bytes)} free on its disk`],
  ];
  show(byId("figures"), all.map(([name, value, more]) => h("div", { class: "figure" }, h("dt", null, name), h("dd", null, value), h("dd", { class: "more" }, more))));
  const meter = byId("store-meter");
  meter.max = Math.max(store.max_bytes, 1);
  meter.value = store.bytes;
  say(byId("store-meter-text"), `${((store.bytes / Math.max(store.max_bytes, 1)) * 100).toFixed(1)} % of the store's limit is taken`);
}

/** What the service says beside its verdict. */
function troubles() {
  const [found, config] = [[], status.config];
  for (const mistake of config.mistakes) found.push(["The configuration was not reloaded: ", foreign(mistake)]);
  if (config.restart_needed.length > 0) found.push(`A restart is needed for: ${config.restart_needed.join(", ")}`);
  for (const each of status.connections) {
    if (!each.totals.balanced) found.push(`The books of ${each.name} do not balance: please report it`);
    if (each.totals.possible_duplicates > 0) found.push(`${count(each.totals.possible_duplicates, "delivery", "deliveries")} of ${each.name} may have arrived twice since its store was made`);
  }
  return found;
}

function connection(each) {
  const elsewhere = each.lanes.filter((lane) => lane.state === "elsewhere").length;
  const here = each.lanes.length - elsewhere;
  const up = each.lanes.filter((lane) => lane.state === "connected").length;
  const [kind, word] = !each.configured
    ? ["idle", "not configured"]
    : here === 0 && elsewhere > 0 ? ["idle", "driven by other instances"]
      : up === here && up > 0 ? ["good", elsewhere > 0 ? `connected here, ${count(elsewhere, "lane", "lanes")} elsewhere` : "connected"]
        : up === 0 ? ["bad", "not connected"] : ["warn", `${up} of ${here} lanes connected`];
  const totals = [
    ["Backlog", each.backlog === 0 ? "0" : h("a", { href: `#deliveries?state=pending&connection=${encodeURIComponent(each.name)}` }, number(each.backlog))],
    ["Oldest", each.oldest_pending_age_seconds === null ? "–" : age(each.oldest_pending_age_seconds)],
    ["In flight", number(each.inflight)],
    ["Dead", each.dead_letters === 0 ? "0" : h("a", { href: `#dead?connection=${encodeURIComponent(each.name)}` }, number(each.dead_letters))],
    ["Created", number(each.totals.created)],
    ["Acknowledged", number(each.totals.acknowledged)],
    ["Sent (QoS 0)", number(each.totals.sent)],
    ["Expired", number(each.totals.expired)],
    ["Discarded", number(each.totals.discarded)],
  ];
  const heads = ["Lane", "State", "For", "MQTT", "Server", "Pending", "In flight", "Waiting", "Last trouble"];
  return h("section", { class: "connection", id: `connection-${each.name}` },
    h("h3", null, foreign(each.name), " ", h("span", { class: `state ${kind}` }, word)),
    h("dl", { class: "totals" }, totals.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))),
    h("table", { class: "stacked" },
      h("caption", { class: "unseen" }, `Lanes of ${each.name}`),
      h("thead", null, h("tr", null, heads.map((head, at) => h("th", { scope: "col", class: isNumber(at) && "number" }, head)))),
      h("tbody", null, each.lanes.map((one) => lane(one, heads)))));
}

function lane(one, heads) {
  const since = one.since === null || one.since === undefined ? null : between(one.since, status.now);
  const error = one.last_error;
  const ago = error === null ? null : between(error.at, status.now);
  const cells = [
    one.lane,
    h("span", { class: `state ${STATES[one.state] ?? "idle"}` }, one.owner ? ["at ", foreign(one.owner)] : one.state.replaceAll("_", " ")),
    since === null ? "–" : age(since),
    one.protocol ?? "–",
    one.server === null || one.server === undefined ? "–" : foreign(one.server),
    number(one.pending), number(one.in_flight), number(one.waiting),
    error === null ? "–" : [`${ago === null ? moment(error.at) : `${age(ago)} ago`}: `, foreign(error.message)],
  ];
  return h("tr", null, cells.map((cell, at) => h("td", { "data-head": heads[at], class: isNumber(at) ? "number" : at === 8 && "wide" }, h("div", null, cell))));
}

/** Pending, in flight and waiting are counts. */
function isNumber(at) {
  return at >= 5 && at <= 7;
}

function about() {
  const { store, config, listener } = status;
  return [
    ["Version", status.version],
    ["Up", age(status.uptime_seconds)],
    ["Store", status.store_id],
    ["Delivered reports stay", age(store.retention_seconds)],
    ["Reports are refused below", `${size(store.reserved_bytes)} free`],
    ["Configuration", [config.file === null ? "–" : foreign(config.file), `, in force since ${moment(config.since)}`]],
    ["MQTT listener", listener === null || listener === undefined ? "none" : `${listener.address}, ${count(listener.connections, "publisher", "publishers")}`],
    ["As of", moment(status.now)],
  ];
}
