import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { Client } from "../inbox/client.js";
import { Inbox } from "../inbox/store.js";
import { json, leave, never, page, pass, refusal, Service, settled, token, unreachable } from "./support.js";

let service;
let opened;

beforeEach(() => {
  page();
  service = new Service();
  opened = [];
});

afterEach(() => {
  for (const { inbox } of opened) inbox.end();
  leave();
});

/** An inbox that is shown, and what it reports; `busy` holds back what arrives. */
async function open({ provider = null, given = token(), load = true } = {}) {
  const [client, reported] = [new Client("https://notify.example", given, provider), { failed: [], settled: [], arrived: 0, kept: 0, busy: false }];
  const inbox = new Inbox(client, {
    changed() {},
    failed: (problem, what) => reported.failed.push([problem.status, what]),
    arrived: (count) => { reported.arrived += count; },
    settled: (ids) => reported.settled.push(...ids),
    kept: () => { reported.kept += 1; },
    busy: () => reported.busy,
  });
  const shown = (tab = "all") => inbox.shown(tab).map(({ id }) => id);
  const made = { inbox, reported, shown };
  opened.push(made);
  inbox.begin();
  if (load) inbox.load("all");
  await pass(1_000);
  return made;
}

test("list is shown and updated as notifications arrive", async () => {
  service.arrive("One", "Two");
  const { inbox, reported, shown } = await open();
  assert.deepEqual([shown(), inbox.unread], [["Two", "One"], 2]);
  service.arrive("Three");
  await settled();
  assert.deepEqual([shown(), inbox.unread, reported.arrived], [["Three", "Two", "One"], 3, 1]);
});

test("failing token callback is retried until the feed is live", async () => {
  service.arrive("One");
  let calls = 0;
  const provider = () => { if ((calls += 1) === 1) throw new TypeError("Failed to fetch"); return token(); };
  const { inbox, reported, shown } = await open({ provider, given: null, load: false });
  assert.deepEqual(reported.failed, [[0, undefined]]);
  await pass(2_000);
  inbox.load("all");
  await pass(1_000);
  assert.deepEqual([shown(), inbox.connection, service.streams], [["One"], "live", 1]);
});

test("signed-out token callback is not retried until the page is visible", async () => {
  let calls = 0;
  const { inbox, reported } = await open({ provider: () => { calls += 1; return null; }, given: null, load: false });
  await pass(60_000);
  assert.deepEqual([calls, reported.failed], [1, [[401, undefined]]]);
  inbox.wake("visibilitychange");
  await settled();
  assert.equal(calls, 2);
});

test("list request times out after 20 seconds and can be retried", async () => {
  service.arrive("One");
  service.reply(/\/notifications\?/, never);
  const { inbox, shown } = await open();
  await pass(18_000);
  assert.ok(inbox.lists.all.loading);
  await pass(2_000);
  assert.equal(inbox.lists.all.loading, null);
  assert.equal(inbox.lists.all.error.status, 0);
  await inbox.retry("all");
  assert.deepEqual([shown(), inbox.lists.all.error], [["One"], null]);
});

test("deletion can be undone and is sent after the undo time", async () => {
  service.arrive("One", "Two");
  const { inbox, shown } = await open();
  inbox.remove("Two");
  assert.deepEqual([shown(), inbox.shownUnread, inbox.going], [["One"], 1, 1]);
  inbox.undo();
  assert.deepEqual([shown(), inbox.shownUnread], [["Two", "One"], 2]);
  assert.deepEqual(service.asked(/DELETE/), []);
  inbox.remove("Two");
  inbox.commit();
  await settled();
  assert.deepEqual(service.asked(/DELETE/), ["DELETE /notifications/Two"]);
  assert.deepEqual([shown(), inbox.notes.has("Two")], [["One"], false]);
});

