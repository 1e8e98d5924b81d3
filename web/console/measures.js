/* What /metrics says, over time: rates and percentiles from counters and histograms, for the last 15 minutes. */

export const KEPT = 15 * 60_000;

const WINDOW = 60_000; // percentiles and errors are those of the last minute: five seconds hold too few
const PROVIDERS = ["apns", "fcm", "web"];
const SERIES = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([-+\w.]+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Return what the text holds: a list of series, each with `name`, `labels`, `value` and the `key` that names it. */
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

/** Return the value below which a part of what was counted lies: `buckets` maps upper bounds to counts up to them. */
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

/** Collects what processes tell, and makes of it `points`: one each time, with a value for each line of the charts. */
export class Measures {
  points = [];
  #told = new Map(); // by process: what it told in the last minute; each counts for itself

  /** Take in one answer of /metrics; `at` is when it came. */
  add(text, at) {
    const series = parse(text);
    const process = series.find((each) => each.name === "process_start_time_seconds")?.value;
    const told = (this.#told.get(process) ?? []).filter((each) => at - each.at <= WINDOW + 4_000);
    told.push({ at, series, values: new Map(series.map((each) => [each.key, each.value])) });
    this.#told.set(process, told);
    for (const [other, its] of this.#told) if (at - its.at(-1).at > WINDOW) this.#told.delete(other);
    this.points = [...this.points.filter((point) => at - point.at <= KEPT), this.#point(at, series)];
    return this.points.at(-1);
  }

  /** How many processes told something in the last minute. */
  get processes() {
    return this.#told.size;
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
      ...this.#latency("inbox", "tocsin_inbox_seconds"),
      ...this.#latency("push", "tocsin_push_seconds"),
      ...Object.fromEntries(PROVIDERS.map((provider) => [`${provider} errors`, this.#errors(provider)])),
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

  #errors(provider) {
    return this.#grown("tocsin_push_answers_total", ({ lane, outcome }) =>
      lane.split("/")[0] === provider && outcome !== "delivered").count;
  }

  /** The series of all processes, as each told them last. */
  #last() {
    return [...this.#told.values()].flatMap((told) => told.at(-1).series);
  }

  /** How much counters grew: `rate` a second since the time before, `count` in the last minute; null where unknown. */
  #grown(name, matches = () => true) {
    let [rate, count] = [null, null];
    for (const told of this.#told.values()) {
      if (told.length < 2) continue;
      const [first, before, last] = [told[0], told.at(-2), told.at(-1)];
      for (const { name: other, labels, key, value: now } of last.series) {
        if (other !== name || !matches(labels)) continue;
        count += now - (first.values.get(key) ?? 0);
        rate += (now - (before.values.get(key) ?? 0)) / ((last.at - before.at) / 1000);
      }
      [rate, count] = [rate ?? 0, count ?? 0]; // a counter that nothing has touched yet is not told at all
    }
    return { rate, count };
  }
}

function by(series, name, label) {
  return Object.fromEntries(series.filter((each) => each.name === name).map((each) => [each.labels[label], each.value]));
}

function total(values) {
  return Object.values(values).reduce((sum, each) => sum + each, 0);
}
