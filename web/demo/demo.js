/** The page of the demo: choose a user, post events, and see the user's inbox, phones and browser. */

import { h } from "../shared/dom.js";

const BASE = new URL(".", location.href.split("#")[0]);
const DEVICES = { iphone: 3, android: 3, browser: 2 };
const RENEWAL_MARGIN = 60_000;
const chosen = (selector) => /** @type {HTMLInputElement} */ (document.querySelector(selector));
const $ = (id) => /** @type {any} */ (document.getElementById(id));

let people = [];
let services = {};
let staleAt = 0;
let me = null;
let count = null;
let messageTimer = 0;

async function start() {
  try {
    await loadPeople();
    await showKinds();
  } catch {
    say("The demo does not respond. Check that it is running, then reload this page.");
    return;
  }
  showPeople();
  $("console").hidden = !services.console;
  $("console").href = `console#token=${services.console}`;
  signIn(Number(location.hash.slice(1)));
  addEventListener("hashchange", () => signIn(Number(location.hash.slice(1))));
  document.addEventListener("visibilitychange", watchPhones);
  $("look").addEventListener("click", () => {
    $("phones").scrollIntoView();
    $("phones").focus({ preventScroll: true });
    say("");
  });
}

// --- Requests -----------------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const answer = await fetch(new URL(path, BASE), options);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function loadPeople() {
  const { data, lifetime, ...others } = await ask("demo/people");
  people = data;
  services = others;
  staleAt = Date.now() + lifetime * 1000 - RENEWAL_MARGIN;
}

async function tokenOf(id) {
  if (Date.now() > staleAt) await loadPeople();
  return people.find((person) => person.id === id).token;
}

// --- Users --------------------------------------------------------------------------------------------------------

function showPeople() {
  $("people").replaceChildren(...people.map(segmentOf));
  $("people").addEventListener("change", (event) => signIn(Number(event.target.value)));
}

function segmentOf(person) {
  const language = new Intl.DisplayNames("en", { type: "language" }).of(person.locale);
  const teams = person.teams.join(" and ");
  const name = h("span", { class: "who" },
    h("bdi", {}, nameOf(person)),
    h("small", {}, teams ? `${teams}, ${language}` : language));
  const face = h("span", { class: "face", "aria-hidden": "true" }, initialsOf(person));
  const radio = h("input", { type: "radio", name: "person", value: person.id });
  return h("label", {}, radio, h("span", {}, face, name));
}

function signIn(id) {
  const person = people.find((each) => each.id === id) ?? people[0];
  if (person.id === me?.id) return;
  me = person;
  history.replaceState(null, "", `#${me.id}`);
  chosen(`#people input[value="${me.id}"]`).checked = true;
  $("to-me").replaceChildren("Only ", h("bdi", {}, me.first_name));
  $("whose").replaceChildren("Inbox of ", h("bdi", {}, nameOf(me)));
  document.title = "Tocsin: the demo";
  closed.clear();
  count = null;
  for (const device of Object.keys(DEVICES)) showScreen(device, { badge: null, banners: [] });
  showInbox();
  showCommands();
  watchPhones();
}

// --- The inbox ----------------------------------------------------------------------------------------------------

function showInbox() {
  if (!customElements.get("tocsin-inbox")) {
    const words = "The web inbox did not load. The browser may be too old.";
    $("inbox").replaceChildren(h("p", { class: "notice" }, words));
    return;
  }
  const { id, locale } = me;
  const inbox = document.createElement("tocsin-inbox");
  inbox.tokenProvider = () => tokenOf(id);
  inbox.setAttribute("src", BASE.href.replace(/\/$/, ""));
  inbox.setAttribute("mode", "page");
  inbox.setAttribute("lang", locale);
  inbox.addEventListener("tocsin-count", ({ detail }) => {
    if (id === me.id) count = detail.unread;
    document.title = detail.unread ? `(${detail.unread}) Tocsin: the demo` : "Tocsin: the demo";
  });
  inbox.addEventListener("tocsin-open", (event) => {
    event.preventDefault();
    say(event.detail.link ? `Your application would now open ${event.detail.link}` : "Your application would now open this notification.");
  });
  $("inbox").replaceChildren(inbox);
}

// --- Events -------------------------------------------------------------------------------------------------------

async function showKinds() {
  const { data: kinds } = await ask("demo/kinds");
  const groups = Map.groupBy(kinds, (kind) => kind.group);
  for (const [group, some] of groups) {
    const buttons = some.map((kind) => h("li", {}, buttonOf(kind)));
    $("kinds").append(h("h3", {}, group), h("ul", {}, buttons));
  }
}

function buttonOf(kind) {
  return h("button", { type: "button", "data-kind": kind.name, "data-preset": kind.preset, onclick: () => postEvent(kind) }, kind.label);
}

async function postEvent(kind) {
  const all = chosen("input[name=to]:checked").value === "all";
  const to = all ? people.map((person) => person.id) : [me.id];
  try {
    await ask("demo/events", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ kind: kind.name, to }),
    });
    say(`Posted “${kind.label}” for ${all ? "all users" : me.first_name}.`);
    $("look").hidden = isInSight($("phones"));
    watchPhones();
  } catch {
    say("The event could not be posted. Check that the demo is running.");
  }
}

function say(words) {
  clearTimeout(messageTimer);
  $("said").textContent = words;
  $("look").hidden = true;
  if (words) messageTimer = setTimeout(say, 6000, "");
}