test("failed deletion restores its notification and keeps new ones", async () => {
  service.arrive("One", "Two");
  const { inbox, reported, shown } = await open();
  let fail;
  service.reply(/DELETE/, () => new Promise((resolve) => { fail = () => resolve(refusal(503)); }));
  inbox.remove("One");
  inbox.commit();
  await settled();
  service.arrive("Three");
  await settled();
  fail();
  await settled();
  assert.deepEqual([shown(), inbox.shownUnread], [["Three", "Two", "One"], 3]);
  assert.deepEqual(reported.failed, [[503, "remove"]]);
});

test("failed deletion does not restore other deletions", async () => {
  service.arrive("One", "Two", "Three");
  const { inbox, shown } = await open();
  service.reply(/DELETE .*Two/, () => refusal(500));
  for (const id of ["One", "Two", "Three"]) inbox.remove(id);
  inbox.commit();
  await settled();
  assert.deepEqual([shown(), inbox.shownUnread], [["Two"], 1]);
});

test("deletion of an already deleted notification succeeds", async () => {
  service.arrive("One");
  const { inbox, reported, shown } = await open();
  service.notes = [];
  inbox.remove("One");
  inbox.commit();
  await settled();
  assert.deepEqual([shown(), inbox.unread, reported.failed], [[], 0, []]);
});

test("rejected mark is reverted", async () => {
  service.arrive("One");
  const { inbox, reported } = await open();
  service.reply(/PUT/, () => refusal(503));
  inbox.mark("One", true);
  await settled();
  assert.deepEqual([inbox.notes.get("One").read_at, inbox.unread, reported.failed], [null, 1, [[503, "save"]]]);
});

test("unsent marks are stored and sent in order after an outage", async () => {
  service.arrive("One", "Two", "Three");
  const { inbox, reported } = await open();
  service.reply(/PUT|DELETE/, unreachable, 2);
  await inbox.mark("One", true);
  inbox.remove("Two");
  inbox.commit();
  await settled();
  assert.deepEqual([reported.kept, reported.failed, service.unread], [2, [], 3]);
  service.requests = [];
  service.restart();
  await pass(10_000);
  assert.deepEqual(service.asked(/PUT|DELETE/), ["PUT /notifications/One/read", "DELETE /notifications/Two"]);
  assert.deepEqual(service.notes.map(({ id }) => id), ["Three", "One"]);
  assert.equal(inbox.notes.has("Two"), false);
});

test("count that came before the event of a deletion is not lowered again", async () => {
  service.arrive("One", "Two", "Three");
  const { inbox } = await open();
  service.reply(/DELETE/, unreachable);
  inbox.remove("Two");
  inbox.commit();
  await settled();
  service.reply(/DELETE/, async () => { // a resumed stream sends the newest count first, then what happened before it
    service.notes = service.notes.filter(({ id }) => id !== "Two");
    service.count();
    service.send("deleted", { id: "Two" });
    await settled();
    return json({});
  });
  service.restart();
  await pass(10_000);
  assert.deepEqual([inbox.unread, inbox.shownUnread, inbox.notes.has("Two")], [2, 2, false]);
});

test("stored marks that leave the count as it is do not change it", async () => {
  service.arrive("One", "Two", "Three");
  service.notes[0].read_at = "2026-11-24 16:00:00";
  const { inbox } = await open();
  service.reply(/PUT|DELETE/, unreachable, 3);
  await inbox.mark("One", true);
  await inbox.mark("Three", false);
  inbox.remove("Two");
  inbox.commit();
  await settled();
  assert.equal(inbox.shownUnread, 1);
  service.reply(/unread/, async () => { service.notes[0].read_at = null; await settled(); return json({}); });
  service.reply(/DELETE/, async () => { // both changes at once: the count is 1 before and after
    service.notes = service.notes.filter(({ id }) => id !== "Two");
    service.send("unread", { id: "Three" });
    service.send("deleted", { id: "Two" });
    await settled();
    return json({});
  });
  service.restart();
  await pass(10_000);
  assert.deepEqual([service.unread, inbox.unread, inbox.shownUnread], [1, 1, 1]);
});

