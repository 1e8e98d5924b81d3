/* The console: signs in, shows the view named in the URL fragment, and polls the metrics while the page is visible. */

import { ask, clock } from "./elements.js";
import { Measures } from "./measures.js";
import {
  afterSignIn, call, canSignIn, cell, cells, chooseCell, company, endsAt, findPerson, forget, isSignedIn, keep, may, personName, recordOpening, serverTime,
  signInThere, signOut, takeToken,
} from "./session.js";
import { Overview, viewOf } from "./views.js";
import { h } from "../shared/dom.js";

const POLL_INTERVAL = 5_000;
const HISTORY_INTERVAL = 60_000;

const main = document.getElementById("main");
const news = document.getElementById("news");
const pulse = document.getElementById("pulse");
const search = document.getElementById("search");
const sought = /** @type {HTMLInputElement} */ (document.getElementById("sought"));

const ofCell = /** @type {HTMLSelectElement} */ (document.getElementById("cell"));

const measures = new Measures();
const overview = new Overview(() => remember().then(() => overview.show(measures)));
let latest = 0; // the number of the latest load, so that a late answer does not overwrite a newer one
let timer = null;
let isPolling = false;
let isKnown = false; // whether the service has answered who is signed in, and which cells it has
let isLacking = false; // whether the view lacks its content because the service did not answer
let asked = { at: -Infinity, span: 0 }; // the last request of the history

search.addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = `find/${encodeURIComponent(sought.value.trim())}`;
});
document.getElementById("leave").addEventListener("click", async () => {
  try {
    await signOut();
  } catch (error) {
    news.textContent = `You are still signed in. ${error.message}`;
    return;
  }
  leave("You are signed out.");
});
ofCell.addEventListener("change", () => {
  chooseCell(ofCell.value);
  show(() => ofCell.focus());
});
document.getElementById("skip").addEventListener("click", () => main.focus());
addEventListener("hashchange", async () => {
  await takeToken(replaces);
  news.textContent = "";
  show(() => main.focus());
});
document.addEventListener("visibilitychange", async () => {
  const mayHaveSignedIn = document.visibilityState === "visible" && isKnown && canSignIn && !isSignedIn(); // in another tab
  if (mayHaveSignedIn && await findPerson() === null && isSignedIn()) start();
  else poll();
});
takeToken(replaces).then(begin);

const FAILED = {
  expired: "The sign-in took too long or was started in another browser. Try again.",
  state: "The sign-in was started in another tab or browser. Try again.",
  denied: "The identity provider refused the sign-in.",
  role: "You are signed in there, but have no role for this console. Ask your administrator.",
  company: "You are signed in there, but your company is not known here. Ask your administrator.",
  insecure: "Open this console over https to sign in.",
  busy: "Too many people are signing in. Try again in a few seconds.",
  unavailable: "The service cannot begin a session at the moment. Try again later, or use a token.",
};

/** Use the token of this tab, or else the session of the browser. */
async function begin() {
  const unknown = await findPerson();
  isKnown = unknown === null;
  ofCell.replaceChildren(...cells.map((name) => h("option", { value: name }, name)));
  if (cells.length) ofCell.value = cell();
  const failed = afterSignIn();
  start();
  if (unknown !== null && !isSignedIn()) document.getElementById("why").textContent = unknown;
  if (failed && !isSignedIn()) document.getElementById("why").textContent = FAILED[failed] ?? "The identity provider cannot be used. The log of the service says why.";
}

/** Ask whether the token of a link may replace the session, because anyone can send a link. */
function replaces(given, kept) {
  return ask(`This link signs in as “${given}”, and you are signed in as “${kept}”. Switch to “${given}”?`, "Switch");
}

function start(focus) {
  show(focus);
  poll();
}

/** Show the view or the sign-in, then call `focus`: the element that had the focus may have been removed. */
async function show(focus) {
  const turn = ++latest;
  isLacking = false;
  const isIn = isSignedIn();
  for (const part of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("header nav, header form, header .session"))) part.hidden = !isIn;
  for (const part of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("header [data-role]"))) part.hidden = !isIn || !may(part.dataset.role);
  ofCell.parentElement.hidden = !isIn || cells.length < 2 || company() !== null; // whose cell the service finds
  if (!isIn) {
    main.replaceChildren(signIn());
    return;
  }
  const name = location.hash.slice(1);
  for (const each of /** @type {NodeListOf<HTMLAnchorElement>} */ (document.querySelectorAll("nav a"))) {
    const isHere = each.hash.slice(1) === name;
    each.toggleAttribute("aria-current", isHere);
    if (isHere) each.setAttribute("aria-current", "page");
  }
  main.setAttribute("aria-busy", "true");
  const view = name === "" ? overview : viewOf(name);
  document.title = `${view.title} · Tocsin console`;
  const content = await attempt(() => view.load(refresh), view.missing);
  if (turn !== latest) return;
  main.removeAttribute("aria-busy");
  main.replaceChildren(heading(view), ...content);
  overview.show(measures);
  focus?.();
}