function isInSight(part) {
  const { top, bottom } = part.getBoundingClientRect();
  return top < innerHeight / 2 && bottom > 0;
}

// --- Phones and browser -------------------------------------------------------------------------------------------

/** The browser notifications that this page closed. Browsers get no silent pushes, so only an open page can close them. */
const closed = new Set();
let badge = 0;
let lastState = "";
let watch = 0;

async function watchPhones() {
  const mine = ++watch; // ends the previous loop
  while (mine === watch && me && !document.hidden) {
    try {
      await lookAtPhones(me.id);
    } catch {
      // keep the last state until the demo responds again
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function lookAtPhones(id) {
  const screens = await ask(`demo/phones?user=${id}`);
  if (screens.android) screens.android.badge = null; // Android counts its notifications itself
  if (screens.browser?.banners.length) screens.browser = await closeRead(screens.browser, id);
  if (me.id !== id) return;
  for (const device of Object.keys(DEVICES)) showScreen(device, screens[device]);
}

async function closeRead({ banners }, id) {
  const known = JSON.stringify([id, count, banners.map((banner) => banner.push)]);
  // The inbox sends "Mark all as read" after the time for undo: ask again until the service and the inbox agree.
  if (known !== lastState || badge !== count) {
    const headers = { Authorization: `Bearer ${await tokenOf(id)}` };
    const { data, pagination } = await ask("notifications?show=unread&per_page=100", { headers });
    const unread = new Set(data.map((each) => each.id));
    if (pagination.unread <= data.length)
      for (const banner of banners) if (!unread.has(banner.id)) closed.add(banner.id);
    badge = pagination.unread;
    lastState = known;
  }
  return { badge, banners: banners.filter((banner) => !closed.has(banner.id)) };
}

function showScreen(device, screen = { badge: null, banners: [] }) {
  const place = $(device);
  const { badge, banners } = screen;
  const most = DEVICES[device];
  place.querySelector(".badge").textContent = (badge ?? banners.length) || "";
  place.querySelector(".rest").textContent = restOf(banners.length, most);
  showBanners(place.querySelector(".banners"), banners.slice(0, most));
  showTime(place);
}

function restOf(count, most) {
  if (!count) return "No notifications";
  return count > most ? `and ${count - most} more` : "";
}

function showBanners(list, banners) {
  const there = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const due = new Map(banners.map((banner) => [`${banner.key} ${banner.push}`, banner]));
  for (const [key, item] of there) if (!due.has(key)) dismiss(item);
  let before = null;
  for (const [key, banner] of due) {
    const item = there.get(key) ?? bannerOf(key, banner);
    item.querySelector("time").textContent = ago(banner.at);
    if (!item.parentNode) before ? before.after(item) : list.prepend(item);
    before = item;
  }
}

function bannerOf(key, banner) {
  return h("li", { class: "banner", "data-key": key },
    h("div", {}, h("h4", {}, banner.title), h("time", { datetime: banner.at })),
    h("p", {}, banner.body));
}

function dismiss(item) {
  item.removeAttribute("data-key");
  item.classList.add("gone");
  setTimeout(() => item.remove(), 300);
}

function showTime(place) {
  const now = new Date();
  const clock = place.querySelector(".clock");
  if (!clock) return;
  clock.textContent = now.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  place.querySelector(".day").textContent = now.toLocaleDateString("en-GB", { weekday: "long", day: "numeric", month: "long" });
}

function ago(at) {
  const minutes = Math.floor((Date.now() - Date.parse(at)) / 60_000);
  if (minutes < 1) return "now";
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
}

// --- Shell commands -----------------------------------------------------------------------------------------------

function showCommands() {
  const url = (path) => new URL(path, BASE).href;
  const event = { type: "custom", notify: { users: [me.id] }, params: { body: "Hello from the shell" } };
  const json = "-H 'Content-Type: application/json'";
  const commands = {
    "List notifications": [me.token, (token) => `curl -H 'Authorization: Bearer ${token}' '${url("notifications?per_page=3")}'`],
    "Post an event": [
      services.crm,
      (token) => `curl -H 'Authorization: Bearer ${token}' ${json} ${url("events")} -d '${JSON.stringify(event)}'`,
    ],
    "Read all and clear the phones": [
      me.token,
      (token) => `curl -X PUT -H 'Authorization: Bearer ${token}' ${url("notifications/read")}`,
    ],
  };
  $("commands").replaceChildren(...Object.entries(commands).map(([title, [token, line]]) => commandOf(title, token, line)));
}

function commandOf(title, token, line) {
  const copy = h("button", { type: "button", "aria-label": `Copy: ${title}` }, "Copy");
  const shown = navigator.clipboard ? line(`${token.slice(0, 8)}…`) : line(token);
  copy.hidden = !navigator.clipboard;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(line(token));
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  return h("div", { class: "command" }, h("div", {}, h("h3", {}, title), copy), h("pre", {}, shown));
}

// --- Helpers ------------------------------------------------------------------------------------------------------

function nameOf(person) {
  return `${person.first_name} ${person.last_name}`;
}

function initialsOf(person) {
  const [first, last] = [person.first_name, person.last_name].map((name) => [...name][0]);
  return /\p{Script=Arabic}/u.test(first) ? first : first + last;
}

await start();
