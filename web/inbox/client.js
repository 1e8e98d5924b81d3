/** Calls of the service. */

import { wait } from "../shared/times.js";
import { claimsOf, identityOf } from "../shared/token.js";

const LIMIT_MS = 20_000;
const RENEW_MS = 30_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** A failed call; status 0 means that the service was not reached. */
export class Refusal extends Error {
  constructor(status, code, message, after = 0) {
    super(message);
    this.name = "Refusal";
    this.status = status;
    this.code = code;
    this.after = after;
  }

  static async of(answer) {
    const [error] = (await answer.json().catch(() => null))?.errors ?? [];
    return new Refusal(answer.status, error?.code ?? "error", error?.message ?? answer.statusText, Number(answer.headers.get("retry-after")) || 0);
  }
}

export class Client {
  src;
  token;
  provider;
  #renewing = null;
  #clockFits = true;

  constructor(src, token, provider) {
    Object.assign(this, { src: src.replace(/\/+$/, ""), token, provider });
  }

  /** A key for the user of the token, so that users do not share a stream; null without `sub`. */
  get identity() { return identityOf(this.token); }

  get msToRenewal() {
    const { exp } = claimsOf(this.token);
    if (!this.provider || !this.#clockFits || typeof exp !== "number") return LONGEST_TIMER_MS;
    return Math.max(0, Math.min(exp * 1_000 - Date.now() - RENEW_MS, LONGEST_TIMER_MS));
  }

  /** Return a valid token; get a new one shortly before the current one expires. */
  async credentials() {
    return this.token && this.msToRenewal > 0 ? checked(this.token) : this.#renew(this.token);
  }

  async json(...request) {
    const answer = await this.ask(...request);
    return answer.json().catch((cause) => { throw unreachable(cause); });
  }

  /** Call the service; repeat with a new token if this one is refused. Throws a Refusal. */
  async ask(method, path, body = undefined, more = {}) {
    const token = await this.credentials();
    let answer = await this.#send(token, method, path, body, more);
    if (answer.status === 401 && (this.provider || this.token !== token)) {
      answer = await this.#send(await this.#renew(token), method, path, body, more);
    }
    if (answer.status !== 401 && /html/.test(answer.headers.get("content-type"))) throw unreachable("A proxy answered.");
    if (!answer.ok) throw await Refusal.of(answer);
    return answer;
  }

  /** Send one request. It is aborted if the response is not complete in time; streams have no such limit. */
  async #send(token, method, path, body, /** @type {RequestInit & { streams?: boolean }} */ { headers, signal, streams, ...more }) {
    const json = body === undefined ? {} : { "Content-Type": "application/json" };
    const limit = new AbortController();
    setTimeout(() => streams || limit.abort(new Error(LATE)), LIMIT_MS);
    try {
      return await fetch(this.src + path, { method, credentials: "omit", ...more, body: body === undefined ? undefined : JSON.stringify(body),
        signal: signal ? AbortSignal.any([signal, limit.signal]) : limit.signal, headers: { Authorization: `Bearer ${token}`, ...json, ...headers } });
    } catch (cause) {
      throw unreachable(cause);
    }
  }

  /** Return a new token. Calls that need one at the same time share one request. */
  async #renew(used) {
    if (this.token && this.token !== used) return this.token;
    if (!this.provider) throw new Refusal(401, "token", "The token is missing.");
    this.#renewing ??= Promise.race([(async () => this.provider())(), wait(LIMIT_MS).then(() => { throw new Error(LATE); })]).then((given) => {
      const token = checked(given);
      if (used && identityOf(used) !== identityOf(token)) throw new Refusal(401, "token", "The token provider returned another user's token.");
      this.token = token;
      this.#clockFits = true;
      this.#clockFits = this.msToRenewal > 0; // a new token that has already expired means that the clocks differ: wait for a 401
      return token;
    }, (cause) => {
      throw new Refusal(0, "token", String(cause?.message ?? cause));
    }).finally(() => { this.#renewing = null; });
    return this.#renewing;
  }
}

const LATE = "The request timed out.";

const unreachable = (cause) => new Refusal(0, "unreachable", String(cause?.message ?? cause));

/** Return the token if it is a JWT: a provider may have fetched a login page. */
function checked(token) {
  if (/^\s*[\w-]+\.[\w-]+\.[\w-]*\s*$/.test(token)) return token.trim();
  throw new Refusal(401, "token", token ? "The token is not a JWT." : "The token is missing.");
}