function refresh() {
  return show(() => main.querySelector("button").focus());
}

function heading(view) {
  return h("div", { class: "heading" },
    h("h1", {}, view.title),
    h("p", { class: "faint" }, `as of ${clock(serverTime())} UTC`),
    h("button", { type: "button", onclick: refresh }, "Refresh"));
}

/** Return the content of a view, or the error; a token that is no longer accepted leads to the sign-in. */
async function attempt(load, missing) {
  try {
    return [await load()].flat().filter((part) => part != null);
  } catch (error) {
    if (error.status === 401) {
      leave(expired());
      return [];
    }
    if (error.status === undefined) throw error;
    isLacking = error.status === 0;
    return [h("p", { class: "trouble", role: "alert" }, (error.status === 404 && missing) || error.message)];
  }
}

/** Poll the metrics while the page is visible and the user is signed in. */
async function poll() {
  clearTimeout(timer);
  if (document.visibilityState !== "visible" || isPolling) return;
  if (!isKnown) {
    isPolling = true;
    isKnown = await findPerson() === null;
    isPolling = false;
    if (isKnown) return begin();
  }
  if (!isSignedIn()) {
    if (!isKnown) timer = setTimeout(poll, POLL_INTERVAL);
    else if (!main.querySelector("#token")) leave(canSignIn ? expired() : "The token has expired.");
    return;
  }
  isPolling = true;
  try {
    const [metrics] = await Promise.all([call("metrics"), remember()]);
    measures.add(metrics, serverTime(), performance.now());
    overview.show(measures);
    if (isLacking) (main.contains(document.activeElement) ? refresh : show)();
    await recordOpening(); // last: it fails while the database accepts no writes
    const [ends, name] = [endsAt(), personName()];
    pulse.replaceChildren(`${clock(serverTime())} UTC`, ...ends
      ? [", ", ...name ? [h("bdi", { class: "name", title: name }, name), " "] : [], `signed in until ${clock(ends).slice(0, 5)}`] : []);
    pulse.className = "";
  } catch (error) {
    if (error.status === 401) leave(expired());
    if (error.status === undefined) throw error;
    pulse.textContent = `${clock(serverTime())} UTC: ${error.message}`;
    pulse.className = "trouble";
  } finally {
    isPolling = false;
    timer = setTimeout(poll, POLL_INTERVAL);
  }
}

function expired() {
  return canSignIn ? "Your session has ended. Sign in again." : "This token has expired or is not accepted.";
}

/** Get what is missing of the history, once a minute and for each choice of a span. Without it, the charts begin now. */
async function remember() {
  const [now, { span }] = [serverTime(), overview];
  if (now - asked.at < HISTORY_INTERVAL && span === asked.span) return;
  asked = { at: now, span };
  const minutes = measures.missing(span, now);
  const found = await call(`operations/history?minutes=${minutes}`).catch(() => null);
  if (found) measures.remember(found.data, minutes, now);
}

function leave(why) {
  document.querySelector("dialog")?.close("no");
  forget();
  show();
  main.focus();
  document.getElementById("why").textContent = why;
}

function signIn() {
  document.title = "Sign in · Tocsin console";
  const field = h("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "how why",
  });
  const why = h("p", { id: "why", class: "trouble", role: "alert" });
  return h("section", { class: "sign-in" },
    h("h1", {}, "Sign in"),
    why,
    canSignIn ? h("p", {}, h("button", { type: "button", class: "main", id: "provider", onclick: signInThere }, "Sign in with your organisation")) : null,
    h("form", {
      onsubmit: async (event) => {
        event.preventDefault();
        keep(field.value.replace(/[^\w.~+/=-]/g, "")); // of a copied line, what no token has
        try {
          await recordOpening();
        } catch (error) {
          if (error.status < 500) { // otherwise the database accepts no writes, and it is recorded later
            forget();
            why.textContent = error.status === 401 ? "This token has expired or is not accepted." : error.message;
            field.select();
            return;
          }
        }
        start(() => main.focus());
      },
    },
    h("label", { for: "token" }, "Token"), field, h("button", { type: "submit", class: canSignIn ? "" : "main" }, canSignIn ? "Use the token" : "Sign in")),
    h("p", { id: "how", class: "faint" }, "Enter a service token with the scope ", h("code", {}, "operations"), ", or run ",
      h("code", {}, "tocsin console"), " on the server: it prints a link that is valid for an hour."));
}
