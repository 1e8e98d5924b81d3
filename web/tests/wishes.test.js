import assert from "node:assert/strict";
import { test } from "node:test";
import { wishes } from "../console/wishes.js";

const kind = (push, web_push, urgent = false) => ({ push, web_push, urgent });
const preferences = (more) => ({ kinds: { note: kind(true, true) }, quiet_hours: [], paused_until: null, time_zone: "Europe/Copenhagen", ...more });

test("a user who gets everything has no restrictions", () => {
  assert.deepEqual(wishes(preferences()), [
    ["Paused", "no"], ["Quiet hours", "none"], ["Not pushed to phones", "none"], ["Not pushed to browsers", "none"], ["Urgent kinds", "none"],
  ]);
});

test("a pause, quiet hours, muted and urgent kinds are listed", () => {
  const found = Object.fromEntries(wishes(preferences({
    kinds: { note: kind(false, true), task: kind(false, false), lead: kind(true, false, true) },
    quiet_hours: [
      { days: ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], from: "20:00", to: "07:00" }, { days: ["sat", "sun"], from: "09:00", to: "12:00" },
    ],
    paused_until: "2026-11-30 08:00:00",
  })));
  assert.equal(found.Paused, "until 2026-11-30 08:00:00 UTC: pushes wait, except of urgent kinds");
  assert.equal(found["Quiet hours"], "every day 20:00–07:00; sat, sun 09:00–12:00 (Europe/Copenhagen)");
  assert.equal(found["Not pushed to phones"], "note, task");
  assert.equal(found["Not pushed to browsers"], "lead, task");
  assert.equal(found["Urgent kinds"], "lead");
});
