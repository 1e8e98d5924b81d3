/** The live stream, shared by all tabs of a user. Independent of the list. */

import { EventParser } from "./sse.js";
import { backoff } from "../shared/times.js";

const PER_PAGE = 20;
const POLL_MS = 30_000;
const SILENCE_MS = 40_000;
const RETRY_MS = 3_000;
const LOOK_MS = 300;
const CALM_MS = 10_000;

/** The locks between tabs; undefined on plain http. */
const locks = () => globalThis.navigator?.locks;

export class Feed {
  #client;
  #report;
  #stop = null;
  #turn = null;
  #channel = null;
  #lastId = null;
  #state = "connecting";
  #count = null;
  #silence = 0;
  #nudge = null;
  #rank = Math.random();

  constructor(client, report) {
    this.#client = client;
    this.#report = report;
  }

  /** Start. One tab opens the stream for all; without BroadcastChannel, each tab opens its own. */
  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    const user = this.#client.identity;
    if (!user || !globalThis.BroadcastChannel) return void this.#lead();
    const name = `tocsin:${this.#client.src}:${user}`;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#heard(data);
    this.#join(name);
    this.#ask();
  }

  /** How long to wait for another tab; without locks, the tab with the shortest wait becomes the leader. */
  get #patience() { return locks() ? 5_000 : LOOK_MS * (1 + 2 * Math.random()); }

  /** Send a message to the other tabs. */
  #post(message) {
    this.#channel?.postMessage({ ...message, rank: this.#rank });
  }

  stop() {
    this.#state = "connecting";
    if (this.#turn) this.#post({ leaves: true });
    this.#stop?.abort();
    this.#turn?.abort();
    this.#channel?.close();
    clearTimeout(this.#silence);
    this.#stop = this.#turn = this.#channel = null;
  }

  restart() {
    this.stop();
    this.start();
  }

  /** Whether this tab has the stream of all. */
  get leads() { return this.#turn; }

  /** Retry, because the token may be valid again. */
  resume() {
    if (this.#state === "refused") this.restart();
  }

  /** Retry without a delay: the network is back, or the tab is visible again. */
  wake(why) {
    if (why === "offline") return void (this.#turn && this.#tell("state", "offline"));
    if (why === "visibilitychange" && document.hidden) return;
    this.resume();
    this.#nudge?.();
    if (this.#channel && !this.#turn) this.#ask();
  }

  async #join(name, steal = false) {
    const stop = this.#stop;
    if (!locks()) return;
    this.#expect(name);
    try {
      await locks().request(name, steal ? { steal } : { signal: stop.signal }, () => this.#lead());
    } catch {
      this.#turn?.abort(); // another tab took the lock while this tab was suspended
      if (!stop.signal.aborted) this.#join(name);
    }
  }

  #ask() {
    this.#post({ asks: true });
    this.#expect(this.#channel.name, this.#patience);
  }

  /** A leader without messages for so long is suspended: take over if this tab is visible. */
  #expect(name, ms = 2 * SILENCE_MS) {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      if (this.#turn || !this.#stop) return;
      if (!locks()) this.#lead();
      else if (!document.hidden) this.#join(name, true);
      else this.#expect(name);
    }, ms);
  }

  #heard({ asks, leaves, rank, event, data, id }) {
    if (asks) {
      if (!this.#turn) return;
      this.#nudge?.();
      this.#post({ event: "state", data: this.#state, id: this.#lastId });
      if (this.#count) this.#post({ event: "count", data: this.#count, id: this.#lastId });
      return;
    }
    if (leaves) return void (this.#turn || locks() || this.#ask());
    if (this.#turn && (locks() || rank > this.#rank)) return;
    this.#turn?.abort(); // if two tabs started at the same time, one of them stops
    this.#expect(this.#channel.name);
    const begins = this.#reach(id);
    if (event) this.#report(event, data);
    if (begins) this.#report("fresh");
  }

  /** Store a position of the stream; return whether it is the first, since the list may lack earlier changes. */
  #reach(id) {
    const begins = id && !this.#lastId;
    this.#lastId = id || this.#lastId;
    return begins;
  }

  #tell(event, data) {
    // The page gets one event when the network is lost, and an answer can arrive after it.
    if (event === "state") this.#state = data = globalThis.navigator?.onLine === false ? "offline" : data;
    if (event === "count") this.#count = data;
    if (event === "page") this.#count = data.pagination;
    this.#post({ event, data, id: this.#lastId });
    this.#report(event, data);
  }

  async #lead() {
    const turn = (this.#turn = new AbortController());
    clearTimeout(this.#silence);
    let failures = 0;
    while (!turn.signal.aborted) {
      const began = Date.now();
      let pause = 0;
      try {
        const retry = await this.#stream(turn.signal);
        failures = 0;
        pause = (0.1 + Math.random()) * retry; // spread the reconnects after a restart of the service
      } catch (problem) {
        if (turn.signal.aborted) break;
        if (Date.now() - began > CALM_MS) failures = 0; // only a stream that lasts ends the backoff
        if (problem.status === 404) {
          await this.#poll(turn.signal).catch(() => {});
        } else if (problem.status === 401) {
          this.#tell("refused", { status: 401, code: problem.code, message: problem.message });
          this.#state = "refused";
          break; // until there is a new token
        }
        pause = (problem.after ?? 0) * 1_000 + backoff(failures);
        failures += 1;
      }
      if (turn.signal.aborted) break;
      this.#tell("state", "reconnecting");
      await this.#pause(pause, turn.signal);
    }
    if (this.#turn === turn) this.#turn = null;
  }

  /** Read the stream until it ends. Return the delay before the next one in ms. */
  async #stream(signal) {
    await this.#client.credentials(); // renew a token about to expire, which would end the stream at once
    if (signal.aborted) return 0;
    const attempt = new AbortController();
    const end = () => attempt.abort();
    signal.addEventListener("abort", end);
    const renewal = setTimeout(end, this.#client.msToRenewal);
    let silence = setTimeout(end, SILENCE_MS);
    const nudge = (this.#nudge = () => { if (this.#state === "offline") end(); });
    try {
      const headers = { Accept: "text/event-stream", ...(this.#lastId && { "Last-Event-ID": this.#lastId }) };
      const answer = await this.#client.ask("GET", "/notifications/stream", undefined, { signal: attempt.signal, headers, streams: true });
      this.#tell("state", "live");
      const [reader, decoder, parser] = [answer.body.getReader(), new TextDecoder(), new EventParser()];
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return parser.retry ?? RETRY_MS;
        clearTimeout(silence);
        silence = setTimeout(end, SILENCE_MS);
        const events = [...parser.push(decoder.decode(value, { stream: true }))];
        for (const { type, data, id } of events) {
          const begins = this.#reach(id);
          this.#tell(type, data);
          if (begins) this.#tell("fresh");
        }
        if (!events.length) this.#post({ id: this.#lastId }); // tells other tabs that this one is active
      }
    } catch (problem) {
      if (!attempt.signal.aborted) throw problem;
      return LOOK_MS; // closed by this tab: for a new token, or after missing keepalives
    } finally {
      clearTimeout(renewal);
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
      if (this.#nudge === nudge) this.#nudge = null;
      attempt.abort();
    }
  }

  /** Without a stream, poll. */
  async #poll(signal) {
    while (!signal.aborted) {
      const page = await this.#client.json("GET", `/notifications?per_page=${PER_PAGE}`, undefined, { signal });
      this.#tell("page", page);
      this.#tell("state", "polling");
      await this.#pause(POLL_MS, signal);
    }
  }

  #pause(ms, signal) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#nudge = () => { clearTimeout(timer); resolve(); };
      signal.addEventListener("abort", this.#nudge, { once: true });
    }).finally(() => { this.#nudge = null; });
  }
}
