// A list of deliveries, page by page, newest first.

import { get, query } from "./api.js";
import { foreign, h, rows, say } from "./dom.js";
import { count, moment, number, size } from "./format.js";

const PAGE = 50;
/** Rows that a browser still scrolls without effort. */
const MOST = 2_000;

/** `place` holds a table with its body, a button for more, and a note. */
export class DeliveryList {
  constructor(place, { state = null, cells, onSelection = null }) {
    Object.assign(this, { place, state, cells, onSelection, found: [], cursor: null, filter: {}, pages: 0, turn: 0, selected: new Set() });
    [this.body, this.button, this.note] = [place.querySelector("tbody"), place.querySelector(".more-rows"), place.querySelector(".note")];
    this.button.addEventListener("click", () => this.more());
    if (onSelection) {
      this.all = place.querySelector("thead input");
      this.all.addEventListener("change", () => {
        this.selected = new Set(this.all.checked ? this.found.map((row) => row.id) : []);
        this.draw();
      });
      this.body.addEventListener("change", (event) => {
        const box = event.target.closest("input[type=checkbox]");
        if (!box) return;
        if (box.checked) this.selected.add(box.value);
        else this.selected.delete(box.value);
        this.draw();
      });
    }
  }

  /** The first page of what is so. Throws what went wrong. */
  async load(filter) {
    this.selected.clear();
    this.filter = filter;
    await this.turnTo(null);
  }

  /** Looks again, unless somebody has read on: what they read must not go away. */
  async refresh() {
    if (this.pages <= 1) await this.turnTo(null);
  }

  async more() {
    try {
      this.button.disabled = true;
      await this.turnTo(this.cursor);
    } catch (error) {
      say(this.note, error.message);
    } finally {
      this.button.disabled = false;
    }
  }

  async turnTo(cursor) {
    const turn = ++this.turn;
    this.place.setAttribute("aria-busy", "true");
    try {
      const answer = await get(query("/v1/deliveries", { ...this.filter, ...(this.state && { state: this.state }), limit: PAGE, cursor }));
      // Another question was asked meanwhile.
      if (turn !== this.turn) return;
      this.found = cursor === null ? answer.deliveries : [...this.found, ...answer.deliveries];
      this.pages = cursor === null ? 1 : this.pages + 1;
      this.cursor = answer.next_cursor;
      const there = new Set(this.found.map((row) => row.id));
      this.selected.forEach((id) => there.has(id) || this.selected.delete(id));
      this.draw();
    } finally {
      if (turn === this.turn) this.place.removeAttribute("aria-busy");
    }
  }

  draw() {
    rows(this.body, this.found, (row) => row.id, (row) => h("tr", null, this.cells(row)));
    const isFull = this.found.length >= MOST;
    this.button.hidden = this.cursor === null || isFull;
    say(this.button, this.found.length === 0 ? "Search on" : "More");
    const end = this.cursor === null ? "" : isFull ? "; narrow the search to see others" : "; there may be more";
    say(this.note, this.found.length === 0 ? (this.cursor === null ? "None." : "None so far; the log goes back further.") : `${count(this.found.length, "delivery", "deliveries")}${end}`);
    if (this.onSelection) {
      this.body.querySelectorAll("input[type=checkbox]").forEach((box) => (box.checked = this.selected.has(box.value)));
      this.all.checked = this.found.length > 0 && this.selected.size === this.found.length;
      this.all.indeterminate = this.selected.size > 0 && !this.all.checked;
      this.onSelection([...this.selected]);
    }
  }
}

/** A cell with its heading, which is shown where the table is too narrow for columns. */
export function cell(head, content, name = null) {
  return h("td", { "data-head": head, class: name }, h("div", null, content));
}

export function link(id) {
  return h("a", { href: `#delivery/${encodeURIComponent(id)}` }, number(Number(id)) === "NaN" ? foreign(id) : id);
}

const KINDS = { pending: "warn", dead: "bad", delivered: "good", expired: "idle", discarded: "idle", ended: "idle" };

export function state(name) {
  return h("span", { class: `state ${KINDS[name] ?? "idle"}` }, name);
}

/** What a report is about, as far as it says. */
export function about(row) {
  const parts = [row.pipeline, row.action].filter(Boolean).join(" ");
  const what = [row.project, row.change && `change ${row.change}`].filter(Boolean).join(", ");
  return [foreign(what === "" ? "–" : what), h("span", { class: "more" }, foreign([row.tenant, parts].filter(Boolean).join(" · ")))];
}

export function found(row) {
  return [
    cell("Delivery", link(row.id)),
    cell("State", state(row.state)),
    cell("Accepted", moment(row.accepted_at)),
    cell("Topic", [foreign(row.topic), h("span", { class: "more" }, [foreign(row.connection), ` lane ${row.lane} · QoS ${row.qos}`])], "wide"),
    cell("About", about(row), "wide"),
    cell("Size", size(row.bytes), "number"),
  ];
}
