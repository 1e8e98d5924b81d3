import assert from "node:assert/strict";
import { test } from "node:test";
import { Measures, quantile, SPANS } from "../console/measures.js";

const metrics = ({ process, events, pushes, errors }) => `# HELP tocsin_inbox_seconds Time
process_start_time_seconds ${process}
tocsin_inbox_seconds_bucket{le="0.1"} ${events}
tocsin_inbox_seconds_bucket{le="+Inf"} ${events}
tocsin_inbox_seconds_count ${events}
tocsin_pushes_total{lane="apns/default",state="delivered"} ${pushes}
tocsin_push_answers_total{lane="apns/default",outcome="delivered",reason=""} ${pushes}
tocsin_push_answers_total{lane="apns/default",outcome="later",reason="x"} ${errors}
tocsin_jobs_due{lane="direct"} 3.0
tocsin_pushes_due{lane="a\\"b} 1\\\\n"} 2.0
tocsin_pushes_due{lane="apns/default"} 5.0
tocsin_lane_stopped{lane="apns/default"} 1.0
`;

test("quantile is interpolated within its bucket and unknown without samples", () => {
  const buckets = new Map([[1, 2], [2, 4], [Infinity, 8]]);
  assert.equal(quantile(0.5, new Map()), null);
  assert.deepEqual([1 / 8, 3 / 8, 0.99].map((part) => quantile(part, buckets)), [0.5, 1.5, 2]);
});

test("rates and percentiles are computed per process", () => {
  const measures = new Measures();
  const [first, second, third, fourth] = [
    { process: 1, events: 10, pushes: 5, errors: 1 },
    { process: 1, events: 20, pushes: 10, errors: 5 },
    { process: 2, events: 1e3, pushes: 0, errors: 0 },
    { process: 2, events: 1050, pushes: 0, errors: 0 },
  ].map((counts, nth) => measures.add(metrics(counts), 1e12 + 5_000 * nth));
  assert.deepEqual([first.events, first["inbox p50"], first.direct, first.waiting], [null, null, 3, 7]);
  assert.deepEqual([second.events, second.pushes, second["apns errors"]], [2, 1, 4]);
  assert.ok(Math.abs(second["inbox p50"] - 0.05) < 1e-9);
  assert.deepEqual([third.events, fourth.events], [2, 12]);
  assert.equal(fourth["apns errors"], 4);
  assert.deepEqual(fourth.stopped, ["apns/default"]);
  assert.equal(measures.processes, 2);
});

test("requests that exceeded a rate limit are counted with the names of their limits", () => {
  const measures = new Measures();
  const [, now] = [[4, 0], [9, 2]].map(([users, devices], nth) => measures.add(`process_start_time_seconds 1
tocsin_rate_limited_total{limit="user-requests"} ${users}
tocsin_rate_limited_total{limit="devices"} ${devices}
tocsin_rate_limited_total{limit="custom-calls"} 7
`, 1e12 + 5_000 * nth));
  assert.deepEqual([now["rate limited"], now.limits], [7, ["devices", "user-requests"]]);
});

const minute = (at, processes, events) => ({
  at, processes, events, pushes: 0, requests: 0, api_errors: 1, rate_limited: 0, push_errors: { fcm: 2 },
  jobs_due: { direct: 1, bulk: 2 }, oldest_job: { direct: 3, bulk: 4 }, pushes_due: 5,
  inbox_seconds: { p50: 0.1, p95: 0.2, p99: null }, push_seconds: { p50: null, p95: null, p99: null },
});

const MINUTE = 60_000;
const [, HOUR, DAY] = SPANS;

