/* Who looks: a token, which comes in the fragment or by hand, stays in this tab alone, and goes with every call. */

import { claimsOf } from "../shared/token.js";

const KEPT_AS = "tocsin.console.token";
const SLOWEST = 20_000;

/** Why a call came to nothing, in words; `status` is that of the answer, 0 where there was none. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Take a token out of the address, where one stands there, before anything else can see it. Over a session that goes on
 * it is only kept where `replaces` says so, which is asked with the name of each.
 */
export async function takeToken(replaces) {
  const found = /^#token=([\w.~+/-]+=*)$/.exec(location.hash);
  if (!found) return;
  history.replaceState(null, "", location.pathname + location.search);
  const [given, kept] = [found[1], sessionStorage.getItem(KEPT_AS)];
  if (given === kept) return;
  if (!isSignedIn() || await replaces(nameIn(given), nameIn(kept))) keep(given);
}

function nameIn(token) {
  return String(claimsOf(token).sub ?? "somebody who is not named");
}

export function keep(token) {
  sessionStorage.setItem(KEPT_AS, token);
}

export function forget() {
  sessionStorage.removeItem(KEPT_AS);
}

/** Whether there is a token, and it has not ended as far as it says itself. */
export function isSignedIn() {
  const ends = endsAt();
  return sessionStorage.getItem(KEPT_AS) !== null && (ends === null || ends > Date.now());
}

/** When the token ends, in milliseconds; null where it does not say. */
export function endsAt() {
  const { exp } = claimsOf(sessionStorage.getItem(KEPT_AS));
  return Number.isFinite(exp) ? exp * 1000 : null;
}

/** Call the service, and return its answer: an object, or text where it is no JSON. Throws `Refused`. */
export async function call(path, body) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEPT_AS)}` };
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(SLOWEST),
    });
  } catch {
    throw new Refused("The service does not answer.", 0);
  }
  const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
  const answer = isJson ? await response.json() : await response.text();
  if (!response.ok) throw new Refused(reason(answer, response.status), response.status);
  return answer;
}

function reason(answer, status) {
  return answer?.errors?.map((error) => error.message).join(" ") ?? `The service answered ${status}.`;
}
