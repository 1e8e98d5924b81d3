/** An inbox without any rendering: list, unread count, marks, stream and preferences, for a page that draws it itself. */

import { Client } from "../inbox/client.js";
import { onPageEvent, pageEvents } from "../inbox/page_events.js";
import { Inbox } from "../inbox/store.js";

export { Refusal } from "../inbox/client.js";

/** @type {import("../types/client").InboxSnapshot} */
const NOTHING = Object.freeze({
  notifications: Object.freeze([]), unread: null, connection: "connecting", loading: false, error: null, hasMore: false,
});

const PREFERENCES = "/notifications/preferences";

export class InboxClient {
  #client;
  #on;
  #store = null;
  #snapshot = NOTHING;
  #listeners = new Set();

  /** @param {import("../types/client").InboxOptions} options */
  constructor({ src, token = null, tokenProvider = null, onError = null, onArrive = null }) {
    this.#client = new Client(src, token, tokenProvider);
    this.#on = { error: onError, arrive: onArrive };
  }

  /** Load the list and open the stream. A stopped inbox can be started again. */
  start() {
    if (this.#store) return;
    const store = new Inbox(this.#client, {
      changed: () => this.#changed(store),
      failed: (problem) => this.#on.error?.(problem),
      arrived: (count) => this.#on.arrive?.(count),
      settled() {},
      kept() {},
      busy: () => false,
    });
    this.#store = store;
    for (const [target, type] of pageEvents()) target.addEventListener(type, this);
    store.begin();
    store.load("all");
  }

  /** Close the stream. The snapshot keeps its content. */
  stop() {
    for (const [target, type] of pageEvents()) target.removeEventListener(type, this);
    this.#store?.end();
    this.#store = null;
  }

  handleEvent(event) {
    onPageEvent(this.#store, event);
  }

  /** Subscribe to changes; returns a function that unsubscribes. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** The current state; each change makes a new object. */
  get snapshot() { return this.#snapshot; }

  /** Continue with another token of the same user. */
  setToken(token) {
    if (this.#store) this.#store.renewed(token);
    else this.#client.token = token;
  }

  async refresh() { await this.#store?.refresh(); }

  async loadMore() { await this.#store?.more("all"); }

  async markRead(id) { await this.#store?.mark(id, true); }

  async markUnread(id) { await this.#store?.mark(id, false); }

  /** Mark the notifications of the list as read, but no newer ones. */
  markAllRead() {
    this.#store?.readAll("all");
    this.#store?.commit();
  }

  remove(id) {
    this.#store?.remove(id);
    this.#store?.commit();
  }

  /** Return the link of a notification, or null. */
  async linkOf(id) { return (await this.#store?.whereTo(id)) ?? null; }

  /** Return the kinds with their groups and channels, for a preferences page. */
  async kinds() { return (await this.#client.json("GET", "/notifications/kinds")).data; }

  async preferences() { return this.#client.json("GET", PREFERENCES); }

  async updatePreferences(change) { return this.#client.json("PATCH", PREFERENCES, change); }

  #changed(store) {
    if (store !== this.#store) return;
    const { all } = store.lists;
    this.#snapshot = Object.freeze({
      notifications: Object.freeze(store.shown("all").map((note) => ({ ...note }))),
      unread: store.shownUnread,
      connection: store.connection,
      loading: Boolean(all.loading),
      error: all.loaded ? null : all.error,
      hasMore: all.next !== null,
    });
    for (const listener of this.#listeners) listener();
  }
}