test("a longer span shows whole minutes of the history, then measurements", () => {
  const measures = new Measures();
  const opened = Date.UTC(2030, 0, 1, 12, 0, 30);
  for (let nth = 0; nth <= 24; nth += 1) measures.add("tocsin_jobs_due{lane=\"direct\"} 0.0", opened + nth * 5_000);
  const times = ["2029-12-31 12:30:00", "2030-01-01 11:10:00", "2030-01-01 12:00:00"];
  measures.remember(times.map((at, nth) => minute(at, 1, nth)), 1440, opened);
  assert.deepEqual(measures.points(DAY).slice(0, 3).map(({ events }) => events), [0, 1, 2]);
  assert.deepEqual(measures.points(HOUR).slice(0, 2).map(({ events }) => events), [1, 2]);
  assert.ok(measures.points(HOUR).slice(2).every(({ at }) => at > Date.UTC(2030, 0, 1, 12, 1)));
  assert.equal(measures.points(SPANS[0]).length, 25, "no minute of the history is before the measurements of 15 minutes");
});

test("only the minutes of the history that are missing are requested, and kept for a day", () => {
  const measures = new Measures();
  const noon = Date.UTC(2030, 0, 1, 12);
  const at = (minutes) => noon + minutes * MINUTE;
  const text = (minutes) => new Date(at(minutes)).toISOString().slice(0, 19).replace("T", " ");
  const received = (from, to) => Array.from({ length: to - from }, (_, nth) => minute(text(from + nth), 1, from + nth));
  assert.equal(measures.missing(HOUR, noon), 60);
  measures.remember(received(-60, 0), 60, noon);
  assert.equal(measures.missing(HOUR, at(1)), 3, "the last minutes again: other processes may have written since");
  assert.equal(measures.missing(DAY, at(1)), 1440);
  measures.remember(received(-1439, 1), 1440, at(1));
  measures.remember(received(-1, 2), 3, at(2));
  assert.equal(measures.missing(DAY, at(2)), 2);
  assert.equal(measures.missing(DAY, at(90)), 90);
  measures.add("", at(2) + 5_000);
  const events = measures.points(DAY).map((point) => point.events).slice(0, -1);
  assert.deepEqual(events, Array.from({ length: 1440 }, (_, nth) => nth - 1438));
  measures.remember(received(86, 90), 4, at(90));
  measures.add("", at(90) + 5_000);
  assert.deepEqual(measures.points(DAY).map((point) => point.events).slice(0, -1), [86, 87, 88, 89], "a gap ends what is known");
});

test("the history is before the first measurement of one process, and replaces minutes of several", () => {
  const measures = new Measures();
  const opened = Date.UTC(2030, 0, 1, 12, 0, 30);
  for (let nth = 0; nth <= 24; nth += 1) measures.add("tocsin_jobs_due{lane=\"direct\"} 0.0", opened + nth * 5_000);
  const one = [minute("2030-01-01 11:40:00", 1, 9), minute("2030-01-01 11:58:00", 1, 7), minute("2030-01-01 12:00:00", 1, 8)];
  measures.remember(one, 15, opened);
  assert.equal(measures.points(SPANS[0]).length, 26, "one minute of the history, and all measurements");
  assert.equal(measures.points(SPANS[0])[0].at, Date.UTC(2030, 0, 1, 11, 59));
  assert.deepEqual([measures.points(SPANS[0])[0].events, measures.points(SPANS[0])[0]["fcm errors"], measures.points(SPANS[0])[0]["inbox p95"]], [7, 2, 0.2]);
  measures.remember(one.map((each) => ({ ...each, processes: 2 })), 15, opened);
  assert.deepEqual(measures.points(SPANS[0]).slice(0, 2).map(({ events }) => events), [7, 8]);
  assert.ok(measures.points(SPANS[0]).slice(2).every(({ at }) => at > Date.UTC(2030, 0, 1, 12, 1)));
  assert.equal(measures.latest, measures.points(SPANS[0]).at(-1));
});

test("rates do not depend on a clock that is set between two measurements", () => {
  const measures = new Measures();
  const counted = (count) => `process_start_time_seconds 1\ntocsin_inbox_seconds_count ${count}.0`;
  measures.add(counted(0), 1e12, 1_000);
  assert.equal(measures.add(counted(10), 1e12, 6_000).events, 2);
  assert.equal(measures.add(counted(20), 1e12 - 3_600_000, 11_000).events, 2);
});
