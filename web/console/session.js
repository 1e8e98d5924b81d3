/*
 * The session: a token from the URL fragment or the sign-in form, kept for this tab only, or short-lived tokens of a
 * person who signed in at the identity provider, kept in memory. A token is sent with every call.
 */

import { claimsOf } from "../shared/token.js";

const KEPT_AS = "tocsin.console.token";
const RECORDED_AS = "tocsin.console.recorded";
const REQUEST_TIMEOUT = 20_000;
const NO_ANSWER = "The service does not answer.";
const ROLES = ["viewer", "support", "operator"];
const ROLE_SCOPES = ["operations:read", "operations:support", "operations"]; // of these roles

const SESSION_PATH = "console/session";
const RENEWED_BEFORE = 150_000; // milliseconds before the token of a person expires
const HASH_KEPT_AS = "tocsin.console.hash";

let person = null; // who is signed in at the identity provider: {token, name, role, until, endsAt}
let renewing = null;
let turn = 0; // counts sign-ins and sign-outs of this tab

const MAX_SKEW = 2_000; // milliseconds: the Date header counts seconds
let skew = 0; // how much the clock of the service is ahead of that of the browser

/** Return the time by the clock of the service, in milliseconds. */
export function serverTime() {
  return Date.now() + skew;
}

/** Whether the service has an identity provider to sign in at. */
export let canSignIn = false;

/** The names of the cells, if the service has several: the default one first. */
export let cells = [];

const CELL_KEPT_AS = "tocsin.console.cell";

/** Return the cell that the views show, of several. */
export function cell() {
  const kept = sessionStorage.getItem(CELL_KEPT_AS);
  return cells.includes(kept) ? kept : cells[0];
}

export function chooseCell(name) {
  sessionStorage.setItem(CELL_KEPT_AS, name);
}

const ONE = /^(operations\/users|events)\/[^/?]/; // one user or event, which the service finds in any cell
const OF_ALL = /^(metrics|operations\/history|operations\/console)/;

/** Return a path with the cell that it asks, if the service has several. */
export function inCell(path) {
  if (!cells.length || ONE.test(path) || OF_ALL.test(path)) return path;
  return `${path}${path.includes("?") ? "&" : "?"}cell=${encodeURIComponent(cell())}`;
}

const ENDED = -1;

/** A failed call; `status` is that of the response, 0 without one, `ENDED` if the session of the call has ended since. */
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
  if (!isSignedIn() || await replaces(nameIn(given), person ? person.name : nameIn(kept))) keep(given);
}

function nameIn(token) {
  return String(claimsOf(token).sub ?? "an unnamed user");
}

export function keep(token) {
  turn += 1;
  person = null;
  sessionStorage.setItem(KEPT_AS, token);
}

export function forget() {
  turn += 1;
  person = null;
  sessionStorage.removeItem(KEPT_AS);
  sessionStorage.removeItem(RECORDED_AS);
  sessionStorage.removeItem(CELL_KEPT_AS);
}

/**
 * Get the token of the person whose session the browser has, unless this tab has a token of its own. The cookie of the
 * session opens nothing else, and scripts cannot read it. Return null, or why the service did not say who it is.
 */
export async function findPerson() {
  const answer = await send(SESSION_PATH, { method: "PUT", credentials: "same-origin" }).catch((error) => error);
  if (answer instanceof Refused) return answer.message;
  canSignIn = answer.available;
  cells = answer.cells ?? [];
  const isOwn = person === null && isSignedIn();
  person = answer.session && !isOwn ? { ...answer.session, until: Date.now() + answer.session.seconds * 1000 } : null;
  return null;
}

/** Sign in at the identity provider, and show the same view afterwards. */
export function signInThere() {
  if (location.hash) sessionStorage.setItem(HASH_KEPT_AS, location.hash); // that of a failed sign-in before stays
  location.assign("console/sign-in");
}

/** Show the view from before the sign-in. Return why the sign-in failed, if it did, as one of a few words. */
export function afterSignIn() {
  const hash = sessionStorage.getItem(HASH_KEPT_AS);
  const failed = /^#sign-in-failed\/([a-z]+)$/.exec(location.hash);
  if (failed) history.replaceState(null, "", location.pathname + location.search);
  else if (person && hash && !location.hash) history.replaceState(null, "", hash);
  if (person) sessionStorage.removeItem(HASH_KEPT_AS);
  return failed?.[1] ?? null;
}

