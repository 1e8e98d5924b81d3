/** The element `<tocsin-inbox>`: frame, rendering and user actions; see docs/guides/web-inbox.md. */

import { BrowserPush } from "./browser_push.js";
import { Client, Refusal } from "./client.js";
import { frameOf } from "./frame.js";
import { icon, textButton } from "./icons.js";
import { help } from "./help.js";
import { onPageEvent, pageEvents } from "./page_events.js";
import { Preferences } from "./preferences.js";
import { makeRow } from "./rows.js";
import { Inbox } from "./store.js";
import { sheet } from "./style.js";
import { hasWords, languageOf, loadWords, problemOf, wordsOf } from "./words.js";
import { adopt, arrange, h, keepOnly, put, reflect, set } from "../shared/dom.js";
import { Times } from "../shared/times.js";
import { identityOf } from "../shared/token.js";

const UNDO_MS = 6_000;
const LACKING_MS = 5_000;
const MAX_AUTOMATIC_ROWS = 100;
const TICK_MS = 20_000;

/** The attributes. Each is also a property of that name; the functions convert the text of the attribute. */
const ATTRIBUTES = {
  src: (text) => text,
  token: (text) => text,
  worker: (text) => text,
  theme: (text) => text,
  mode: (text) => (text === "page" ? "page" : "bell"),
};

const PROPERTIES = ["words", "renderItem", "tokenProvider"];

/** @typedef {Pick<import("../types/inbox").TocsinInbox, "src" | "token" | "worker" | "theme" | "mode">} Attributes */

const Base = /** @type {new () => HTMLElement & Attributes} */ (globalThis.HTMLElement ?? class {}); // not on a server

let warned = false;

const capped = (count) => (count > 99 ? "99+" : count);

/**
 * The inbox of Tocsin for any page: a bell with a panel, or a list in place.
 *
 * @customElement tocsin-inbox
 * @attr {string} src - The URL of the service: `https://notify.example.com`.
 * @attr {string} token - A user's token; prefer the property `tokenProvider`.
 * @attr {"bell" | "page"} mode - A bell with a panel (default), or the list in place.
 * @attr {"auto" | "light" | "dark"} theme - `auto` (default) follows the `color-scheme` of the page.
 * @attr {string} lang - The language of texts and dates; by default that of the page.
 * @attr {string} worker - The page's service worker, for pushes to this browser.
 * @fires {CustomEvent<OpenDetail>} tocsin-open - A notification is opened; cancel the event to navigate yourself.
 * @fires {CustomEvent<CountDetail>} tocsin-count - The number of unread notifications has changed.
 * @fires {CustomEvent<ErrorDetail>} tocsin-error - Something failed.
 * @slot bell - The icon of the bell.
 * @slot header - Content beside the title.
 * @slot empty - Content of an empty list.
 * @slot item-<id> - Content of the row of the notification with this id.
 * @csspart bell - The button that opens the panel.
 * @csspart badge - The number of unread notifications.
 * @csspart panel - The panel, or the whole list in page mode.
 * @csspart header - The line with the title and the buttons.
 * @csspart title - The title.
 * @csspart button - A button with an icon.
 * @csspart tab - "All" and "Unread".
 * @csspart notice - The line with the state of the connection.
 * @csspart paused - The line about paused pushes.
 * @csspart list - The list.
 * @csspart pill - The button with the number of new notifications.
 * @csspart day - The heading of a day.
 * @csspart row - A notification.
 * @csspart item - The link or button that covers a row.
 * @csspart avatar - The picture, initials or bell of a row.
 * @csspart sender - The author of a custom notification.
 * @csspart text - The message.
 * @csspart time - The time of a notification.
 * @csspart more - The button that loads the next page.
 * @csspart empty - The text of an empty list.
 * @csspart toast - The message about an action, with Undo if possible.
 * @csspart preferences - The pane of preferences.
 * @csspart switch - A switch of the preferences.
 * @cssprop --tocsin-font - `font` as a whole.
 * @cssprop --tocsin-background - The panel.
 * @cssprop --tocsin-text - Text.
 * @cssprop --tocsin-muted - Secondary text.
 * @cssprop --tocsin-border - Lines.
 * @cssprop --tocsin-hover - Rows under the pointer.
 * @cssprop --tocsin-unread - Unread rows.
 * @cssprop --tocsin-accent - The accent colour.
 * @cssprop --tocsin-on-accent - Text on the accent colour.
 * @cssprop --tocsin-badge - The badge.
 * @cssprop --tocsin-on-badge - Text on the badge.
 * @cssprop --tocsin-radius - The corners of the panel.
 * @cssprop --tocsin-width - The width of the panel.
 * @cssprop --tocsin-height - The height of the panel.
 */
