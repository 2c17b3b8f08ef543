// Server-sent events, read from a stream: `EventSource` can't say who asks. It goes on behind the last event after whatever has ended it, a restart of the
// service included.

import { Refused, send } from "./api.js";
import * as token from "./token.js";

/** Every 15 s something comes; a stream that is silent for longer is dead. */
const SILENT_MS = 40_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
/** An event is far smaller. */
const LONGEST_EVENT = 4 << 20;

/** Follows the events. `onEvent(name, data, id)`; `onState(is, why)` when it begins to be live, and when it ends. */
export class Stream {
  constructor(onEvent, onState) {
    Object.assign(this, { onEvent, onState, lastId: null, end: null });
    token.onChange(() => this.isOn && this.restart());
  }

  start() {
    if (this.isOn) return;
    this.isOn = true;
    this.run();
  }

  /** Lets the place among its clients go; a later start goes on where it was. */
  stop() {
    this.isOn = false;
    this.end?.abort();
  }

  restart() {
    this.stop();
    this.start();
  }

  async run() {
    const end = (this.end = new AbortController());
    let wait = FIRST_WAIT_MS;
    while (!end.signal.aborted) {
      let why = "the stream has ended";
      try {
        await this.follow(end.signal, () => {
          wait = FIRST_WAIT_MS;
          this.onState(true, "");
        });
      } catch (error) {
        why = error.message;
        // Without a token it would be asked in vain; another one starts it again.
        if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
          this.onState(false, why);
          return;
        }
      }
      if (end.signal.aborted) return;
      this.onState(false, why);
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    }
  }

  async follow(signal, isLive) {
    const headers = { Accept: "text/event-stream" };
    if (this.lastId !== null) headers["Last-Event-ID"] = this.lastId;
    // One that ends by itself, when nothing is heard or the page has had enough.
    const own = new AbortController();
    const abort = () => own.abort();
    signal.addEventListener("abort", abort);
    let timer = setTimeout(abort, SILENT_MS);
    try {
      const response = await send("/v1/events", { headers, signal: own.signal, limit: null });
      isLive();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(abort, SILENT_MS);
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        if (text.length > LONGEST_EVENT) throw new Error("an event has no end");
        parts.forEach((part) => this.take(part));
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
      own.abort();
    }
  }

  take(part) {
    let [name, data] = ["message", ""];
    for (const line of part.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
      else if (line.startsWith("id: ")) this.lastId = line.slice(4);
    }
    if (data !== "") this.onEvent(name, data, this.lastId);
  }
}
