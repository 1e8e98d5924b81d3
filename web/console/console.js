/* The console: signs in, shows the view that the address names, and asks for the metrics while it is looked at. */

import { ask, clock } from "./elements.js";
import { Measures } from "./measures.js";
import { call, endsAt, forget, isSignedIn, keep, takeToken } from "./session.js";
import { Overview, viewOf } from "./views.js";
import { h } from "../shared/dom.js";

const EVERY = 5_000;

const main = document.getElementById("main");
const news = document.getElementById("news");
const pulse = document.getElementById("pulse");
const search = document.getElementById("search");
const sought = document.getElementById("sought");

const measures = new Measures();
const overview = new Overview();
let shown = 0; // counts what was shown, so that an answer that comes late is not put over what came after it
let timer = null;
let isAsking = false;

search.addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = `find/${encodeURIComponent(sought.value.trim())}`;
});
document.getElementById("leave").addEventListener("click", () => leave("You are signed out."));
document.getElementById("skip").addEventListener("click", () => main.focus());
addEventListener("hashchange", async () => {
  await takeToken(replaces);
  news.textContent = "";
  show(() => main.focus());
});
document.addEventListener("visibilitychange", poll);
takeToken(replaces).then(start);

/** Ask whether the token of a link takes the place of a session: a link may come from anybody. */
function replaces(given, kept) {
  return ask(`This link signs in as “${given}”, and you are signed in as “${kept}”. Go on as “${given}”?`, "Sign in anew");
}

function start() {
  show();
  poll();
}

/** Show what the address names, or ask for a token; then `focus`, since what had the focus may be gone. */
async function show(focus) {
  const turn = ++shown;
  const isIn = isSignedIn();
  for (const part of document.querySelectorAll("header nav, header form, header .session")) part.hidden = !isIn;
  if (!isIn) {
    main.replaceChildren(signIn());
    return;
  }
  const name = location.hash.slice(1);
  for (const each of document.querySelectorAll("nav a")) {
    const isHere = each.hash.slice(1) === name;
    each.toggleAttribute("aria-current", isHere);
    if (isHere) each.setAttribute("aria-current", "page");
  }
  main.setAttribute("aria-busy", "true");
  const view = name === "" ? overview : viewOf(name);
  document.title = `${view.title} · Tocsin console`;
  const content = await attempt(() => view.load(refresh));
  if (turn !== shown) return;
  main.removeAttribute("aria-busy");
  main.replaceChildren(heading(view), ...content);
  overview.show(measures);
  focus?.();
}

function refresh() {
  return show(() => main.querySelector(".heading button").focus());
}

function heading(view) {
  return h("div", { class: "heading" },
    h("h1", {}, view.title),
    h("p", { class: "faint" }, `as of ${clock(Date.now())} UTC`),
    h("button", { type: "button", onclick: refresh }, "Refresh"));
}

/** Return what a view loads, or why it can't; a token that is not taken any more leads to the sign-in. */
async function attempt(load) {
  try {
    return [await load()].flat().filter((part) => part != null);
  } catch (error) {
    if (error.status === 401) return leave("This token has ended, or is not taken here.") ?? [];
    if (error.status === undefined) throw error;
    return [h("p", { class: "trouble", role: "alert" }, error.message)];
  }
}

/** Ask for the metrics, and again after a while, for as long as the page is looked at by somebody signed in. */
async function poll() {
  clearTimeout(timer);
  if (document.visibilityState !== "visible" || isAsking) return;
  if (!isSignedIn()) {
    if (!main.querySelector("#token")) leave("The token has ended.");
    return;
  }
  isAsking = true;
  try {
    measures.add(await call("metrics"), Date.now());
    const ends = endsAt();
    pulse.textContent = `${clock(Date.now())} UTC${ends ? `, signed in until ${clock(ends).slice(0, 5)}` : ""}`;
    pulse.className = "";
    overview.show(measures);
  } catch (error) {
    if (error.status === 401) leave("This token has ended, or is not taken here.");
    if (error.status === undefined) throw error;
    pulse.textContent = `${clock(Date.now())} UTC: ${error.message}`;
    pulse.className = "trouble";
  } finally {
    isAsking = false;
    timer = setTimeout(poll, EVERY);
  }
}

function leave(why) {
  forget();
  show();
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
    h("form", {
      onsubmit: async (event) => {
        event.preventDefault();
        keep(field.value.trim());
        try {
          await call("operations/lanes");
        } catch (error) {
          forget();
          why.textContent = error.status === 401 ? "This token has ended, or is not taken here." : error.message;
          field.select();
          return;
        }
        start();
      },
    },
    h("label", { for: "token" }, "Token"), field, h("button", { type: "submit", class: "main" }, "Sign in")),
    h("p", { id: "how", class: "faint" }, "A service's token with the scope ", h("code", {}, "operations"), ". On the server, ",
      h("code", {}, "tocsin console"), " prints a link that holds one for an hour."));
}
