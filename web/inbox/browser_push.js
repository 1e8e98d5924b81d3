/** Pushes in this browser. */

import { trusted } from "./safe_html.js";
import { store } from "./storage.js";

export class BrowserPush {
  #client;
  #worker;
  #key = null;

  static of(client, worker) {
    const can = worker && globalThis.isSecureContext && navigator.serviceWorker && globalThis.PushManager && globalThis.Notification;
    return can ? new BrowserPush(client, worker) : null;
  }

  constructor(client, worker) {
    [this.#client, this.#worker] = [client, worker];
  }

  /** Whether this user gets pushes in this browser: `on`, `off`, `denied`; null if web push is not configured. */
  async state() {
    if (!(await this.#keyOfService())) return null;
    if (Notification.permission === "denied") return "denied";
    return this.#isOurs() && (await this.#subscription()) ? "on" : "off";
  }

  async on() {
    if ((await Notification.requestPermission()) !== "granted") return;
    await this.#subscribe();
  }

  async off() {
    const subscription = await this.#subscription();
    store("tocsin:push", null);
    if (!subscription) return;
    await subscription.unsubscribe(); // first, so that no push comes here even if the service cannot be reached
    await this.#client.ask("DELETE", "/notifications/web-push", { endpoint: subscription.endpoint });
  }

  /** Renew an existing registration, and subscribe again if the service's key has changed. */
  async restore() {
    await this.#client.credentials(); // they name the user
    if (!this.#isOurs() || Notification.permission !== "granted" || !(await this.#subscription())) return;
    if (await this.#keyOfService()) await this.#subscribe();
  }

  /** Close the browser's notifications of these ids. */
  async close(ids) {
    if (!this.#isOurs()) return;
    const registration = await this.#registration();
    for (const shown of (await registration?.getNotifications?.()) ?? []) {
      if (shown.data?.tocsin && ids.includes(shown.tag)) shown.close();
    }
  }

  badge(count) {
    if (this.#isOurs()) navigator.setAppBadge?.(count)?.catch?.(() => {});
  }

  async #subscribe() {
    const key = bytesOf(await this.#keyOfService());
    const registration = await this.#ready();
    const former = await registration.pushManager.getSubscription();
    const fits = former && sameBytes(former.options.applicationServerKey, key);
    if (former && !fits) {
      await this.#client.ask("DELETE", "/notifications/web-push", { endpoint: former.endpoint });
      await former.unsubscribe();
    }
    const subscription = fits ? former : await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
    await this.#client.ask("POST", "/notifications/web-push", subscription.toJSON());
    store("tocsin:push", this.#owner());
  }

  async #keyOfService() {
    try {
      this.#key ??= (await this.#client.json("GET", "/notifications/web-push/key")).key;
      return this.#key;
    } catch (problem) {
      if (problem.status === 404) return null;
      throw problem;
    }
  }

  #registration() { return navigator.serviceWorker.getRegistration(this.#worker); }

  async #subscription() { return (await this.#registration())?.pushManager.getSubscription() ?? null; }

  /** Wait until the service worker is active. */
  async #ready() {
    const registration = await navigator.serviceWorker.register(trusted().createScriptURL(this.#worker));
    const coming = registration.installing ?? registration.waiting;
    if (!registration.active && coming) {
      await new Promise((resolve) => coming.addEventListener("statechange", () => coming.state === "activated" && resolve()));
    }
    return registration;
  }

  #owner() { return `${this.#client.src} ${this.#client.identity}`; }

  #isOurs() { return store("tocsin:push") === this.#owner(); }
}

const bytesOf = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));

const sameBytes = (buffer, bytes) => {
  const other = new Uint8Array(buffer ?? []);
  return other.length === bytes.length && other.every((byte, at) => byte === bytes[at]);
};
