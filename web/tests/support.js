/** What the tests share: a service that is reached by `fetch`, a clock that goes as they say, and the parts of a page. */

import { mock } from "node:test";

const START = Date.UTC(2026, 10, 24, 16, 0, 0);

/** Stop the clock, and give the module the globals of a page. */
export function page() {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: START });
  mock.method(Math, "random", () => 0.5);
  const globals = { navigator: { onLine: true }, document: { visibilityState: "visible", baseURI: "https://crm.example/" }, localStorage: new Storage() };
  for (const [name, value] of Object.entries(globals)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
}

/** Undo what `page` did. */
export function leave() {
  mock.timers.reset();
  mock.restoreAll();
}

/** Let everything happen that needs no time. */
export async function settled() {
  for (let turn = 0; turn < 20; turn += 1) await new Promise(setImmediate);
}

/** Let time pass, a second at a time, so that what follows from one timer can set another. */
export async function pass(ms) {
  await settled();
  for (let rest = ms; rest > 0; rest -= 1_000) {
    mock.timers.tick(Math.min(rest, 1_000));
    await settled();
  }
}

class Storage {
  #items = new Map();
  getItem(name) { return this.#items.get(name) ?? null; }
  setItem(name, value) { this.#items.set(name, value); }
  removeItem(name) { this.#items.delete(name); }
}

/** A token of user 1 that is good for an hour, without a signature; without a name where `sub` is null. */
export function token({ sub = "1", seconds = 3_600 } = {}) {
  const claims = { ...(sub && { sub }), exp: Math.floor(Date.now() / 1_000) + seconds };
  return `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.x`;
}

/** An inbox behind `fetch`, with the routes of the service that the modules call. */
export class Service {
  notes = [];
  requests = [];
  #streams = new Set();
  #replies = [];
  #id = 0;

  constructor() {
    mock.method(globalThis, "fetch", (url, options) => this.#fetch(new URL(url), options));
  }

  /** Answer the next requests that match in another way: by a Response, or a function that may wait, throw or answer. */
  reply(pattern, reply, times = 1) {
    this.#replies.push({ pattern, reply, times });
  }

  asked(pattern) {
    return this.requests.filter((request) => pattern.test(request));
  }

  /** A notification arrives. */
  arrive(...ids) {
    for (const id of ids) {
      const note = { id, type: "note", data: {}, message: id, message_formatted: `<p>${id}</p>`, read_at: null, created_at: created(this.#id += 1) };
      this.notes.unshift(note);
      this.send("notification", note);
      this.count();
    }
  }

  count() { this.send("count", { unread: this.unread }); }

  get unread() { return this.notes.filter(({ read_at: read }) => !read).length; }

  get streams() { return this.#streams.size; }

  send(type, data) {
    this.raw(`id: ${this.#id += 1}\nevent: ${type}\ndata: ${JSON.stringify(data)}\n\n`);
  }

  raw(text) {
    for (const stream of this.#streams) stream.enqueue(new TextEncoder().encode(text));
  }

  /** End all streams, as a service does that restarts. */
  restart() {
    for (const stream of this.#streams) stream.close();
    this.#streams.clear();
  }

  /** Break all streams, as a bad line does. */
  break() {
    for (const stream of this.#streams) stream.error(new TypeError("network error"));
    this.#streams.clear();
  }

  async #fetch(url, { method, body, signal, headers }) {
    const request = `${method} ${url.pathname}${url.search}`;
    this.requests.push(headers["Last-Event-ID"] ? `${request} after ${headers["Last-Event-ID"]}` : request);
    const answer = () => this.#answer(method, url, body && JSON.parse(body), signal);
    const found = this.#replies.find(({ pattern, times }) => times > 0 && pattern.test(request));
    if (found) {
      found.times -= 1;
      const made = Promise.resolve(typeof found.reply === "function" ? found.reply(answer) : found.reply);
      return Promise.race([made, aborted(signal)]);
    }
    return answer();
  }

  #answer(method, url, body, signal) {
    const [, , id, mark] = url.pathname.split("/");
    if (id === "stream") return this.#stream(signal);
    if (id === "links") return json({ data: Object.fromEntries(url.searchParams.get("ids").split(",").map((each) => [each, `https://crm.example/${each}`])) });
    if (id === "read") {
      const from = this.notes.findIndex((note) => note.id === body.up_to);
      for (const note of this.notes.slice(from)) note.read_at ??= created(0);
      this.send("read", { all: true, up_to: body.up_to });
      this.count();
      return json({});
    }
    if (!id) {
      const unread = url.searchParams.get("show") === "unread";
      return json({ data: this.notes.filter((note) => !unread || !note.read_at).slice(0, 20).map((note) => ({ ...note })), pagination: { unread: this.unread, urls: {} } });
    }
    const note = this.notes.find((each) => each.id === id);
    if (!note) return refusal(404, "not_found");
    if (method === "DELETE") this.notes = this.notes.filter((each) => each !== note);
    else note.read_at = mark === "read" ? created(0) : null;
    this.send(method === "DELETE" ? "deleted" : mark, { id });
    this.count();
    return json({});
  }

  #stream(signal) {
    let stream;
    const close = () => this.#streams.delete(stream);
    const body = new ReadableStream({ start: (controller) => { stream = controller; }, cancel: close });
    this.#streams.add(stream);
    stream.enqueue(new TextEncoder().encode(`id: ${this.#id}\nevent: count\ndata: ${JSON.stringify({ unread: this.unread })}\n\n`));
    signal.addEventListener("abort", () => { if (this.#streams.has(stream)) stream.error(signal.reason); close(); });
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  }
}

const created = (n) => `2026-11-24 15:00:${String(n).padStart(2, "0")}`;

export const json = (body, status = 200, headers = {}) => new Response(JSON.stringify(body), { status, headers });

export const refusal = (status, code = "error", headers = {}) => json({ errors: [{ code, message: code }] }, status, headers);

/** An answer that never comes. */
export const never = () => new Promise(() => {});

export const unreachable = () => { throw new TypeError("Failed to fetch"); };

const aborted = (signal) => new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