test("count that came before the answer to a deletion is not lowered again", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  service.reply(/DELETE/, async () => { // a new stream sends the newest count alone
    service.notes = service.notes.filter(({ id }) => id !== "Two");
    service.count();
    await settled();
    return json({});
  });
  inbox.remove("Two");
  inbox.commit();
  await pass(1_000);
  assert.deepEqual([inbox.unread, inbox.shownUnread, inbox.notes.has("Two")], [1, 1, false]);
});

test("deletion lowers the count before the service sends it", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  service.reply(/DELETE/, () => json({}));
  inbox.remove("Two");
  inbox.commit();
  await settled();
  assert.deepEqual([inbox.unread, inbox.shownUnread], [1, 1]);
});

test("stored marks survive a reload for the same user only", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  service.reply(/DELETE/, unreachable);
  inbox.remove("One");
  inbox.end();
  await settled();
  const other = await open({ given: token({ sub: "2" }) });
  assert.deepEqual(other.shown(), ["Two", "One"]);
  service.reply(/DELETE/, unreachable, 9);
  const again = await open();
  assert.deepEqual(again.shown(), ["Two"]);
});

test("mark all as read excludes later notifications", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  inbox.readAll("all");
  assert.equal(inbox.shownUnread, 0);
  service.arrive("Three");
  await settled();
  assert.equal(inbox.shownUnread, 1);
  inbox.commit();
  await settled();
  assert.deepEqual(service.asked(/PUT/), ["PUT /notifications/read"]);
  assert.deepEqual(service.notes.map(({ id, read_at: read }) => [id, Boolean(read)]), [["Three", false], ["Two", true], ["One", true]]);
});

test("mark all as read can be undone", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  inbox.mark("One", true);
  await settled();
  inbox.readAll("all");
  inbox.undo();
  inbox.commit();
  await settled();
  assert.deepEqual([inbox.shownUnread, service.unread], [1, 1]);
});

test("new notifications wait while the list is in use and are shown on request", async () => {
  service.arrive("One");
  const { inbox, reported, shown } = await open();
  reported.busy = true;
  service.arrive("Two", "Three");
  await settled();
  assert.deepEqual([shown(), inbox.waiting("all")], [["One"], 2]);
  inbox.reveal("all");
  assert.deepEqual([shown(), inbox.waiting("all")], [["Three", "Two", "One"], 0]);
});

test("events during list loading are not lost", async () => {
  service.arrive("One", "Two");
  let answer;
  service.reply(/\/notifications\?/, () => new Promise((resolve) => { answer = resolve; }));
  const { inbox, shown } = await open();
  const before = { data: service.notes.map((note) => ({ ...note })), pagination: { unread: 2, urls: {} } };
  service.notes[0].read_at = "2026-11-24 16:00:00";
  service.send("read", { id: "Two" });
  service.arrive("Three");
  await settled();
  answer(json(before));
  await settled();
  assert.deepEqual(shown(), ["Three", "Two", "One"]);
  assert.ok(inbox.notes.get("Two").read_at);
});

test("notification that came after the list was read and before the stream began is not lost", async () => {
  service.arrive("One");
  let answer;
  service.reply(/\/notifications\?/, () => new Promise((resolve) => { answer = resolve; }));
  service.reply(/stream/, unreachable, 2);
  const { shown } = await open();
  const before = { data: service.notes.map((note) => ({ ...note })), pagination: { unread: 1, urls: {} } };
  service.arrive("Two");
  assert.equal(service.streams, 0);
  await pass(4_000);
  assert.equal(service.streams, 1);
  answer(json(before));
  await settled();
  assert.deepEqual(shown(), ["Two", "One"]);
});

