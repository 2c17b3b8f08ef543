// One delivery: what it is, what happened to it, and what is published.

import { get, query, send } from "./api.js";
import { byId, foreign, h, say, show, visible } from "./dom.js";
import { decide } from "./decide.js";
import { moment, size } from "./format.js";
import { state } from "./list.js";

/** More of a payload is not shown: a browser would take long over it. */
const LARGEST_SHOWN = 1 << 20;
/** Of what is no text, so many bytes. */
const SHOWN_OF_BINARY = 4_096;

let [id, story] = [null, null];

/** Shows a delivery. */
export async function open(wanted) {
  if (id !== wanted) {
    story = null;
    byId("payload").hidden = true;
    show(byId("delivery-facts"));
    show(byId("delivery-history"));
    byId("delivery-acts").hidden = byId("delivery-more").hidden = true;
  }
  id = wanted;
  say(byId("delivery-title"), `Delivery ${wanted.slice(0, 20)}`);
  await read(null);
}

export function refresh() {
  return id === null ? null : read(null);
}

async function read(from) {
  const asked = id;
  try {
    const answer = await get(query(`/v1/deliveries/${encodeURIComponent(asked)}`, { from }));
    if (asked !== id) return;
    if (from !== null && story !== null) answer.history = [...story.history, ...answer.history];
    story = answer;
    say(byId("delivery-error"), "");
    draw();
  } catch (error) {
    if (asked === id) say(byId("delivery-error"), error.message);
  }
}

function draw() {
  const facts = [
    ["State", state(story.state)],
    ["Topic", foreign(story.topic)],
    ["Connection", [foreign(story.connection), `, lane ${story.lane}`]],
    ["QoS", `${story.qos}${story.retain ? ", retained" : ""}`],
    ...["tenant", "pipeline", "action", "project", "change"].filter((name) => story[name] !== "").map((name) => [name[0].toUpperCase() + name.slice(1), foreign(story[name])]),
    ["Accepted", `${moment(story.accepted_at)} over ${story.source}`],
    story.user !== "" && ["From", foreign(story.user)],
    ["Size", size(story.bytes)],
    story.expiry_seconds !== null && ["Expires", `${story.expiry_seconds} s after it was accepted`],
    story.replay_of !== null && ["Replays", h("a", { href: `#delivery/${encodeURIComponent(story.replay_of)}` }, story.replay_of)],
    story.retry_at !== null && ["Next try", `${moment(story.retry_at)}, ${story.attempts} refusals so far`],
    ...properties(story.properties),
  ].filter(Boolean);
  show(byId("delivery-facts"), facts.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
  show(byId("delivery-history"), story.history.map((chapter) => h("li", { class: `event-${chapter.event.replace(/[^a-z_]/g, "")}` },
    h("time", { title: chapter.at ?? "" }, chapter.at === null ? "–" : moment(chapter.at)),
    h("div", null, foreign(chapter.says), chapter.code && h("span", { class: "more" }, foreign(chapter.code))))));
  byId("delivery-more").hidden = story.complete || story.next_from === null;
  byId("delivery-acts").hidden = !["dead", "pending"].includes(story.state);
  for (const button of byId("delivery-acts").children) button.hidden = button.dataset.state !== story.state;
}

function properties(named) {
  const found = [["content_type", "Content type"], ["response_topic", "Response topic"], ["correlation_data", "Correlation data"]];
  const plain = found.filter(([name]) => named[name] !== undefined).map(([name, label]) => [label, foreign(named[name])]);
  return [...plain, ...(named.user ?? []).map(([name, value]) => [foreign(name), foreign(value)])];
}

async function payload() {
  const asked = id;
  say(byId("payload-note"), "Reading …");
  byId("payload").hidden = false;
  try {
    const bytes = new Uint8Array(await (await send(`/v1/deliveries/${encodeURIComponent(asked)}/payload`)).bytes());
    if (asked !== id) return;
    const [text, note] = readable(bytes);
    say(byId("payload-text"), text);
    say(byId("payload-note"), note);
  } catch (error) {
    if (asked === id) say(byId("payload-note"), error.message);
  }
}

/** Bytes as text, whoever wrote them. */
function readable(bytes) {
  const cut = bytes.subarray(0, LARGEST_SHOWN);
  const rest = bytes.length > cut.length ? `; the first ${size(cut.length)} are shown` : "";
  try {
    // A character that the end cuts through is no fault.
    const text = new TextDecoder("utf-8", { fatal: true }).decode(cut, { stream: rest !== "" });
    return [visible(byId("payload-indent").checked ? indented(text) : text, { lines: true }), `${size(bytes.length)}, as it is published${byId("payload-indent").checked ? ", with line breaks for reading" : ""}${rest}`];
  } catch {
    const some = [...bytes.subarray(0, SHOWN_OF_BINARY)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    return [some, `${size(bytes.length)} that are no text, in hexadecimal${bytes.length > SHOWN_OF_BINARY ? "; the beginning is shown" : ""}`];
  }
}

/** JSON with line breaks, and every figure as it was written. */
function indented(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  const out = [];
  let [depth, isString, isOpened] = [0, false, false];
  const line = () => `\n${"  ".repeat(depth)}`;
  for (let at = 0; at < text.length; at++) {
    const c = text[at];
    if (isString) {
      out.push(c === "\\" ? c + text[++at] : c);
      isString = c !== "\"";
      continue;
    }
    if (/\s/.test(c)) continue;
    if (c === "}" || c === "]") {
      depth -= 1;
      // What is empty stays on its line.
      out.push(isOpened ? c : line() + c);
      isOpened = false;
      continue;
    }
    if (isOpened) out.push(line());
    isOpened = c === "{" || c === "[";
    if (isOpened) depth += 1;
    isString = c === "\"";
    out.push(c === "," ? c + line() : c === ":" ? ": " : c);
  }
  return out.join("");
}

export function start() {
  byId("delivery-more").addEventListener("click", () => read(story.next_from));
  byId("payload-open").addEventListener("click", payload);
  byId("payload-indent").addEventListener("change", payload);
  byId("delivery-acts").addEventListener("click", (event) => {
    const { act } = event.target.closest("button")?.dataset ?? {};
    if (act) decide(act, { ids: [id] }, () => read(null));
  });
}
