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

  /** Store these marks; null removes one. */
  put(marks) {
    const all = Object.entries({ ...this.all, ...marks }).filter(([, mark]) => mark).slice(-MOST_KEPT);
    const text = all.length ? JSON.stringify(Object.fromEntries(all)) : null;
    this.#here = this.#name && store(this.#name, text) === text ? {} : Object.fromEntries(all);
  }

  done(id, mark) {
    if (this.all[id] === mark) this.put({ [id]: null });
  }
}