test("reads and deletions of other clients are applied", async () => {
  service.arrive("One", "Two", "Three");
  const { inbox, reported, shown } = await open();
  service.send("read", { id: "One" });
  service.send("deleted", { ids: ["Two"] });
  service.send("read", { ids: ["Three"] });
  service.send("unread", { id: "One" });
  service.send("count", { unread: 1 });
  await settled();
  assert.deepEqual(shown(), ["Three", "One"]);
  assert.deepEqual([Boolean(inbox.notes.get("Three").read_at), inbox.notes.get("One").read_at, inbox.unread], [true, null, 1]);
  assert.deepEqual(reported.settled, ["One", "Two", "Three"]);
});

test("links of all rows are fetched in one request", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  inbox.look(["Two", "One"]);
  await pass(2_000);
  assert.deepEqual(service.asked(/links/), ["GET /notifications/links?ids=Two,One"]);
  assert.equal(inbox.links.get("One"), "https://crm.example/One");
  for (const id of ["Three", "Four", "Five"]) { service.arrive(id); await settled(); inbox.look([id]); }
  await pass(2_000);
  assert.deepEqual(service.asked(/links/).slice(1), ["GET /notifications/links?ids=Three,Four,Five"]);
});

test("link that is not an http URL is ignored", async () => {
  service.arrive("One");
  service.reply(/links/, () => json({ data: { One: "javascript:alert(1)" } }));
  const { inbox } = await open();
  inbox.look(["One"]);
  await pass(1_000);
  assert.equal(inbox.links.get("One"), null);
});

test("only a long interruption is reported", async () => {
  const { inbox } = await open();
  service.reply(/stream/, unreachable, 5);
  service.restart();
  await pass(2_000);
  assert.equal(inbox.connection, "live");
  await pass(4_000);
  assert.equal(inbox.connection, "reconnecting");
  await pass(60_000);
  assert.equal(inbox.connection, "live");
});

test("failed mark does not change a count that came while it was sent", async () => {
  service.arrive("One");
  const { inbox, reported } = await open();
  let fail;
  service.reply(/PUT .*\/read/, () => new Promise((resolve) => { fail = () => resolve(refusal(503)); }));
  inbox.mark("One", true);
  await settled();
  assert.equal(inbox.unread, 0);
  service.count();
  await settled();
  fail();
  await settled();
  assert.deepEqual([inbox.unread, inbox.notes.get("One").read_at, reported.failed], [1, null, [[503, "save"]]]);
});

const portal = (status = 200) => new Response("<!doctype html><title>Sign in</title>", { status, headers: { "Content-Type": "text/html; charset=utf-8" } });

test("mark without an answer is sent again while the stream stays open", async () => {
  service.arrive("One");
  const { inbox } = await open();
  service.reply(/PUT/, unreachable, 2);
  await inbox.mark("One", true);
  for (const count of [3, 3]) {
    await pass(30_000);
    service.raw(": beat\n\n");
    assert.deepEqual([service.asked(/PUT/).length, service.asked(/stream/).length, service.unread], [count, 1, 0]);
  }
});

test("second mark of a notification is sent after the answer to the first", async () => {
  service.arrive("One");
  const { inbox, shown } = await open();
  let arrives;
  service.reply(/One\/read/, (answer) => new Promise((resolve) => { arrives = () => resolve(answer()); }));
  inbox.mark("One", true);
  await settled();
  inbox.mark("One", false);
  await settled();
  arrives();
  await settled();
  assert.deepEqual(service.asked(/PUT/), ["PUT /notifications/One/read", "PUT /notifications/One/unread"]);
  assert.deepEqual([service.unread, inbox.shownUnread, inbox.notes.get("One").read_at], [1, 1, null]);
});

