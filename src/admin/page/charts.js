// Lines over time, drawn as SVG. Where the service was not there the line is broken; where reports did not flow the ground is tinted.

import { h, say, show, svg } from "./dom.js";
import { clock, minute, short } from "./format.js";

const HEIGHT = 168;
const EDGE = { top: 8, right: 10, bottom: 20, left: 44 };
/** So many marks on the upright axis, about. */
const MARKS = 4;

/** One chart: `series` are `{ key, label }`, drawn in this order and styled by their place. */
export class Chart {
  constructor(host, { title, series, format }) {
    Object.assign(this, { host, title, series, format, points: [], span: 900_000, cursor: null });
    this.readout = h("p", { class: "readout" });
    this.place = h("div", { class: "plot", tabindex: "0", role: "img", "aria-label": title });
    const legend = h("ul", { class: "legend" }, series.map((each, at) => h("li", { class: `line-${at}` }, each.label)));
    host.append(h("div", { class: "chart-head" }, h("h3", null, title), series.length > 1 && legend, this.readout), this.place);
    this.place.addEventListener("pointermove", (event) => this.pointAt(event.clientX));
    this.place.addEventListener("pointerleave", () => this.leave());
    this.place.addEventListener("blur", () => this.leave());
    this.place.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.place);
  }

  /** Shows these points: the last `span` milliseconds before the newest. */
  update(points, span) {
    Object.assign(this, { points, span });
    this.draw();
  }

  get shown() {
    const to = this.points.at(-1)?.at ?? 0;
    return this.points.filter((point) => point.at >= to - this.span);
  }

  pointAt(x) {
    const box = this.place.getBoundingClientRect();
    const part = (x - box.left - EDGE.left) / Math.max(1, box.width - EDGE.left - EDGE.right);
    const to = this.points.at(-1)?.at ?? 0;
    const wanted = to - this.span * (1 - part);
    const nearest = this.shown.reduce((best, point) => (best === null || Math.abs(point.at - wanted) < Math.abs(best.at - wanted) ? point : best), null);
    this.cursor = nearest?.at ?? null;
    this.draw();
  }

  key(event) {
    const shown = this.shown;
    if (shown.length === 0 || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") return this.leave();
    const at = shown.findIndex((point) => point.at === this.cursor);
    const from = at < 0 ? shown.length - 1 : at;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: shown.length - 1 }[event.key];
    this.cursor = shown[Math.min(Math.max(to, 0), shown.length - 1)].at;
    this.draw();
  }

  leave() {
    this.cursor = null;
    this.draw();
  }

  draw() {
    const width = Math.floor(this.place.clientWidth);
    if (width < 80) return;
    const shown = this.shown;
    const to = this.points.at(-1)?.at ?? Date.now();
    const highest = Math.max(0, ...shown.flatMap((point) => this.series.map((each) => point[each.key] ?? 0)));
    const [step, top] = scale(highest);
    const x = (at) => EDGE.left + ((at - to + this.span) / this.span) * (width - EDGE.left - EDGE.right);
    const y = (value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);
    const parts = [grounds(shown, x), ...axes({ step, top, to, span: this.span, width, x, y })];
    this.series.forEach((each, at) => {
      for (const run of runs(shown, each.key)) {
        const path = run.map((point, index) => `${index === 0 ? "M" : "L"}${x(point.at).toFixed(1)} ${y(point[each.key]).toFixed(1)}`).join("");
        const ends = [x(run.at(-1).at), x(run[0].at)].map((end) => `L${end.toFixed(1)} ${y(0)}`).join("");
        if (at === 0) parts.push(svg("path", { class: "area-0", d: `${path}${ends}Z` }));
        parts.push(svg("path", { class: `line-${at}`, d: path }));
      }
    });
    const point = shown.find((each) => each.at === this.cursor);
    if (point) {
      parts.push(svg("line", { class: "cursor", x1: x(point.at), x2: x(point.at), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      this.series.forEach((each, at) => {
        if (point[each.key] !== null) parts.push(svg("circle", { class: `dot-${at}`, cx: x(point.at), cy: y(point[each.key]), r: 3 }));
      });
    }
    // It is redrawn as a whole: that is some hundred points.
    this.place.replaceChildren(svg("svg", { width, height: HEIGHT, "aria-hidden": "true" }, parts));
    this.tell(point ?? shown.at(-1), point !== undefined);
  }

  /** The figures in words, too. */
  tell(point, isChosen) {
    if (!point) return say(this.readout, "nothing yet");
    const values = this.series.map((each) => `${this.series.length > 1 ? `${each.label} ` : ""}${this.format(point[each.key])}`);
    const flow = { partly: " · partly flowing", not_flowing: " · not flowing" }[point.flow] ?? "";
    const text = `${isChosen ? clock(point.at) : "now"}: ${values.join(" · ")}${flow}`;
    say(this.readout, text);
    this.place.setAttribute("aria-label", `${this.title}, ${text}. The arrow keys go back and forth.`);
  }
}

/** What stands still together: the parts between gaps where there is a value. */
function runs(points, key) {
  const found = [];
  let run = [];
  for (const point of points) {
    if (point.isGap || point[key] === null) {
      if (run.length > 0) found.push(run);
      run = [];
    }
    if (point[key] !== null) run.push(point);
  }
  if (run.length > 0) found.push(run);
  return found.filter((each) => each.length > 1);
}

/** When reports did not flow, and when nobody was there to know. */
function grounds(points, x) {
  const found = [];
  points.forEach((point, at) => {
    const before = points[at - 1];
    if (!before) return;
    const kind = point.isGap ? "unknown" : point.flow === "flowing" ? null : point.flow;
    const [left, right] = [x(before.at), x(point.at)];
    const last = found.at(-1);
    if (kind === null) return;
    if (last && last.kind === kind && last.right === left) last.right = right;
    else found.push({ kind, left, right });
  });
  return svg("g", null, found.map(({ kind, left, right }) => svg("rect", { class: `ground ${kind}`, x: left, y: EDGE.top, width: Math.max(right - left, 1), height: HEIGHT - EDGE.top - EDGE.bottom })));
}

function axes({ step, top, to, span, width, x, y }) {
  const parts = [];
  for (let value = 0; value <= top * 1.001; value += step) {
    parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }));
    parts.push(svg("text", { class: "tick", x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  const every = [60_000, 120_000, 300_000, 600_000, 900_000].find((each) => (each / span) * (width - EDGE.left) > 64) ?? 1_200_000;
  for (let at = Math.ceil((to - span) / every) * every; at <= to; at += every) {
    // The last letters must not leave the picture.
    const anchor = x(at) > width - 26 ? "end" : "middle";
    parts.push(svg("text", { class: "tick", x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, minute(at)));
  }
  return parts;
}

/** The distance of marks, and the highest: round numbers, and no flat line at the top. */
function scale(highest) {
  const rough = Math.max(highest, 1) / MARKS;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].map((each) => each * size).find((each) => each >= rough), highest > 2 ? 1 : 0.25);
  return [step, Math.max(Math.ceil(highest / step), 1) * step];
}

/** The choice of how far back it goes; calls back with milliseconds. */
export function spans(host, chosen, act) {
  const all = [["5 min", 300_000], ["15 min", 900_000], ["1 h", 3_600_000]];
  const draw = (now) => show(host, all.map(([label, span]) => h("button", { type: "button", "data-span": span, "aria-pressed": String(span === now) }, label)));
  host.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    draw(Number(button.dataset.span));
    act(Number(button.dataset.span));
  });
  draw(chosen);
}
