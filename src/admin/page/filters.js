// The fields by which deliveries are chosen: those of `GET /v1/deliveries`, the same in every form.

import { h } from "./dom.js";

const STATES = ["pending", "dead", "delivered", "expired", "discarded"];
const FIELDS = [
  ["tenant", "Tenant", ""],
  ["pipeline", "Pipeline", ""],
  ["action", "Action", "success, failure, …"],
  ["topic", "Topic", "with + and #"],
  ["change", "Change", "its number"],
  ["connection", "Connection", ""],
  ["since", "Since", "2h, or 2026-05-04T12:00Z"],
  ["until", "Until", "30m, or a time in UTC"],
];

/** The fields, with their labels. `id` keeps forms apart. */
export function fields(id, { state = false } = {}) {
  const chosen = state && h("label", { class: "field" }, h("span", null, "State"),
    h("select", { name: "state", id: `${id}-state` }, h("option", { value: "" }, "any"), STATES.map((each) => h("option", { value: each }, each))));
  return [chosen, ...FIELDS.map(([name, label, hint]) => h("label", { class: "field" }, h("span", null, label), h("input", {
    name, id: `${id}-${name}`, type: "text", placeholder: hint, autocomplete: "off", autocapitalize: "none", spellcheck: "false",
    list: name === "connection" ? "known-connections" : null,
  })))];
}

/** What was filled in. */
export function values(form) {
  const found = {};
  for (const [name, value] of new FormData(form)) if (String(value).trim() !== "") found[name] = String(value).trim();
  return found;
}

/** Fills a form in. */
export function fill(form, wanted) {
  for (const element of form.elements) if (element.name) element.value = wanted[element.name] ?? "";
}

/** What a filter means, in words. */
export function words(filter) {
  const parts = Object.entries(filter).map(([name, value]) => `${name} ${value}`);
  return parts.length === 0 ? "all" : parts.join(", ");
}

/** Marks the field that the service has found wrong. */
export function mark(form, field) {
  for (const element of form.elements) {
    if (!element.name) continue;
    const is = field !== null && (field === element.name || field === `filter.${element.name}`);
    if (is) element.setAttribute("aria-invalid", "true");
    else element.removeAttribute("aria-invalid");
  }
}
