// What operators decide about deliveries. Before anything is done the service counts what is meant; who decides is named.

import { post } from "./api.js";
import { byId, h, notice, say, show } from "./dom.js";
import { count, number } from "./format.js";
import { words } from "./filters.js";
import * as token from "./token.js";

const ACTS = {
  requeue: {
    path: "/v1/dead/requeue", title: "Requeue dead letters", button: "Requeue", one: "dead letter", many: "dead letters",
    will: "go back to their lanes and are sent, out of their order", done: "requeued",
  },
  discard: {
    path: "/v1/dead/discard", title: "Discard dead letters", button: "Discard", one: "dead letter", many: "dead letters",
    will: "are given up for good: nobody will get them", done: "discarded", isFinal: true,
  },
  "discard-pending": {
    path: "/v1/deliveries/discard", title: "Discard pending deliveries", button: "Discard", one: "pending delivery", many: "pending deliveries",
    will: "are given up for good: nobody will get them", done: "discarded", isFinal: true, extra: { state: "pending" },
  },
};

/** What is being decided, and whom to tell. */
let open = null;

/** Asks whether it is to be done with these: `{ ids }` or `{ filter }`. Calls back when something was. */
export async function decide(name, which, onDone) {
  const act = ACTS[name];
  open = { act, which, onDone, turn: Symbol(name) };
  const { turn } = open;
  say(byId("decide-title"), act.title);
  say(byId("decide-which"), which.ids ? `Chosen: ${which.ids.slice(0, 10).join(", ")}${which.ids.length > 10 ? ", …" : ""}` : `Chosen: ${words(which.filter)}`);
  say(byId("decide-error"), "");
  say(byId("decide-count"), "Counting …");
  byId("decide-reason").value = "";
  who("decide-by", "decide-by-hint");
  const go = byId("decide-go");
  go.className = act.isFinal ? "danger" : "primary";
  say(go, act.button);
  go.disabled = true;
  if (!byId("decide").open) byId("decide").showModal();
  // A dry run leaves no trace, so no name is needed for it yet; the service asks for one all the same.
  try {
    const counted = await post(act.path, { ...which, ...act.extra, ...named("dashboard, counting"), dry_run: true });
    if (open?.turn !== turn) return;
    describe(act, counted);
    go.disabled = counted.done === 0;
    say(go, counted.done === 0 ? act.button : `${act.button} ${number(counted.done)}`);
    (act.isFinal ? byId("decide-cancel") : byId("decide-by").value === "" ? byId("decide-by") : go).focus();
  } catch (error) {
    if (open?.turn !== turn) return;
    say(byId("decide-count"), "");
    say(byId("decide-error"), error.message);
  }
}

function describe(act, counted) {
  const lines = [h("p", null, h("strong", null, count(counted.done, act.one, act.many)), ` ${counted.done === 1 ? act.will.replace(/^(go|are)/, (verb) => ({ go: "goes", are: "is" })[verb]).replace("their lanes and are", "its lane and is").replace("of their", "of its").replace("them", "it") : act.will}.`)];
  if (counted.remaining > 0) lines.push(h("p", null, `One request takes so many; at least ${number(counted.remaining)} more are left, and can be decided about next.`));
  if (counted.in_flight > 0) lines.push(h("p", null, `${number(counted.in_flight)} may be in flight, and are left alone.`));
  if (counted.skipped.length > 0) lines.push(h("p", null, `${number(counted.skipped.length)} of those chosen have ended or changed already, and are left alone.`));
  show(byId("decide-count"), lines);
}

/** Who decides, for the history: with a token its name does, and another one may be added. */
export function who(input, hint) {
  const isNeeded = token.get() === null;
  byId(input).required = isNeeded;
  byId(input).value = token.lastName();
  say(byId(hint), isNeeded ? "needed: it stands in the history" : "optional: the token's name stands in the history");
}

/** The name as a body has it. */
export function named(name) {
  return name === "" || (token.get() !== null && name.startsWith("dashboard,")) ? {} : { by: name };
}

async function go(event) {
  event.preventDefault();
  const [{ act, which, onDone, turn }, by, reason] = [open, byId("decide-by").value.trim(), byId("decide-reason").value.trim()];
  const button = byId("decide-go");
  if (button.disabled) return;
  if (by === "" && token.get() === null) return say(byId("decide-error"), "Who decides? The history shows it.");
  button.disabled = true;
  say(byId("decide-error"), "");
  token.rememberName(by);
  try {
    const done = await post(act.path, { ...which, ...act.extra, ...named(by), ...(reason && { reason }) });
    if (open?.turn === turn) byId("decide").close();
    const rest = done.remaining > 0 ? ` At least ${number(done.remaining)} more are left: do it again for those.` : "";
    const alone = done.in_flight > 0 ? ` ${number(done.in_flight)} may be in flight, and were left alone.` : "";
    notice(`${count(done.done, act.one, act.many)} ${act.done}.${rest}${alone}`);
    onDone(done);
  } catch (error) {
    if (open?.turn !== turn) return notice(error.message, "bad");
    say(byId("decide-error"), error.message);
    button.disabled = false;
  }
}

export function start() {
  byId("decide-form").addEventListener("submit", go);
  byId("decide-cancel").addEventListener("click", () => byId("decide").close());
  byId("decide").addEventListener("close", () => (open = null));
}
