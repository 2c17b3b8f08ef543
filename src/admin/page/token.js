// Who asks: a token, if the service wants one. It is kept for this tab, until it is closed or told to forget.

import { byId, say } from "./dom.js";

const KEY = "tidings-token";
const BY = "tidings-by";
const changes = new EventTarget();
// Where a browser keeps nothing for pages, it lasts until the page is left.
const memory = new Map();

function read(key) {
  try {
    return sessionStorage.getItem(key) ?? memory.get(key) ?? null;
  } catch {
    return memory.get(key) ?? null;
  }
}

function write(key, value) {
  if (value === null) memory.delete(key);
  else memory.set(key, value);
  try {
    if (value === null) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, value);
  } catch {
    // It is in memory.
  }
}

export function get() {
  return read(KEY);
}

/** The name that was given last for a decision. */
export function lastName() {
  return read(BY) ?? "";
}

export function rememberName(name) {
  write(BY, name);
}

/** Calls back whenever there is another token, or none any more. */
export function onChange(act) {
  changes.addEventListener("change", act);
}

/** Whether the service has refused what we have shown, and nothing new was given. */
export let isWanted = false;

/** The service wants a token, or another one. */
export function wanted(shown) {
  if (shown !== get()) return;
  isWanted = true;
  document.body.dataset.token = "wanted";
  ask(shown === null ? "This service asks for a token." : "The service does not take this token. It may have been replaced.");
}

/** Asks whoever looks. */
export function ask(why) {
  const dialog = byId("token");
  say(byId("token-why"), why);
  if (!dialog.open) {
    // One at a time: what waits behind it could not be done anyway.
    document.querySelectorAll("dialog[open]").forEach((other) => other.close());
    byId("token-text").value = "";
    say(byId("token-error"), "");
    dialog.showModal();
  }
}

function changed() {
  isWanted = false;
  document.body.dataset.token = get() === null ? "none" : "shown";
  byId("token-forget").hidden = get() === null;
  changes.dispatchEvent(new Event("change"));
}

export function start() {
  document.body.dataset.token = get() === null ? "none" : "shown";
  byId("token-forget").hidden = get() === null;
  byId("token-open").addEventListener("click", () => ask(get() === null ? "Give a token, if this service wants one." : "A token is in use. Give another one, or forget it."));
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("token-text").value.trim();
    // What else a header could carry is no token.
    if (!/^[\x21-\x7e]+$/.test(text)) return say(byId("token-error"), "A token is made of visible ASCII characters.");
    write(KEY, text);
    byId("token").close();
    changed();
  });
  byId("token-forget").addEventListener("click", () => {
    write(KEY, null);
    byId("token").close();
    changed();
  });
  byId("token-cancel").addEventListener("click", () => byId("token").close());
}
