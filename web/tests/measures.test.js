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
