/* Line charts of the last minutes or hours: SVG, values by pointer and keys, text for screen readers, and a table. */

import { clock } from "./elements.js";
import { h } from "../shared/dom.js";

const [WIDTH, HEIGHT] = [600, 120]; // of the view box; the drawing is stretched to its container
const GAP = 20_000; // milliseconds; the line is interrupted between points further apart
const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const MAX_ROWS = 96; // of the table
const PAGES = 12; // into which Page Up and Page Down divide the chart

/**
 * A chart of `lines` ({key, name}). `format` returns the text of a value; `least` is the minimum top of the scale.
 * `show(points, now, span)` draws the points of `span` milliseconds, each with `at` and a value (or null) by key.
 */
export class Chart {
  #points = [];
  #now = 0;
  #span = 0;
  #top = 1;
  #chosen = null; // the time selected by pointer or keys

  constructor({ title, note, lines, format, least = 1 }) {
    this.title = title;
    this.defaultNote = note;
    this.lines = lines;
    this.format = format;
    this.least = least;
    this.paths = lines.map((_, nth) => h("path", { class: `line line-${nth + 1}` }));
    this.rule = h("line", { class: "rule", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.scale = [h("span"), h("span"), h("span", {}, "0")];
    this.values = lines.map(() => h("b"));
    this.peaks = lines.map(() => h("span", { class: "faint" }));
    this.note = h("span", { class: "faint" }, note);
    this.spoken = h("p", { class: "unseen", "aria-live": "polite" });
    this.table = h("div", { class: "scroll", role: "region", "aria-label": `${title}, as a table`, tabindex: "0" });
    this.summary = h("summary");
    this.details = h("details", { ontoggle: () => this.#tabulate() }, this.summary, this.table);
    this.times = h("div", { class: "times", "aria-hidden": "true" });
    this.drawing = this.#draw();
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("h3", {}, title), this.note, this.spoken),
      this.#legend(), this.#plot(), this.details);
  }

  show(points, now, span) {
    [this.#points, this.#now] = [points, now];
    if (span !== this.#span) this.#stretch(span);
    const values = this.lines.flatMap(({ key }) => points.map((point) => point[key] ?? 0));
    this.#top = roundUp(Math.max(this.least, ...values));
    this.scale[0].textContent = this.format(this.#top);
    this.scale[1].textContent = this.format(this.#top / 2);
    this.lines.forEach(({ key }, nth) => {
      const known = points.map((point) => point[key]).filter((value) => value != null);
      this.paths[nth].setAttribute("d", this.#path(key));
      this.peaks[nth].textContent = known.length ? `max ${this.format(Math.max(...known))}` : "";
    });
    this.#read();
    this.#tabulate();
  }

  #legend() {
    return h("ul", { class: "legend" }, this.lines.map(({ name }, nth) => h("li", {},
      h("svg", { class: "key", viewBox: "0 0 24 8", "aria-hidden": "true" },
        h("path", { class: `line line-${nth + 1}`, d: "M0 4H24" })),
      `${name} `, this.values[nth], " ", this.peaks[nth])));
  }

  #plot() {
    return h("div", { class: "plot" }, h("div", { class: "scale", "aria-hidden": "true" }, this.scale), this.drawing, this.times);
  }

  #draw() {
    const svg = h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      [0, 0.5, 1].map((part) => h("line", { class: "grid", x1: 0, x2: WIDTH, y1: part * HEIGHT, y2: part * HEIGHT })),
      this.paths, this.rule);
    return h("div", {
      class: "drawing",
      tabindex: "0",
      role: "group",
      onpointermove: ({ offsetX, currentTarget }) => this.#choose(this.#now - this.#span * (1 - offsetX / currentTarget.clientWidth)),
      onpointerleave: () => this.#choose(null),
      onblur: () => this.#choose(null),
      onkeydown: (event) => this.#step(event),
    }, svg);
  }

  /** Show another span of time. */
  #stretch(span) {
    this.#span = span;
    this.#chosen = null;
    const [size, unit] = span > HOUR ? [HOUR, "h"] : [MINUTE, "min"];
    this.times.replaceChildren(...[1, 1.5, 3].map((part) => h("span", {}, `${Math.round(span / size / part)} ${unit} ago`)), h("span", {}, "now"));
    this.drawing.setAttribute("aria-label",
      `${this.title}: ${spanName(span)}; use the left and right arrow keys, Page Up, Page Down, Home and End to read values`);
    this.summary.textContent = this.#rowSpan > MINUTE ? `As a table: the highest values of each ${this.#rowSpan / MINUTE} minutes` : "As a table";
  }

  /** The milliseconds of a row of the table. */
  get #rowSpan() {
    return Math.max(MINUTE, this.#span / MAX_ROWS);
  }

  #x(at) {
    return WIDTH * (1 - (this.#now - at) / this.#span);
  }

  #path(key) {
    let [path, before] = ["", { at: -Infinity, grain: 0 }];
    for (const point of this.#points) {
      const value = point[key];
      if (value == null) continue;
      const place = `${this.#x(point.at).toFixed(1)} ${(HEIGHT * (1 - value / this.#top)).toFixed(1)}`;
      path += point.at - before.at > Math.max(GAP, 1.5 * Math.max(point.grain ?? 0, before.grain ?? 0)) ? `M${place}h0.01` : `L${place}`; // a dot for a single point
      before = point;
    }
    return path;
  }

  #text(value) {
    return value == null ? "–" : this.format(value);
  }

  #step(event) {
    if (event.key === "Escape") this.#choose(null);
    const last = this.#points.length - 1;
    const page = this.#span / PAGES;
    const [from, at] = this.#chosen === null ? [last + 1, this.#now] : [this.#points.indexOf(this.#nearest()), this.#chosen];
    const to = {
      ArrowLeft: () => from - 1,
      ArrowRight: () => from + 1,
      PageUp: () => this.#points.findLastIndex((point) => point.at <= at - page),
      PageDown: () => Math.max(from + 1, this.#points.findLastIndex((point) => point.at <= at + page)),
      Home: () => 0,
      End: () => last,
    }[event.key];
    if (!to || last < 0) return;
    event.preventDefault();
    const point = this.#points[Math.min(Math.max(to(), 0), last)];
    this.#choose(point.at);
    const values = this.lines.map(({ key, name }) => `${name} ${this.#text(point[key])}`);
    this.spoken.textContent = `${clock(point.at)} UTC: ${values.join(", ")}`;
  }

  #nearest() {
    const distance = (point) => Math.abs(point.at - this.#chosen);
    return this.#points.reduce((best, point) => (distance(point) < distance(best) ? point : best), this.#points[0]);
  }

  #choose(moment) {
    this.#chosen = moment;
    this.#read();
  }

  /** Show the values of the selected time, or else the latest. */
  #read() {
    const isChosen = this.#chosen !== null && this.#points.length > 0;
    const point = isChosen ? this.#nearest() : this.#points.at(-1);
    this.lines.forEach(({ key }, nth) => (this.values[nth].textContent = this.#text(point?.[key])));
    this.note.textContent = isChosen ? `at ${clock(point.at)} UTC` : this.defaultNote;
    this.rule.setAttribute("visibility", isChosen ? "visible" : "hidden");
    for (const end of ["x1", "x2"]) this.rule.setAttribute(end, point ? this.#x(point.at) : 0);
  }

  /** Fill the table while it is open, newest first: the last point of each minute, or the highest values of each row. */
  #tabulate() {
    if (!this.details.open) return;
    const rows = Map.groupBy(this.#points, ({ at }) => Math.ceil(at / this.#rowSpan));
    const row = (points) => h("tr", {}, h("th", { scope: "row" }, clock(points.at(-1).at)),
      this.lines.map(({ key }) => h("td", {}, this.#text(this.#rowSpan > MINUTE ? highest(points, key) : points.at(-1)[key]))));
    this.table.replaceChildren(h("table", {},
      h("thead", {}, h("tr", {}, ["UTC", ...this.lines.map(({ name }) => name)].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, [...rows.values()].reverse().map(row))));
  }
}

/** Return the name of a span of time. */
export function spanName(span) {
  if (span > HOUR) return `the last ${span / HOUR} hours`;
  return span === HOUR ? "the last hour" : `the last ${span / MINUTE} minutes`;
}

function highest(points, key) {
  return points.reduce((most, point) => (point[key] > (most ?? -Infinity) ? point[key] : most), null);
}

/** Return the next round number whose half is round, too. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value * (1 - 1e-9));
}
