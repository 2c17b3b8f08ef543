// Dead letters, which wait for a decision; and the search for any delivery.

import { byId, foreign, h, say } from "./dom.js";
import { decide } from "./decide.js";
import { fields, fill, mark, values } from "./filters.js";
import { count, moment } from "./format.js";
import { DeliveryList, about, cell, found, link } from "./list.js";

/** One view: a form, and a list of what it finds. The filter stands in the address, so that it can be kept and passed on. */
class View {
  constructor(name, list, options) {
    Object.assign(this, { name, list, form: byId(`${name}-form`), error: byId(`${name}-error`) });
    this.form.querySelector(".fields").append(...fields(name, options).filter(Boolean));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const address = `#${name}?${new URLSearchParams(values(this.form))}`.replace(/\?$/, "");
      if (location.hash === address) this.open(values(this.form));
      else location.hash = address;
    });
    this.form.addEventListener("reset", () => setTimeout(() => this.form.requestSubmit()));
  }

  async open(filter) {
    fill(this.form, filter);
    await this.try(() => this.list.load(filter));
  }

  async refresh() {
    await this.try(() => this.list.refresh());
  }

  async try(act) {
    try {
      await act();
      say(this.error, "");
      mark(this.form, null);
    } catch (error) {
      say(this.error, error.message);
      mark(this.form, error.field ?? null);
    }
  }
}

let [dead, search] = [null, null];

function deadCells(row) {
  const why = row.dead;
  return [
    h("td", { class: "choose" }, h("input", { type: "checkbox", value: row.id, "aria-label": `Choose delivery ${row.id}` })),
    cell("Delivery", link(row.id)),
    cell("Dead since", moment(row.dead_at ?? row.accepted_at)),
    cell("Topic", [foreign(row.topic), h("span", { class: "more" }, [foreign(row.connection), ` lane ${row.lane} · QoS ${row.qos}`])], "wide"),
    cell("About", about(row), "wide"),
    cell("Reason", why === null ? "see its history" : [foreign(why.message), h("span", { class: "more" }, `${why.code}${why.broker_code === null ? "" : ` 0x${why.broker_code.toString(16)}`}, ${count(why.attempts, "attempt", "attempts")}`)], "wide"),
    h("td", { class: "acts" }, h("button", { type: "button", "data-act": "requeue", "data-id": row.id, "aria-label": `Requeue delivery ${row.id}` }, "Requeue"),
      h("button", { type: "button", "data-act": "discard", "data-id": row.id, "aria-label": `Discard delivery ${row.id}` }, "Discard")),
  ];
}

export function start() {
  const place = byId("dead-list");
  const list = new DeliveryList(place, {
    state: "dead", cells: deadCells,
    onSelection: (ids) => {
      say(byId("dead-selected"), ids.length === 0 ? "None chosen" : `${ids.length} chosen`);
      for (const button of document.querySelectorAll("[data-chosen]")) button.disabled = ids.length === 0;
    },
  });
  dead = new View("dead", list);
  search = new View("deliveries", new DeliveryList(byId("deliveries-list"), { cells: found }), { state: true });
  const again = () => dead.refresh();
  place.addEventListener("click", (event) => {
    const { act, id } = event.target.closest("[data-act]")?.dataset ?? {};
    if (act) decide(act, { ids: [id] }, again);
  });
  byId("dead-decide").addEventListener("click", (event) => {
    const { chosen, every } = event.target.closest("button")?.dataset ?? {};
    if (chosen) decide(chosen, { ids: [...list.selected] }, again);
    // What the list shows, and not what stands in the form unasked.
    if (every) decide(every, { filter: list.filter }, again);
  });
}

export function openDead(filter) {
  const isFiltered = Object.keys(filter).length > 0;
  if (isFiltered) byId("dead-filter").open = true;
  for (const button of document.querySelectorAll("[data-every]")) {
    say(button, `${button.dataset.every === "requeue" ? "Requeue" : "Discard"} all${isFiltered ? " of this filter" : ""} …`);
  }
  return dead.open(filter);
}

export function openSearch(filter) {
  // Only what was delivered is replayed, so the state is none of its business.
  const { state, ...rest } = filter;
  byId("replay-these").setAttribute("href", `#replays?${new URLSearchParams(rest)}`);
  return search.open(filter);
}

export function refreshDead() {
  return dead.refresh();
}
