import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { Client } from "../inbox/client.js";
import { Feed } from "../inbox/feed.js";
import { leave, never, page, pass, refusal, Service, settled, token, unreachable } from "./support.js";

let service;
let feeds;

beforeEach(() => {
  page();
  service = new Service();
  feeds = [];
});

afterEach(() => {
  for (const { feed } of feeds) feed.stop();
  leave();
});

/** A tab: its feed, and what that reports. */
async function tab({ provider = null, given = token() } = {}) {
  const [client, heard] = [new Client("https://notify.example", given, provider), []];
  const feed = new Feed(client, (event, data) => heard.push([event, data]));
  const states = () => heard.filter(([event]) => event === "state").map(([, state]) => state);
  const made = { client, feed, heard, states };
  feeds.push(made);
  await client.credentials(); // as the store does
  feed.start();
  await pass(1_000); // one of the tabs leads by then
  return made;
}

const STREAM = /stream/;

test("stream start requests the list after the first event, which has the position", async () => {
  const { heard } = await tab();
  assert.deepEqual(heard, [["state", "live"], ["count", { unread: 0 }], ["fresh", undefined]]);
  service.send("count", { unread: 3 });
  await settled();
  assert.deepEqual(heard.at(-1), ["count", { unread: 3 }]);
});

test("stream resumes after the last event and waits for the retry time after a service restart", async () => {
  const { heard, states } = await tab();
  service.raw("retry: 10000\nid: 41\nevent: count\ndata: {\"unread\":1}\n\n");
  await settled();
  service.restart();
  await pass(5_900);
  assert.equal(service.asked(STREAM).length, 1);
  await pass(200); // (0.1 + 0.5) of 10 s
  assert.equal(service.asked(STREAM).at(-1), "GET /notifications/stream after 41");
  assert.deepEqual(states(), ["live", "reconnecting", "live"]);
  assert.equal(heard.filter(([event]) => event === "fresh").length, 1);
});

test("stream that opens after the network was lost is offline, and is opened again with the network", async () => {
  let open;
  const opening = new Promise((resolve) => { open = resolve; });
  service.reply(STREAM, (answer) => opening.then(answer));
  const { feed, states } = await tab();
  navigator.onLine = false;
  feed.wake("offline");
  open();
  await settled();
  assert.deepEqual(states(), ["offline", "offline"]);
  navigator.onLine = true;
  feed.wake("online");
  await pass(1_000);
  assert.deepEqual(states().slice(2), ["reconnecting", "live"]);
  assert.equal(service.streams, 1);
});

test("stream without keepalive for 40 seconds is reopened", async () => {
  await tab();
  for (let beat = 0; beat < 4; beat += 1) {
    await pass(15_000);
    service.raw(": beat\n\n");
  }
  await settled();
  assert.equal(service.asked(STREAM).length, 1);
  await pass(41_000);
  assert.equal(service.asked(STREAM).length, 2);
});

test("reconnect backs off after 1, 2, 4 ... up to 30 seconds", async () => {
  service.reply(STREAM, unreachable, 8);
  await tab();
  const times = [];
  let before = 0;
  for (let second = 0; second < 150; second += 0.25) {
    if (service.asked(STREAM).length > before) times.push(second);
    before = service.asked(STREAM).length;
    await pass(250);
  }
  const pauses = times.slice(1).map((time, nth) => time - times[nth]);
  assert.equal(service.streams, 1);
  assert.deepEqual(pauses.slice(0, 7), [1, 2, 4, 8, 16, 30, 30].map((seconds) => seconds * 0.75)); // 0.5 + random / 2
});

test("rate limit response is honored by its Retry-After", async () => {
  service.reply(STREAM, () => refusal(429, "too_many_requests", { "Retry-After": "20" }));
  await tab();
  await pass(18_000);
  assert.equal(service.asked(STREAM).length, 1);
  await pass(3_000);
  assert.equal(service.asked(STREAM).length, 2);
});

test("list is polled every 30 seconds without a stream", async () => {
  service.reply(STREAM, () => refusal(404), 9);
  service.arrive("One");
  const { heard, states } = await tab();
  const looked = () => service.asked(/GET \/notifications\?/).length;
  assert.deepEqual([looked(), states().at(-1)], [1, "polling"]);
  await pass(29_000);
  assert.equal(looked(), 1);
  await pass(2_000);
  assert.equal(looked(), 2);
  assert.deepEqual(heard.find(([event]) => event === "page")[1].data.map(({ id }) => id), ["One"]);
});

test("rejected token stops the feed until there is a new one", async () => {
  service.reply(STREAM, () => refusal(401, "token"));
  const { client, feed, heard } = await tab();
  assert.deepEqual(heard.at(-1), ["refused", { status: 401, code: "token", message: "token" }]);
  await pass(60_000);
  assert.equal(service.asked(STREAM).length, 1);
  client.token = token({ seconds: 7_200 });
  feed.resume();
  await pass(1_000);
  assert.equal(service.streams, 1);
});

test("token is renewed 30 seconds before it expires", async () => {
  const given = [];
  const provider = () => { given.push(Date.now()); return token({ seconds: 100 }); };
  await tab({ provider, given: null });
  await pass(38_000);
  service.raw(": beat\n\n");
  await pass(30_000);
  assert.deepEqual([given.length, service.asked(STREAM).length], [1, 1]);
  await pass(3_000);
  assert.deepEqual([given.length, service.asked(STREAM).length, service.streams], [2, 2, 1]);
});

test("one tab of a user streams and another takes over when it closes", async () => {
  const [first, second] = [await tab(), await tab()];
  assert.equal(service.asked(STREAM).length, 1);
  service.send("count", { unread: 7 });
  await settled();
  for (const { heard } of [first, second]) assert.deepEqual(heard.at(-1), ["count", { unread: 7 }]);
  first.feed.stop();
  await pass(2_000);
  assert.equal(service.asked(STREAM).length, 2);
  service.send("count", { unread: 8 });
  await settled();
  assert.deepEqual(second.heard.at(-1), ["count", { unread: 8 }]);
  assert.deepEqual(first.heard.at(-1), ["count", { unread: 7 }]);
});

test("tab that joins another one requests the list, which may lack what was sent before", async () => {
  await tab();
  const { heard } = await tab();
  assert.deepEqual(heard.filter(([event]) => event === "fresh").length, 1);
});

test("users do not share a stream and a token without sub shares none", async () => {
  await tab({ given: token({ sub: "1" }) });
  await tab({ given: token({ sub: "2" }) });
  await tab({ given: token({ sub: null }) });
  await tab({ given: token({ sub: null }) });
  assert.equal(service.streams, 4);
});

test("stopped feed has no pending timers", async () => {
  service.reply(STREAM, never);
  const { feed } = await tab();
  feed.stop();
  await pass(90_000);
  assert.equal(service.asked(STREAM).length, 1);
});

test("reconnect backs off if each stream breaks soon after it began", async () => {
  await tab();
  for (let second = 0; second < 300; second += 1) {
    service.break();
    await pass(1_000);
  }
  assert.ok(service.asked(STREAM).length < 25, String(service.asked(STREAM).length));
  await pass(23_000);
  assert.equal(service.streams, 1);
  await pass(11_000);
  service.requests = [];
  service.break(); // after a stream that lasted, the first pause is short again
  await pass(1_500);
  assert.equal(service.asked(STREAM).length, 1);
});
