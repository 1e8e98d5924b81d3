import assert from "node:assert/strict";
import { test } from "node:test";
import { Measures, quantile } from "../console/measures.js";

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

test("the history is before the first measurement of one process, and replaces minutes of several", () => {
  const measures = new Measures();
  const opened = Date.UTC(2030, 0, 1, 12, 0, 30);
  for (let nth = 0; nth <= 24; nth += 1) measures.add("tocsin_jobs_due{lane=\"direct\"} 0.0", opened + nth * 5_000);
  const one = [minute("2030-01-01 11:40:00", 1, 9), minute("2030-01-01 11:58:00", 1, 7), minute("2030-01-01 12:00:00", 1, 8)];
  measures.remember(one);
  assert.equal(measures.points.length, 26, "one minute of the history, and all measurements");
  assert.equal(measures.points[0].at, Date.UTC(2030, 0, 1, 11, 59));
  assert.deepEqual([measures.points[0].events, measures.points[0]["fcm errors"], measures.points[0]["inbox p95"]], [7, 2, 0.2]);
  measures.remember(one.map((each) => ({ ...each, processes: 2 })));
  assert.deepEqual(measures.points.slice(0, 2).map(({ events }) => events), [7, 8]);
  assert.ok(measures.points.slice(2).every(({ at }) => at > Date.UTC(2030, 0, 1, 12, 1)));
  assert.equal(measures.latest, measures.points.at(-1));
});
