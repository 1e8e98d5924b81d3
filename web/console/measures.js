/*
 * The last minutes and hours: rates and percentiles from the counters and histograms of /metrics since the page was
 * opened, at most of 15 minutes, and before that from the history that the service keeps.
 */

import { timeOf } from "../shared/times.js";

const MINUTE = 60_000;
const KEPT = 15 * MINUTE; // of measurements since the page was opened
const OVERLAP = 2; // minutes asked for again, because processes write the last ones at different times

/** The spans of time that can be shown, in milliseconds. */
export const SPANS = [KEPT, 60 * MINUTE, 1440 * MINUTE];

const WINDOW = 60_000; // milliseconds for percentiles and errors: a poll interval has too few samples
const PROVIDERS = ["apns", "fcm", "web"];
const SERIES = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([-+\w.]+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Parse the text format: return a list of series, each with `name`, `labels`, `value` and a unique `key`. */
export function parse(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const [, name, inner, value] = SERIES.exec(line) ?? [];
    if (!name) continue;
    const labels = {};
    for (const [, label, raw] of (inner ?? "").matchAll(LABEL)) {
      labels[label] = raw.replace(/\\(.)/g, (_, mark) => (mark === "n" ? "\n" : mark));
    }
    found.push({ name, labels, value: value === "+Inf" ? Infinity : Number(value), key: `${name}{${inner ?? ""}}` });
  }
  return found;
}

/** Return a quantile; `buckets` maps upper bounds to cumulative counts. Null without samples. */
export function quantile(part, buckets) {
  const bounds = [...buckets.keys()].sort((one, other) => one - other);
  const total = buckets.get(bounds.at(-1)) ?? 0;
  if (!(total > 0)) return null;
  let lower = 0;
  let below = 0;
  for (const bound of bounds) {
    const upTo = buckets.get(bound);
    if (upTo >= part * total) {
      return bound === Infinity ? lower : lower + (bound - lower) * (part * total - below) / (upTo - below);
    }
    [lower, below] = [bound, upTo];
  }
  return lower;
}

/** Collects scrapes, by process, and computes `points`: one per scrape, with a value for each line of the charts. */
export class Measures {
  #live = [];
  #history = []; // a point per minute, of all processes together
  #known = { from: Infinity, to: -Infinity }; // the times of which the history was received
  #scrapes = new Map(); // of the last minute, by process: each process has its own counters

