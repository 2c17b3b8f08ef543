// How old what is shown is. Old figures must not pass for new ones: when the service has not answered for a while, that stands above everything, what is
// below is marked as old, and the verdict says that nothing is known.

import { byId, say } from "./dom.js";
import { age, clock } from "./format.js";

/** It is asked every other second or so; after this long without an answer what is shown is old, whatever the reason. */
const OLD_AFTER_MS = 8_000;
/** In a tab that nobody sees timers run once a minute at best. */
const OLD_AFTER_HIDDEN_MS = 90_000;

let last = null;
let trouble = null;
let isFresh = null;
const changes = new EventTarget();

/** The service has just said how it does. */
export function answered() {
  [last, trouble] = [Date.now(), null];
  look();
}

/** It has not said so; why, in a sentence. */
export function failed(why) {
  trouble = why;
  look();
}

export function onChange(act) {
  changes.addEventListener("change", act);
}

export function isOld() {
  return isFresh !== true;
}

function look() {
  // A machine that was asleep has a clock that has jumped, and figures from before.
  const old = last === null ? null : Math.abs(Date.now() - last);
  const isNow = trouble === null && old !== null && old < (document.hidden ? OLD_AFTER_HIDDEN_MS : OLD_AFTER_MS);
  if (last === null && trouble === null) return;
  const banner = byId("unreachable");
  banner.hidden = isNow;
  document.body.classList.toggle("old", !isNow);
  if (!isNow) {
    say(byId("unreachable-why"), trouble ?? "The service has not answered lately.");
    say(byId("unreachable-last"), last === null ? "It has not answered since this page was opened." : `It last answered ${age(old / 1_000)} ago, at ${clock(last)}. What is shown below is from then.`);
  }
  if (isFresh !== isNow) {
    isFresh = isNow;
    changes.dispatchEvent(new Event("change"));
  }
}

export function start() {
  setInterval(look, 1_000);
}
