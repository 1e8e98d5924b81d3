/* Line charts of the last minutes: SVG, values by pointer and arrow keys, text for screen readers, and a table. */

import { clock } from "./elements.js";
import { h } from "../shared/dom.js";

const [WIDTH, HEIGHT] = [600, 120]; // of the view box; the drawing is stretched to its container
const GAP = 20_000; // milliseconds; the line is interrupted between points further apart
const MINUTE = 60_000;

/**
 * A chart of `lines` ({key, name}) over `span` milliseconds. `format` returns the text of a value; `least` is the
 * minimum top of the scale. `show(points, now)` draws points, each with `at` and a value (or null) by key.
 */
export class Chart {
  #points = [];
  #now = 0;
  #top = 1;
  #chosen = null; // the time selected by pointer or keys

  constructor({ title, note, lines, format, span, least = 1 }) {
    this.title = title;
    this.defaultNote = note;
    this.lines = lines;
    this.format = format;
    this.span = span;
    this.least = least;
    this.paths = lines.map((_, nth) => h("path", { class: `line line-${nth + 1}` }));
    this.rule = h("line", { class: "rule", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.scale = [h("span"), h("span"), h("span", {}, "0")];
    this.values = lines.map(() => h("b"));
    this.peaks = lines.map(() => h("span", { class: "faint" }));
    this.note = h("span", { class: "faint" }, note);
    this.spoken = h("p", { class: "unseen", "aria-live": "polite" });
    this.table = h("div", { class: "scroll", role: "region", "aria-label": `${title}, as a table`, tabindex: "0" });
    this.details = h("details", { ontoggle: () => this.#tabulate() }, h("summary", {}, "As a table"), this.table);
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("h3", {}, title), this.note, this.spoken),
      this.#legend(), this.#plot(), this.details);
  }

  show(points, now) {
    [this.#points, this.#now] = [points, now];
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
    const drawing = h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      [0, 0.5, 1].map((part) => h("line", { class: "grid", x1: 0, x2: WIDTH, y1: part * HEIGHT, y2: part * HEIGHT })),
      this.paths, this.rule);
    const minutes = this.span / MINUTE;
    return h("div", { class: "plot" },
      h("div", { class: "scale", "aria-hidden": "true" }, this.scale),
      h("div", {
        class: "drawing",
        tabindex: "0",
        role: "group",
        "aria-label": `${this.title}: the last ${minutes} minutes; use the left and right arrow keys to read values`,
        onpointermove: ({ offsetX, currentTarget }) => this.#choose(this.#now - this.span * (1 - offsetX / currentTarget.clientWidth)),
        onpointerleave: () => this.#choose(null),
        onblur: () => this.#choose(null),
        onkeydown: (event) => this.#step(event),
      }, drawing),
      h("div", { class: "times", "aria-hidden": "true" },
        [minutes, minutes / 1.5, minutes / 3].map((ago) => h("span", {}, `${ago} min ago`)), h("span", {}, "now")));
  }

  #x(at) {
    return WIDTH * (1 - (this.#now - at) / this.span);
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
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.#choose(null);
    if (!way || !this.#points.length) return;
    event.preventDefault();
    const at = this.#chosen === null ? this.#points.length : this.#points.indexOf(this.#nearest());
    const point = this.#points[Math.min(Math.max(at + way, 0), this.#points.length - 1)];
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

  /** Fill the table while it is open: the last point of each minute, newest first. */
  #tabulate() {
    if (!this.details.open) return;
    const minutes = new Map(this.#points.map((point) => [Math.floor(point.at / MINUTE), point]));
    const row = (point) => h("tr", {}, h("th", { scope: "row" }, clock(point.at)),
      this.lines.map(({ key }) => h("td", {}, this.#text(point[key]))));
    this.table.replaceChildren(h("table", {},
      h("thead", {}, h("tr", {}, ["UTC", ...this.lines.map(({ name }) => name)].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, [...minutes.values()].reverse().map(row))));
  }
}

/** Return the next round number whose half is round, too. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value * (1 - 1e-9));
}