  /** Add a response of /metrics, received at `at`; `elapsed` is a clock that is never set, for rates. */
  add(text, at, elapsed = at) {
    const series = parse(text);
    const process = series.find((each) => each.name === "process_start_time_seconds")?.value;
    const scrapes = (this.#scrapes.get(process) ?? []).filter((each) => elapsed - each.elapsed <= WINDOW + 4_000);
    scrapes.push({ elapsed, series, values: new Map(series.map((each) => [each.key, each.value])) });
    this.#scrapes.set(process, scrapes);
    for (const [other, its] of this.#scrapes) if (elapsed - its.at(-1).elapsed > WINDOW) this.#scrapes.delete(other);
    this.#live = [...this.#live.filter((point) => at - point.at <= KEPT), this.#point(at, series)];
    return this.latest;
  }

  /** Return how many minutes of history to request at `at`, so that those of `span` are known. */
  missing(span, at) {
    const all = span / MINUTE;
    if (this.#known.from > at - span) return all;
    return Math.min(all, Math.ceil((at - this.#known.to) / MINUTE) + OVERLAP);
  }

  /** Keep a response of /operations/history with that many minutes, received at `at`. */
  remember(history, minutes, at) {
    const from = at - minutes * MINUTE;
    const points = history.map(pointOf);
    const first = points[0]?.at ?? Infinity;
    const before = from <= this.#known.to ? this.#history.filter((point) => point.at < first && at - point.at <= SPANS.at(-1)) : [];
    this.#history = [...before, ...points];
    this.#known = { from: before.length ? Math.min(from, this.#known.from) : from, to: at };
  }

  /** The latest measurement since the page was opened. */
  get latest() {
    return this.#live.at(-1);
  }

  /**
   * Return the points of the last `span` milliseconds: from the history what was before the page was opened, and all
   * complete minutes if the span is longer than the measurements are kept, or if there are several processes, of which
   * this page may not see all.
   */
  points(span) {
    const [first, now] = [this.#live[0]?.at ?? Infinity, this.latest?.at ?? Infinity];
    const past = this.#history.filter((point) => now - point.at <= span);
    const isWhole = past.length && (span > KEPT || past.some((point) => point.processes > 1));
    if (!isWhole) return [...past.filter((point) => point.at < first), ...this.#live];
    const end = past.at(-1).at;
    return [...past, ...this.#live.filter((point) => point.at > end)];
  }

  /** The number of processes that answered in the last minute. */
  get processes() {
    return this.#scrapes.size;
  }

  #point(at, series) {
    const due = by(series, "tocsin_jobs_due", "lane");
    const oldest = by(series, "tocsin_jobs_oldest_seconds", "lane");
    const stopped = by(series, "tocsin_lane_stopped", "lane");
    return {
      at,
      events: this.#grown("tocsin_inbox_seconds_count").rate,
      pushes: this.#grown("tocsin_pushes_total", ({ state }) => state === "delivered").rate,
      requests: this.#grown("tocsin_http_requests_total").rate,
      direct: due.direct ?? null,
      bulk: due.bulk ?? null,
      waiting: total(by(series, "tocsin_pushes_due", "lane")),
      "oldest direct": oldest.direct ?? 0,
      "oldest bulk": oldest.bulk ?? 0,
      stopped: Object.keys(stopped).filter((lane) => stopped[lane]),
      problems: series.filter(({ name }) => name === "tocsin_problem").map(({ labels }) => labels.reason),
      diskLow: Boolean(gauge(series, "tocsin_disk_low")),
      unarchived: gauge(series, "tocsin_archive_failing") ? gauge(series, "tocsin_archive_waiting") : null,
      ...this.#latency("inbox", "tocsin_inbox_seconds"),
      ...this.#latency("push", "tocsin_push_seconds"),
      ...Object.fromEntries(PROVIDERS.map((provider) => [`${provider} errors`, this.#errors(provider)])),
      ...this.#refused(),
      "api errors": this.#grown("tocsin_http_requests_total", ({ status }) => status >= "500").count,
    };
  }

  #latency(line, name) {
    const bounds = new Set(this.#last().filter((each) => each.name === `${name}_bucket`).map(({ labels }) => labels.le));
    const buckets = new Map([...bounds].map((bound) => [
      bound === "+Inf" ? Infinity : Number(bound),
      this.#grown(`${name}_bucket`, ({ le }) => le === bound).count,
    ]));
    return Object.fromEntries([50, 95, 99].map((part) => [`${line} p${part}`, quantile(part / 100, buckets)]));
  }

  /** The requests that exceeded a rate limit, and the names of the limits. */
  #refused() {
    const counts = by(this.#last(), "tocsin_rate_limited_total", "limit");
    const count = (limit) => this.#grown("tocsin_rate_limited_total", ({ limit: other }) => other === limit).count ?? 0;
    const limits = Object.keys(counts).filter(count).sort();
    return { "rate limited": limits.reduce((sum, limit) => sum + count(limit), 0), limits };
  }

  #errors(provider) {
    return this.#grown("tocsin_push_answers_total", ({ lane, outcome }) =>
      lane.split("/")[0] === provider && outcome !== "delivered").count;
  }

  /** The latest series of all processes. */
  #last() {
    return [...this.#scrapes.values()].flatMap((scrapes) => scrapes.at(-1).series);
  }

  /** Return the growth of counters: `rate` per second since the previous scrape, `count` in the last minute, or null. */
  #grown(name, matches = (_labels) => true) {
    let [rate, count] = [null, null];
    for (const scrapes of this.#scrapes.values()) {
      if (scrapes.length < 2) continue;
      const [first, before, last] = [scrapes[0], scrapes.at(-2), scrapes.at(-1)];
      for (const { name: other, labels, key, value: now } of last.series) {
        if (other !== name || !matches(labels)) continue;
        count += now - (first.values.get(key) ?? 0);
        rate += (now - (before.values.get(key) ?? 0)) / ((last.elapsed - before.elapsed) / 1000);
      }
      [rate, count] = [rate ?? 0, count ?? 0]; // a counter is not listed before its first increment
    }
    return { rate, count };
  }
}

/** Return the point of a minute of the history, at its end. */
function pointOf(minute) {
  const latency = (line, { p50, p95, p99 }) => ({ [`${line} p50`]: p50, [`${line} p95`]: p95, [`${line} p99`]: p99 });
  return {
    at: +timeOf(minute.at) + MINUTE,
    grain: MINUTE,
    processes: minute.processes,
    events: minute.events,
    pushes: minute.pushes,
    requests: minute.requests,
    direct: minute.jobs_due.direct,
    bulk: minute.jobs_due.bulk,
    waiting: minute.pushes_due,
    "oldest direct": minute.oldest_job.direct,
    "oldest bulk": minute.oldest_job.bulk,
    ...latency("inbox", minute.inbox_seconds),
    ...latency("push", minute.push_seconds),
    ...Object.fromEntries(PROVIDERS.map((provider) => [`${provider} errors`, minute.push_errors[provider] ?? 0])),
    "api errors": minute.api_errors,
  };
}

function by(series, name, label) {
  return Object.fromEntries(series.filter((each) => each.name === name).map((each) => [each.labels[label], each.value]));
}

function gauge(series, name) {
  return series.find((each) => each.name === name)?.value ?? 0;
}

function total(values) {
  return Object.values(values).reduce((sum, each) => sum + each, 0);
}