test("stored mark does not undo a later one", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  service.reply(/PUT/, unreachable);
  inbox.readAll("all");
  inbox.commit();
  await settled();
  await inbox.mark("One", false);
  service.restart();
  await pass(60_000);
  assert.deepEqual(service.notes.map(({ id, read_at: read }) => [id, Boolean(read)]), [["Two", true], ["One", false]]);
});

test("mark that is made while stored ones are sent is sent last", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  service.reply(/PUT/, unreachable, 2);
  await inbox.mark("One", true);
  await inbox.mark("Two", true);
  let arrives;
  service.reply(/One\/read/, (answer) => new Promise((resolve) => { arrives = () => resolve(answer()); }));
  service.restart();
  await pass(10_000);
  inbox.mark("Two", false);
  await settled();
  arrives();
  await pass(60_000);
  assert.deepEqual([service.unread, inbox.shownUnread, inbox.notes.get("Two").read_at], [1, 1, null]);
});

test("stored marks of a notification keep the order in which they were made", async () => {
  service.arrive("One", "Two");
  const { inbox } = await open();
  service.reply(/PUT/, unreachable, 9);
  await inbox.mark("One", true);
  inbox.readAll("all");
  inbox.commit();
  await settled();
  await inbox.mark("One", false);
  service.reply(/PUT/, unreachable, 0);
  await pass(120_000);
  assert.deepEqual(service.notes.map(({ id, read_at: read }) => [id, Boolean(read)]), [["Two", true], ["One", false]]);
});

for (const status of [200, 403, 404, 502]) {
  test(`page of a proxy (${status}) is not taken for an answer of the service`, async () => {
    service.arrive("One", "Two");
    const { inbox, reported } = await open();
    service.reply(/PUT|DELETE/, () => portal(status), 2);
    await inbox.mark("One", true);
    inbox.remove("Two");
    inbox.commit();
    await settled();
    assert.deepEqual([reported.kept, reported.failed], [2, []]);
    await pass(60_000);
    assert.deepEqual(service.notes.map(({ id, read_at: read }) => [id, Boolean(read)]), [["One", true]]);
  });
}

test("stored marks of all tabs are sent once", async () => {
  service.arrive("One");
  const first = await open();
  for (let tab = 0; tab < 4; tab += 1) await open();
  service.reply(/PUT/, unreachable);
  await first.inbox.mark("One", true);
  service.reply(/PUT/, (answer) => new Promise((resolve) => { setTimeout(() => resolve(answer()), 5_000); }), 9);
  service.requests = [];
  service.restart();
  await pass(60_000);
  assert.deepEqual(service.asked(/PUT/), ["PUT /notifications/One/read"]);
});

test("list that could not be loaded again is loaded later", async () => {
  service.arrive("One");
  const { shown } = await open();
  service.reply(/\/notifications\?/, unreachable, 2);
  service.notes.unshift({ ...service.notes[0], id: "Two" });
  service.send("resync", {});
  await settled();
  assert.deepEqual(shown(), ["One"]);
  await pass(90_000);
  assert.deepEqual(shown(), ["Two", "One"]);
});

test("list that could not be loaded at first is loaded when the service can be reached", async () => {
  service.arrive("One");
  service.reply(/./, unreachable, 3);
  const { inbox, shown } = await open();
  assert.equal(inbox.lists.all.error.status, 0);
  await pass(10_000);
  assert.deepEqual([shown(), inbox.lists.all.error], [["One"], null]);
});

test("deletion is sent although another tab marked the notification", async () => {
  service.arrive("One", "Two");
  const [first, second] = [await open(), await open()];
  service.reply(/PUT|DELETE/, unreachable, 2);
  second.inbox.remove("One");
  second.inbox.commit();
  await settled();
  await first.inbox.mark("One", true);
  await pass(60_000);
  assert.deepEqual(service.notes.map(({ id }) => id), ["Two"]);
  for (const { inbox, shown } of [first, second]) assert.deepEqual([shown(), inbox.shownUnread], [["Two"], 1]);
});
