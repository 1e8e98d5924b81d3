/* The session: a token from the URL fragment or the sign-in form, kept for this tab only, sent with every call. */

import { claimsOf } from "../shared/token.js";

const KEPT_AS = "tocsin.console.token";
const RECORDED_AS = "tocsin.console.recorded";
const REQUEST_TIMEOUT = 20_000;
const ROLES = ["viewer", "support", "operator"];
const ROLE_SCOPES = ["operations:read", "operations:support", "operations"]; // of these roles

/** A failed call; `status` is that of the response, 0 without one. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Move a token from the URL fragment into the session. An active session is replaced only if `replaces` resolves to
 * true; its arguments are the names in the new and the current token.
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
  return String(claimsOf(token).sub ?? "an unnamed user");
}

export function keep(token) {
  sessionStorage.setItem(KEPT_AS, token);
}

export function forget() {
  sessionStorage.removeItem(KEPT_AS);
  sessionStorage.removeItem(RECORDED_AS);
}

/** Record in the audit log that the console was opened with this token, once. Throws `Refused`. */
export async function recordOpening() {
  const token = sessionStorage.getItem(KEPT_AS);
  if (sessionStorage.getItem(RECORDED_AS) === token) return;
  await call("operations/console", {});
  sessionStorage.setItem(RECORDED_AS, token);
}

/** Return whether there is a token that has not expired by its own `exp`. */
export function isSignedIn() {
  const ends = endsAt();
  return sessionStorage.getItem(KEPT_AS) !== null && (ends === null || ends > Date.now());
}

/** Return when the token expires, in milliseconds, or null. */
export function endsAt() {
  const { exp } = claimsOf(sessionStorage.getItem(KEPT_AS));
  return Number.isFinite(exp) ? exp * 1000 : null;
}

/**
 * Return whether the token's role includes another one, as far as its `scope` says. Other claims may hold scopes, too:
 * then everything is shown, and the service refuses what is not permitted.
 */
export function may(role) {
  const { scope } = claimsOf(sessionStorage.getItem(KEPT_AS));
  const given = [scope].flat().join(" ").split(" ").filter((each) => ROLE_SCOPES.includes(each));
  return !given.length || given.some((each) => ROLE_SCOPES.indexOf(each) >= ROLES.indexOf(role));
}

/** Call the service and return its response: an object if it is JSON, else text. Throws `Refused`. */
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
      signal: AbortSignal.timeout(REQUEST_TIMEOUT),
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
