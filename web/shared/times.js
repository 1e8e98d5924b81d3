/** Times of the API, and their display. */

/** Parse a time of the service: UTC, such as 2026-11-24 16:11:25. */
export const timeOf = (text) => new Date(`${text.replace(" ", "T").replace(/Z?$/, "Z")}`);

/** Format milliseconds as the service does. */
export const utc = (at = Date.now()) => new Date(at).toISOString().slice(0, 19).replace("T", " ");

/** How long to wait after this many failures, in ms: 1, 2, 4 ... 30 seconds, less up to half of it. */
export const backoff = (failures) => Math.min(30_000, 1_000 * 2 ** failures) * (0.5 + Math.random() / 2);

export const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Times {
  #locale;
  #relative;
  #days;
  #formats = {};

  constructor(locale) {
    this.#locale = locale;
    this.#relative = new Intl.RelativeTimeFormat(locale, { numeric: "auto", style: "short" });
    this.#days = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
  }

  /** Return a key for the local day. */
  day(at) { return `${at.getFullYear()}-${at.getMonth() + 1}-${at.getDate()}`; }

  heading(day) {
    const [year, month, date] = day.split("-").map(Number);
    const at = new Date(year, month - 1, date);
    const today = new Date();
    const ago = Math.round((+new Date(today.getFullYear(), today.getMonth(), today.getDate()) - +at) / 86_400_000);
    const text = ago === 0 || ago === 1 ? this.#days.format(-ago, "day")
      : this.#format(at, { weekday: "long", day: "numeric", month: "long", ...(year === today.getFullYear() ? {} : { year: "numeric" }) });
    return text.charAt(0).toLocaleUpperCase(this.#locale) + text.slice(1);
  }

  /** Return the age on the same day; for other days, which have a heading, the time of day. */
  short(at) {
    const seconds = Math.max(0, (Date.now() - at) / 1_000);
    if (this.day(at) !== this.day(new Date())) return this.clock(at);
    if (seconds < 60) return this.#relative.format(0, "second");
    if (seconds < 3_600) return this.#relative.format(-Math.floor(seconds / 60), "minute");
    return this.#relative.format(-Math.floor(seconds / 3_600), "hour");
  }

  full(at) { return this.#format(at, { dateStyle: "full", timeStyle: "short" }); }

  clock(at) { return this.#format(at, { hour: "numeric", minute: "2-digit" }); }

  moment(at) { return this.#format(at, { weekday: "short", hour: "numeric", minute: "2-digit" }); }

  /** Return the narrow and the full name of a day of the week; 0 is Monday. */
  weekday(i) {
    const at = new Date(2024, 0, 1 + i);
    return [this.#format(at, { weekday: "narrow" }), this.#format(at, { weekday: "long" })];
  }

  #format(at, options) {
    const key = JSON.stringify(options);
    this.#formats[key] ??= new Intl.DateTimeFormat(this.#locale, options);
    return this.#formats[key].format(at);
  }
}
