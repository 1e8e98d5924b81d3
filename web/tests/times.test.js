import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Times, timeOf, utc } from "../shared/times.js";

process.env.TZ = "Europe/Copenhagen";
const NOW = Date.UTC(2026, 10, 24, 16, 0, 0);

beforeEach(() => mock.timers.enable({ apis: ["Date"], now: NOW }));
afterEach(() => mock.timers.reset());

const ago = (seconds) => new Date(NOW - seconds * 1_000);

test("service times are UTC and round-trip", () => {
  assert.equal(timeOf("2026-11-24 16:00:00").getTime(), NOW);
  assert.equal(timeOf("2026-11-24T16:00:00Z").getTime(), NOW);
  assert.equal(utc(NOW), "2026-11-24 16:00:00");
  assert.equal(utc(), "2026-11-24 16:00:00");
});

test("times of today are relative and older ones show the clock time", () => {
  const times = new Times("en-GB");
  const said = [0, 59, 60, 3_599, 3_600, 6 * 3_600, -30].map((seconds) => times.short(ago(seconds)));
  assert.deepEqual(said, ["now", "now", "1 min ago", "59 min ago", "1 hr ago", "6 hr ago", "now"]);
  assert.equal(times.short(ago(86_400)), "17:00");
});

test("day headings use the local time zone", () => {
  const times = new Times("en-GB");
  const heading = (text) => times.heading(times.day(timeOf(text)));
  assert.equal(heading("2026-11-24 16:00:00"), "Today");
  assert.equal(heading("2026-11-23 23:30:00"), "Today"); // 00:30 in Copenhagen
  assert.equal(heading("2026-11-23 22:30:00"), "Yesterday");
  assert.equal(heading("2026-11-20 12:00:00"), "Friday 20 November");
  assert.match(heading("2025-12-31 12:00:00"), /^Wednesday,? 31 December 2025$/);
});

test("yesterday is correct after a daylight saving change", () => {
  mock.timers.setTime(Date.UTC(2026, 9, 26, 10, 0, 0)); // the 25th had 25 hours
  const times = new Times("en-GB");
  assert.equal(times.heading("2026-10-25"), "Yesterday");
  assert.equal(times.heading("2026-10-24"), "Saturday 24 October");
});

test("day headings are translated", () => {
  const times = new Times("da");
  assert.equal(times.heading("2026-11-24"), "I dag");
  assert.equal(times.heading("2026-11-23"), "I går");
  assert.deepEqual(times.weekday(0), ["M", "mandag"]);
});
