// Which view is shown, and when what is asked.
//
//   events (stream) ──▶ something has happened ─▶ status, at most each second ─▶ verdict, figures
//   each 2 s        ──▶ status    each 5 s ─▶ history ─▶ charts      (so it goes on without the stream, too)

import { Refused, get } from "./api.js";
import { Chart, spans } from "./charts.js";
import { byId, h, say, show } from "./dom.js";
import { number, rate } from "./format.js";
import * as decide from "./decide.js";
import * as deliveries from "./deliveries.js";
import * as delivery from "./delivery.js";
import * as fresh from "./fresh.js";
import * as live from "./live.js";
import * as overview from "./overview.js";
import * as replays from "./replays.js";
import * as samples from "./samples.js";
import { Stream } from "./stream.js";
import * as token from "./token.js";

const STATUS_MS = 2_000;
/** Nobody looks: the title of the tab is kept true, and no more. */
const HIDDEN_MS = 15_000;
const HISTORY_MS = 5_000;
/** Events ask for a status, so often at most. */
const SOON_MS = 800;
/** And for the list that they are about. */
const LIST_MS = 1_500;
/** A status that takes longer means that the service hangs. */
const STATUS_LIMIT_MS = 5_000;

let [span, charts, view] = [900_000, [], "overview"];

/** Does something again and again, never twice at once; `soon` does it before its time. */
class Again {
  constructor(act, every) {
    Object.assign(this, { act, every, timer: null, isBusy: false, isWanted: false });
  }

  async run() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.isBusy) return void (this.isWanted = true);
    [this.isBusy, this.isWanted] = [true, false];
    try {
      await this.act();
    } finally {
      this.isBusy = false;
      this.timer = setTimeout(() => this.run(), this.isWanted ? SOON_MS : this.every());
    }
  }
}

async function status() {
  // Somebody is asked for a token.
  if (token.isWanted) return fresh.failed("The service asks for a token.");
  try {
    const answer = await get("/v1/status", { limit: STATUS_LIMIT_MS });
    fresh.answered();
    samples.at(answer);
    overview.update(answer);
    draw();
    show(byId("known-connections"), answer.connections.map((each) => h("option", { value: each.name })));
  } catch (error) {
    fresh.failed(error instanceof Refused ? `The service does not say how it does: ${error.message}` : `The service can't be reached: ${error.message}.`);
  }
}

async function history() {
  if (token.isWanted || document.hidden) return;
  try {
    await samples.update();
    draw();
  } catch {
    // The status says what is wrong, and the next turn tries again.
  }
}

function draw() {
  if (view === "overview") charts.forEach((chart) => chart.update(samples.points(), span));
}

const watching = new Again(status, () => (document.hidden ? HIDDEN_MS : STATUS_MS));
const drawing = new Again(history, () => HISTORY_MS);
const jobs = new Again(async () => view === "replays" && !token.isWanted && !document.hidden && (await replays.update()), () => (replays.isBusy() ? STATUS_MS : HISTORY_MS));

/** Does it soon, and once for all who want it until then. */
function soon(act, wait) {
  let timer = null;
  return () => (timer ??= setTimeout(() => ((timer = null), act()), wait));
}

const lookSoon = soon(() => watching.run(), SOON_MS);
const deadSoon = soon(() => view === "dead" && deliveries.refreshDead(), LIST_MS);
const storySoon = soon(() => view === "delivery" && delivery.refresh(), LIST_MS);

const stream = new Stream((name, data) => {
  live.add(name, data);
  lookSoon();
  if (["dead", "requeued", "discarded", "missed"].includes(name)) deadSoon();
  if (name !== "accepted") storySoon();
}, (is, why) => {
  byId("live-state").dataset.live = String(is);
  say(byId("live-state"), is ? "live" : "not live");
  byId("live-state").title = is ? "Events come as they happen." : `Events don't come: ${why}. The page asks every ${STATUS_MS / 1_000} s meanwhile.`;
  // What has ended the stream may have ended more.
  lookSoon();
});

const VIEWS = {
  overview: () => draw(),
  dead: (rest, filter) => deliveries.openDead(filter),
  deliveries: (rest, filter) => deliveries.openSearch(filter),
  delivery: (rest) => delivery.open(rest),
  replays: (rest, filter) => replays.open(filter),
  live: () => {},
};

/** `#view/rest?name=value` */
function route(isFirst) {
  const [address, filter] = location.hash.slice(1).split("?", 2);
  let [name, rest] = address.split(/\/(.*)/s);
  if (!(name in VIEWS)) [name, rest] = ["overview", ""];
  view = name;
  for (const section of document.querySelectorAll("main > section[data-view]")) section.hidden = section.dataset.view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.hash === `#${name}` || (name === "delivery" && link.hash === "#deliveries");
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  live.setVisible(name === "live");
  let wanted = rest ?? "";
  try {
    wanted = decodeURIComponent(wanted);
  } catch {
    // It was typed in: it is looked for as it stands.
  }
  VIEWS[name](wanted, Object.fromEntries(new URLSearchParams(filter ?? "")));
  if (isFirst) return;
  enter();
  window.scrollTo(0, 0);
}

/** Who goes by keyboard, or listens, goes on where the view begins. */
function enter() {
  document.querySelector(`section[data-view="${view}"] h2`).focus({ preventScroll: true });
}

function start() {
  for (const part of [token, fresh, decide, deliveries, delivery, replays, live]) part.start();
  charts = [
    new Chart(byId("chart-backlog"), { title: "Backlog", series: [{ key: "backlog", label: "pending" }], format: number }),
    new Chart(byId("chart-rates"), { title: "Each second", series: [{ key: "accepted", label: "in" }, { key: "delivered", label: "out" }], format: rate }),
  ];
  spans(byId("spans"), span, (chosen) => {
    span = chosen;
    draw();
  });
  fresh.onChange(() => overview.draw());
  token.onChange(() => {
    samples.forget();
    watching.run();
    drawing.run();
    route(true);
  });
  window.addEventListener("hashchange", () => route(false));
  document.addEventListener("visibilitychange", () => {
    // A tab that nobody sees holds no place among those who follow.
    if (document.hidden) return stream.stop();
    stream.start();
    watching.run();
    drawing.run();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    enter();
  });
  byId("try-again").addEventListener("click", () => (token.isWanted ? token.ask("This service asks for a token.") : watching.run()));
  watching.run();
  drawing.run();
  jobs.run();
  stream.start();
  route(true);
}

start();
