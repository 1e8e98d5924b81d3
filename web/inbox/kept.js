/** Marks made while the service was unreachable. */

import { store } from "./storage.js";

const MOST_KEPT = 500;

/** Unsent marks: the last one of each notification, in `localStorage` if available. */
export class Kept {
  #client;
  #here = {};

  constructor(client) {
    this.#client = client;
  }

  get #name() { return this.#client.identity && `tocsin:marks:${this.#client.src} ${this.#client.identity}`; }

  get all() {
    try {
      return { ...JSON.parse(this.#name && store(this.#name)), ...this.#here };
    } catch {
      return this.#here;
    }
  }

  /** Store a mark as the newest; null removes it. None follows a deletion, which another tab may have made. */
  put(id, mark) {
    const { [id]: former, ...marks } = this.all;
    if (mark) marks[id] = former === "deleted" ? former : mark;
    const kept = Object.entries(marks).slice(-MOST_KEPT);
    const text = kept.length ? JSON.stringify(Object.fromEntries(kept)) : null;
    this.#here = {};
    if (this.#name && store(this.#name, text) === text) return;
    if (this.#name) store(this.#name, null); // what is stored there would be sent again
    this.#here = Object.fromEntries(kept);
  }
}