export class TocsinInbox extends Base {
  static observedAttributes = ["src", "token", "mode", "lang", "worker"];

  #inbox = null;
  #provider = null;
  #own = null;
  #renderItem = null;
  #lacking = 0;
  #bare = false;
  #starting = false;
  #built = false;
  #parts = /** @type {Record<string, any>} */ ({});
  #rows = new Map();
  #days = new Map();
  #tab = "all";
  #pane = "list";
  #current = null;
  #shown = [];
  #opened = false;
  #counted = null;
  #drawing = false;
  #tabbing = false;
  #ticking = 0;
  #saying = 0;
  #undoing = 0;
  #apologising = 0;
  #apology = "";
  #words = wordsOf("en", "en", null);
  #times = null;
  #push = null;
  #near = null;
  #preferences = null;

  /** Returns a token; called at the start, after a refused token, and shortly before one expires. */
  get tokenProvider() { return this.#provider; }
  set tokenProvider(provider) {
    this.#provider = provider;
    if (this.#inbox) this.#inbox.client.provider = provider;
    else this.#start();
  }

  /** Texts of the page that replace those of the language; see docs/guides/web-inbox.md. */
  get words() { return this.#own; }
  set words(words) {
    const same = words === this.#own;
    this.#own = words;
    if (same || !this.#built) return;
    this.#hide();
    this.#build();
  }

  /** A callback of the page that draws the content of a row; see docs/guides/web-inbox.md. */
  get renderItem() { return this.#renderItem; }
  set renderItem(render) {
    this.#renderItem = render;
    this.#keepRows();
    if (this.#built) this.#draw();
  }

  /** The number of unread notifications; null until it is known. */
  get unread() { return this.#inbox?.shownUnread ?? null; }

  /** Whether the panel is open. */
  get open() { return this.#opened; }
  set open(open) {
    if (!this.#built || this.mode === "page" || open === this.#opened) return;
    if (open) this.#show();
    else this.#hide();
  }

  /** Reload the list. */
  async refresh() { await this.#inbox?.refresh(); }

  connectedCallback() {
    for (const name of [...Object.keys(ATTRIBUTES), ...PROPERTIES]) adopt(this, name);
    this.#build();
    for (const [target, type, captured] of this.#outside()) target.addEventListener(type, this, captured);
    this.#start();
  }

  disconnectedCallback() {
    for (const [target, type, captured] of this.#outside()) target.removeEventListener(type, this, captured);
    this.#hide();
    this.#stop();
  }

  attributeChangedCallback(name, before, after) {
    if (!this.#built || before === after) return;
    const renewed = name === "token" && after && this.#inbox && identityOf(after);
    if (renewed && renewed === this.#inbox.client.identity) {
      this.#inbox.renewed(after);
    } else {
      if (name !== "lang") this.#stop();
      if (name === "mode" || name === "lang") this.#build();
      this.#start();
    }
  }

  /** Handle events of the page and the window; the only listener for them. */
  handleEvent(event) {
    const inside = event.composedPath().includes(this);
    switch (event.type) {
      case "pointerdown": if (this.#opened && !inside) this.#hide(); break;
      case "keydown": if (event.key === "Escape" && this.#opened && !event.defaultPrevented) this.#hide(true); break;
      case "scroll": case "resize": if (this.#opened && !inside) this.#place(); break;
      case "message": if (event.data?.tocsin?.opened) this.#inbox?.opened(event.data.tocsin.opened); break;
      default: onPageEvent(this.#inbox, event); this.#tick();
    }
  }

  /** @returns {[EventTarget, string, boolean?][]} */
  #outside() {
    return [
      ...pageEvents(), [document, "pointerdown"], [document, "keydown"], [document, "scroll", true], [window, "resize"],
      .../** @type {[EventTarget, string][]} */ (navigator.serviceWorker ? [[navigator.serviceWorker, "message"]] : []),
    ];
  }

  /** Start in a microtask, so that attributes and properties set together take effect together. */
  #start() {
    if (this.#starting || this.#inbox || !this.#built) return;
    this.#starting = true;
    this.#speak();
    queueMicrotask(() => {
      this.#starting = false;
      if (this.#inbox || !this.isConnected) return;
      clearTimeout(this.#lacking);
      this.#bare = false;
      if (!this.src || !(this.token || this.#provider)) return void (this.#lacking = setTimeout(() => this.#lacks(), LACKING_MS));
      const client = new Client(new URL(this.src, document.baseURI).href, this.token, this.#provider);
      const inbox = new Inbox(client, {
        changed: () => this.#inbox === inbox && this.#draw(),
        failed: (problem, what) => this.#inbox === inbox && this.#failed(problem, what),
        arrived: (count) => this.#inbox === inbox && this.#say(this.#words.arrived(count)),
        settled: (ids) => this.#inbox === inbox && this.#push?.close(ids),
        busy: (tab) => this.#busy(tab),
        kept: () => this.#inbox === inbox && this.#apologise(this.#words.kept),
      });
      this.#inbox = inbox;
      this.#push = BrowserPush.of(client, this.worker);
      this.#push?.restore().catch(() => {});
      inbox.begin();
      if (this.mode === "page" || this.#opened) this.#look();
      this.#draw();
    });
  }

  /** Report a missing `src` or token. */
  #lacks() {
    if (this.#inbox || !this.isConnected) return;
    const problem = new Refusal(401, "token", "<tocsin-inbox> needs src, and token or tokenProvider.");
    if (!warned) console.warn(problem.message);
    warned = this.#bare = true;
    this.#failed(problem);
    this.#draw();
  }

  /** Load the visible list. */
  #look() {
    this.#inbox.load(this.#tab);
    this.#inbox.lookAtPause();
  }

  #stop() {
    this.#inbox?.end();
    this.#inbox = null;
    this.#push = null;
    this.#counted = null;
    this.#keepRows();
    this.#days.clear();
    this.#pane = "list";
    this.#draw();
  }

  #failed(problem, what) {
    if (!(problem instanceof Refusal)) reportError(problem); // a bug in this script
    const detail = { status: problem.status ?? 0, code: problem.code ?? "error", message: problem.message, error: problem };
    this.#emit("tocsin-error", detail);
    if (what) this.#apologise(this.#words.failed[what]);
  }

  #apologise(text) {
    this.#say(this.#apology = text);
    this.#draw();
    clearTimeout(this.#apologising);
    this.#apologising = setTimeout(() => { this.#apology = ""; this.#draw(); }, UNDO_MS);
  }

  #emit(type, detail, cancelable = false) {
    return this.dispatchEvent(new CustomEvent(type, { detail, cancelable, bubbles: true, composed: true }));
  }

  #say(text) {
    clearTimeout(this.#saying);
    this.#parts.live.textContent = "";
    this.#saying = setTimeout(() => { this.#parts.live.textContent = text; }, 60);
  }

  // --- Frame ---

  #build() {
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet()];
    const { language, locale } = languageOf(this);
    const words = (this.#words = wordsOf(language, locale, this.#own));
    this.#times = new Times(locale);
    this.#opened = false;
    this.#keepRows();
    this.#days.clear();
    this.#preferences = null;

    this.#parts = frameOf(this.mode, words, locale, {
      bell: () => { this.open = !this.#opened; },
      hover: () => this.#inbox?.load(this.#tab),
      turn: (pane) => this.#turn(pane),
      readAll: () => this.#readAll(),
      close: () => this.#hide(true),
      choose: (tab) => this.#choose(tab),
      resume: () => this.#inbox.resume(),
      reveal: () => this.#reveal(),
      more: () => this.#inbox.more(this.#tab),
      hold: () => clearTimeout(this.#undoing),
      arm: () => this.#arm(),
      tabKey: (event) => this.#tabbed(event),
      rowKey: (event) => this.#pressed(event),
      key: (event) => this.#key(event),
      left: (event) => this.#left(event),
    });
    root.replaceChildren(...this.#parts.root);

    this.#near?.disconnect();
    this.#near = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.#further());
    this.#built = true;
    this.#pane = "list";
    this.#speak(language);
    this.#draw();
  }

  #rebuild() {
    const open = this.#opened;
    this.#hide();
    this.#build();
    this.open = open;
  }

  /** Render all texts in the language of the page; the panel stays hidden until the service has sent them. */
  async #speak(language = languageOf(this).language) {
    if (hasWords(language) || !this.src) return;
    const { panel } = this.#parts;
    panel.classList.add("waiting");
    await loadWords(this.src, language);
    panel.classList.remove("waiting");
    if (hasWords(language) && panel === this.#parts.panel) this.#rebuild();
  }

  #show() {
    const { panel, bell } = this.#parts;
    this.#opened = true;
    panel.hidden = false;
    panel.showPopover?.();
    bell.setAttribute("aria-expanded", "true");
    this.#inbox?.reveal(this.#tab);
    if (this.#inbox) this.#look();
    this.#draw(true);
    this.#parts.body.scrollTop = 0;
    this.#place();
    panel.focus({ preventScroll: true });
    this.#tick();
  }

  #hide(returnFocus = false) {
    if (!this.#opened) return;
    const { panel, bell } = this.#parts;
    this.#opened = false;
    this.#inbox?.commit();
    this.#turn("list", false);
    panel.hidePopover?.();
    panel.hidden = true;
    bell.setAttribute("aria-expanded", "false");
    if (returnFocus) bell.focus();
    this.#tick();
  }

  /** Place the panel below the bell, or above it if there is more space, within the window. */
  #place() {
    const { panel, bell } = this.#parts;
    const at = bell.getBoundingClientRect();
    const [wide, high] = [document.documentElement.clientWidth, window.innerHeight];
    const [below, above] = [high - at.bottom - 14, at.top - 14];
    const up = below < 320 && above > below;
    const width = panel.offsetWidth;
    const rtl = getComputedStyle(this).direction === "rtl";
    const left = rtl ? at.left : at.right - width;
    set(panel, "--_left", `${Math.max(8, Math.min(left, wide - width - 8))}px`);
    set(panel, "--_top", up ? "auto" : `${Math.max(8, at.bottom + 6)}px`);
    set(panel, "--_bottom", up ? `${high - at.top + 6}px` : "auto");
    set(panel, "--_room", `${Math.max(up ? above : below, 160)}px`);
  }

  /** Close the panel when the focus leaves it, because it may cover the focused element. */
  #left({ relatedTarget }) {
    if (!this.#opened || (relatedTarget ? this.shadowRoot.contains(relatedTarget) || this.contains(relatedTarget) : !this.#tabbing)) return;
    this.#hide();
  }

  #turn(pane, focus = true) {
    if (pane === this.#pane) return;
    const from = this.#pane;
    this.#pane = pane;
    const { pane: place, panel, settings } = this.#parts;
    if (pane === "preferences") {
      this.#preferences = new Preferences(this.#inbox.client, this.#push, this.#words, this.#times, (text) => this.#say(text),
        (problem) => this.#failed(problem), (preferences) => this.#inbox?.paused(preferences));
      place.replaceChildren(this.#preferences.element);
      this.#preferences.load();
    } else if (pane === "help") {
      place.replaceChildren(help(this.#words));
    } else {
      place.replaceChildren();
    }
    this.#draw(true);
    this.#parts.body.scrollTop = 0;
    if (focus) (pane !== "list" ? this.#parts.back : from === "preferences" ? settings : panel).focus();
  }

  /** Load more pages automatically; in page mode only some, so that the user can reach the rest of the page. */
  #further() {
    if (this.mode === "bell" || this.#inbox?.lists[this.#tab].ids.length < MAX_AUTOMATIC_ROWS) this.#inbox?.more(this.#tab, true);
  }

  // --- Rendering ---

  /** Schedule a render; several changes are rendered together. */
  #draw(now = false) {
    if (now) return this.#paint();
    if (this.#drawing) return;
    this.#drawing = true;
    queueMicrotask(() => { this.#drawing = false; this.#paint(); });
  }

  #paint() {
    if (!this.#built) return;
    const [p, words, inbox] = [this.#parts, this.#words, this.#inbox];
    const unread = inbox?.shownUnread ?? 0;
    p.badge.hidden = !unread;
    p.badge.textContent = capped(unread);
    p.bell.setAttribute("aria-label", unread ? `${words.title}, ${words.unreadCount(unread)}` : words.title);
    if (inbox && inbox.shownUnread !== this.#counted && inbox.shownUnread !== null) {
      this.#counted = inbox.shownUnread;
      this.#push?.badge(unread);
      this.#emit("tocsin-count", { unread });
    }
    if (this.mode === "bell" && !this.#opened) return;

    const list = this.#pane === "list";
    p.title.textContent = list ? words.title : this.#pane === "help" ? words.help : words.preferences;
    p.back.hidden = list;
    p.tablist.hidden = p.list.hidden = p.readAll.hidden = p.settings.hidden = !list;
    p.pane.hidden = list;
    p.readAll.disabled = !unread;
    p.settings.disabled = !inbox;
    p.tabs.forEach((tab) => {
      const chosen = tab.id === `tab-${this.#tab}`;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    });
    p.list.setAttribute("aria-labelledby", `tab-${this.#tab}`);
    p.tabs[1].lastChild.textContent = capped(unread || "");
    const notice = inbox && (words.connection[inbox.connection] ?? (inbox.lists[this.#tab].loaded && words.problem[inbox.connection]));
    p.notice.hidden = !notice;
    if (notice && p.notice.textContent !== notice) this.#say(notice);
    p.notice.textContent = notice || "";
    const until = inbox?.pausedUntil;
    p.paused.hidden = !list || !(until > Date.now());
    if (!p.paused.hidden) put(p.pausedText, words.pausedUntil(this.#times.moment(until)));
    this.#paintList();
    this.#paintToast();
  }

  #paintList() {
    const [p, words, inbox] = [this.#parts, this.#words, this.#inbox];
    const list = inbox?.lists[this.#tab];
    const notes = inbox ? inbox.shown(this.#tab) : [];
    const ids = notes.map(({ id }) => id);
    const at = this.#shown.indexOf(this.#current);
    if (!ids.includes(this.#current)) this.#current = ids.find((id) => this.#shown.indexOf(id) >= at) ?? ids.at(-1) ?? null;
    this.#shown = ids;
    const focused = p.days.contains(this.#inner());
    const groups = new Map();
    const moment = Math.floor(Date.now() / TICK_MS);
    for (const note of notes) {
      const row = this.#row(note, moment);
      if (!groups.has(row.day)) groups.set(row.day, []);
      groups.get(row.day).push(row.element);
    }
    arrange(p.days, [...groups].map(([day, rows]) => {
      const section = this.#days.get(day) ?? this.#section(day);
      put(section.firstChild, this.#times.heading(day));
      arrange(section.lastChild, rows);
      return section;
    }));
    if (focused && !p.days.contains(this.#inner())) (this.#rows.get(this.#current)?.main ?? p.panel).focus();
    inbox?.look(ids);
    this.#keepRows(new Set(inbox?.notes.keys()));
    keepOnly(this.#days, groups);

    const fresh = list ? inbox.waiting(this.#tab) : 0;
    p.pill.hidden = !fresh;
    if (fresh) p.pill.textContent = words.fresh(capped(fresh));
    const failed = list ? !list.loaded && list.error : this.#bare && { status: 401 };
    p.empty.hidden = !(list?.loaded && !notes.length && !fresh && !list.next);
    if (!p.empty.hidden) p.emptyText.replaceChildren(icon(this.#tab === "all" ? "bell" : "checks"), ...words.empty[this.#tab].map((text) => h("p", {}, text)));
    p.foot.hidden = !(list?.loaded && list.next);
    if (list?.loading || p.foot.hidden) this.#near.unobserve(p.near);
    else this.#near.observe(p.near); // observed again after each page: the end may still be visible
    p.more.textContent = list?.loading ? words.loading : words.more;
    p.state.hidden = list?.loaded;
    p.list.setAttribute("aria-busy", String(!!list?.loading));
    const state = failed ? `failed ${failed.status}` : p.state.hidden ? "" : "loading";
    if (p.state.dataset.is === state) return;
    p.state.dataset.is = state;
    p.state.replaceChildren(...(failed
      ? [h("p", { role: "alert" }, problemOf(words, failed)), inbox && textButton("button", words.retry, () => inbox.retry(this.#tab))].filter(Boolean)
      : state ? [h("p", {}, words.loading)] : []));
  }

  #rendered(note) {
    try {
      return this.#renderItem?.(structuredClone(note)) ?? null;
    } catch (problem) {
      reportError(problem); // an error of the page; the row gets its default content
      return null;
    }
  }

  /** Remove all rows but these, with the content that the page has drawn in them. */
  #keepRows(ids = new Set()) {
    for (const [id, row] of this.#rows) if (!ids.has(id)) row.place(null);
    keepOnly(this.#rows, ids);
  }

  #section(day) {
    const id = `day-${day}`;
    const section = h("section", { "aria-labelledby": id }, h("h3", { class: "day", part: "day", id }), h("ul", { class: "rows", role: "list", "aria-labelledby": id }));
    this.#days.set(day, section);
    return section;
  }

  #row(note, moment) {
    let row = this.#rows.get(note.id);
    if (!row) {
      row = makeRow(note, this.#words, this.#times, {
        open: (event) => this.#follow(event, note.id),
        toggle: () => this.#toggle(note.id),
        remove: () => this.#remove(note.id),
        read: () => this.#inbox.mark(note.id, true),
        focus: () => { this.#current = note.id; this.#draw(); },
        render: (now) => this.#rendered(now),
      }, this);
      this.#rows.set(note.id, row);
    }
    row.update(this.#inbox.notes.get(note.id), this.#inbox.links.get(note.id), note.id === this.#current, moment);
    return row;
  }

  #paintToast() {
    const { toast } = this.#parts;
    const gone = this.#inbox?.going;
    const undoable = gone || this.#inbox?.reading;
    const text = gone ? this.#words.deleted(gone) : undoable ? this.#words.allRead : this.#apology;
    toast.hidden = !text;
    if (!text || toast.firstChild?.textContent === text) return;
    toast.replaceChildren(h("span", {}, text), ...(undoable ? [textButton("text-button", this.#words.undo, () => this.#undo())] : []));
  }

  /** Update times and days while they are visible. */
  #tick() {
    clearInterval(this.#ticking);
    if (document.hidden || !this.#built || (this.mode === "bell" && !this.#opened)) return;
    this.#ticking = setInterval(() => this.isConnected ? this.#draw() : clearInterval(this.#ticking), TICK_MS);
    this.#draw();
  }

  // --- User actions ---

  #choose(tab) {
    if (tab === this.#tab) return;
    this.#inbox?.leave(this.#tab);
    this.#tab = tab;
    this.#current = null;
    this.#inbox?.reveal(tab);
    this.#inbox?.load(tab, true);
    this.#parts.body.scrollTop = 0;
    this.#draw(true);
  }

  #reveal() {
    this.#inbox.reveal(this.#tab);
    this.#current = null;
    this.#draw(true);
    this.#parts.panel.scrollIntoView({ block: "nearest" });
    this.#parts.body.scrollTop = 0;
    this.#focusRow(this.#current);
  }

  #readAll() {
    this.#inbox.readAll(this.#tab);
    this.#say(this.#words.allRead);
    this.#arm();
    this.#parts.panel.focus();
  }

  #follow(event, id) {
    const note = this.#inbox.notes.get(id);
    this.#inbox.mark(id, true);
    const inNewTab = event.type === "auxclick" || event.ctrlKey || event.metaKey || event.shiftKey;
    if (inNewTab) return;
    const inbox = this.#inbox;
    if (inbox.links.has(id)) return void (this.#leads(note) || event.preventDefault());
    event.preventDefault(); // the link is being fetched
    inbox.whereTo(id).then((link) => this.#inbox === inbox && this.#leads(note) && location.assign(link));
  }

  /** Dispatch `tocsin-open`; return whether the browser follows the link. */
  #leads(note) {
    const link = this.#inbox.links.get(note.id) ?? null;
    const goes = this.#emit("tocsin-open", { notification: structuredClone(note), link }, true);
    if (!goes || link) this.#hide(!link);
    return goes && link;
  }

  #toggle(id) {
    const read = !this.#inbox.notes.get(id).read_at;
    this.#inbox.mark(id, read);
    this.#say(read ? this.#words.markedRead : this.#words.markedUnread);
  }

  #remove(id) {
    this.#inbox.remove(id);
    this.#say(this.#words.deleted(this.#inbox.going));
    this.#arm();
  }

  #arm() {
    clearTimeout(this.#undoing);
    const { toast } = this.#parts;
    this.#undoing = setTimeout(() => {
      if (toast.matches(":hover, :focus-within")) return;
      this.#inbox?.commit();
    }, UNDO_MS);
  }

  #undo() {
    const before = this.#shown;
    clearTimeout(this.#undoing);
    this.#inbox.undo();
    this.#draw(true);
    this.#say(this.#words.restored);
    this.#focusRow(this.#shown.find((id) => !before.includes(id)) ?? this.#current);
  }

  #focusRow(id) {
    const row = this.#rows.get(id);
    if (!row) return;
    this.#current = id;
    this.#draw(true);
    row.main.focus({ preventScroll: true });
    row.element.scrollIntoView({ block: "nearest" });
  }

  #inner() { return this.shadowRoot.activeElement; }

  /** Whether a new row would move the rows that the user reads. */
  #busy(tab) {
    if (tab !== this.#tab || this.#pane !== "list" || (this.mode === "bell" && !this.#opened)) return false;
    const { days, body } = this.#parts;
    const edge = Math.max(body.getBoundingClientRect().top, 0);
    return days.getBoundingClientRect().top < edge - 8 || days.contains(this.#inner()) || (matchMedia("(hover: hover)").matches && days.matches(":hover"));
  }

  #key(event) {
    this.#tabbing = event.key === "Tab";
    setTimeout(() => { this.#tabbing = false; });
    if (event.defaultPrevented || event.target.closest("input, select") && event.key !== "Escape") return;
    if (event.key === "Escape") {
      if (this.#pane !== "list") this.#turn("list");
      else if (this.mode === "bell") this.#hide(true);
      else return;
    } else if (event.key === "?" && this.#inbox) {
      this.#turn(this.#pane === "help" ? "list" : "help");
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && (this.#inbox?.going || this.#inbox?.reading)) {
      this.#undo();
    } else if (event.target === this.#parts.panel && this.#pane === "list" && ["ArrowDown", "j", "Home"].includes(event.key) && this.#current) {
      this.#focusRow(this.#current);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #tabbed(event) {
    const other = this.#tab === "all" ? "unread" : "all";
    const tab = { ArrowRight: other, ArrowLeft: other, Home: "all", End: "unread" }[event.key];
    if (tab) {
      this.#choose(tab);
      this.#parts.tabs.find((found) => found.id === `tab-${tab}`).focus();
    } else if (event.key === "ArrowDown" && this.#current) this.#focusRow(this.#current);
    else return;
    event.preventDefault();
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#parts.days.contains(event.target)) return;
    const [shown, id] = [this.#shown, this.#current];
    const at = shown.indexOf(id);
    const go = (to) => this.#focusRow(shown[Math.max(0, Math.min(to, shown.length - 1))]);
    const keys = {
      ArrowDown: () => go(at + 1), j: () => go(at + 1), ArrowUp: () => go(at - 1), k: () => go(at - 1),
      Home: () => go(0), End: () => go(shown.length - 1), e: () => this.#remove(id), Delete: () => this.#remove(id),
      u: () => this.#toggle(id),
    };
    const pressed = Object.hasOwn(keys, event.key) && keys[event.key];
    if (!pressed) return;
    pressed();
    event.preventDefault();
    event.stopPropagation();
  }
}

for (const [name, read] of Object.entries(ATTRIBUTES)) {
  Object.defineProperty(TocsinInbox.prototype, name, {
    get() { return read(this.getAttribute(name)); },
    set(value) { reflect(this, name, value); },
    configurable: true,
    enumerable: true,
  });
}