/** End the session of the person, for all tabs. Throws `Refused`: then the browser still has the session. */
export async function signOut() {
  if (person) await send(SESSION_PATH, { method: "DELETE", credentials: "same-origin" });
  forget();
}

/** The name of the person who is signed in, or null. */
export function personName() {
  return person?.name ?? null;
}

/** Record in the audit log that the console was opened with this token, once. Throws `Refused`. */
export async function recordOpening() {
  const token = sessionStorage.getItem(KEPT_AS);
  if (person || sessionStorage.getItem(RECORDED_AS) === token) return; // signing in was recorded
  await call("operations/console", {});
  if (sessionStorage.getItem(KEPT_AS) === token) sessionStorage.setItem(RECORDED_AS, token); // still signed in
}

/** Return whether there is a token that has not expired by its own `exp`. */
export function isSignedIn() {
  const ends = endsAt();
  return (person !== null || sessionStorage.getItem(KEPT_AS) !== null) && (ends === null || ends > serverTime());
}

/** Return when the token or the session of the person expires, in milliseconds, or null. */
export function endsAt() {
  if (person) return person.ends_at * 1000;
  const { exp } = claimsOf(sessionStorage.getItem(KEPT_AS));
  return Number.isFinite(exp) ? exp * 1000 : null;
}

/**
 * Return whether the token's role includes another one, as far as its `scope` says. Other claims may hold scopes, too:
 * then everything is shown, and the service refuses what is not permitted.
 */
export function may(role) {
  if (person) return ROLES.indexOf(person.role) >= ROLES.indexOf(role);
  const { scope } = claimsOf(sessionStorage.getItem(KEPT_AS));
  const given = [scope].flat().join(" ").split(" ").filter((each) => ROLE_SCOPES.includes(each));
  return !given.length || given.some((each) => ROLE_SCOPES.indexOf(each) >= ROLES.indexOf(role));
}

/** Return the company that the token is limited to, or null. */
export function company() {
  return (person ?? claimsOf(sessionStorage.getItem(KEPT_AS))).company_id ?? null;
}

/**
 * Call the service and return its response: an object if it is JSON, else text. Throws `Refused`: with status 401 only
 * if the session that is refused is still that of this tab.
 */
export async function call(path, body) {
  const before = turn;
  try {
    return await sendOrRenew(path, body);
  } catch (error) {
    throw error.status === 401 && turn !== before ? new Refused(error.message, ENDED) : error;
  }
}

async function sendOrRenew(path, body) {
  if (person && Date.now() > person.until - RENEWED_BEFORE) await renew();
  if (person && Date.now() > person.until) throw new Refused(NO_ANSWER, 0); // its token could not be renewed
  try {
    return await sendWithToken(path, body);
  } catch (error) {
    if (error.status !== 401 || !person || body) throw error;
    await renew(); // a sign-in in another tab has ended the session, and begun the next one of this browser
    if (!person) throw error;
    return sendWithToken(path);
  }
}

function renew() {
  return renewing ??= findPerson().finally(() => (renewing = null));
}

function sendWithToken(path, body) {
  const headers = { Authorization: `Bearer ${person ? person.token : sessionStorage.getItem(KEPT_AS)}` };
  if (body) headers["Content-Type"] = "application/json";
  return send(inCell(path), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), credentials: "omit" });
}

/** Send a request and return the response: an object if it is JSON, else text. Throws `Refused`. */
async function send(path, options) {
  let response;
  let answer;
  try {
    response = await fetch(path, {
      ...options,
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(REQUEST_TIMEOUT),
    });
    const type = response.headers.get("Content-Type") ?? "";
    if (type.startsWith("text/html")) throw new TypeError("a proxy answered");
    answer = await (type.startsWith("application/json") ? response.json() : response.text());
  } catch {
    throw new Refused(NO_ANSWER, 0);
  }
  const ahead = Date.parse(response.headers.get("Date")) - Date.now();
  if (Math.abs(ahead - skew) > MAX_SKEW) skew = ahead;
  if (!response.ok) throw new Refused(reason(answer, response.status), response.status);
  return answer;
}

function reason(answer, status) {
  return answer?.errors?.map((error) => error.message).join(" ") ?? `The service answered ${status}.`;
}
