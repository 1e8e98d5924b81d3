/**
 * <tocsin-inbox>: the inbox of Tocsin, for any page; see docs/guides/web-inbox.md. Importing it touches no DOM.
 *
 * From top to bottom: the element and its panes; what it shows (Inbox); the stream that all tabs share (Feed); the service
 * (Client); pushes to this browser (BrowserPush); strangers' words made safe; words, icons, style.
 */

const PER_PAGE = 20;
const UNDO_MS = 6_000;
const POLL_MS = 30_000;
const SILENCE_MS = 40_000;
const LIMIT_MS = 20_000;
const LACKING_MS = 5_000;
const RETRY_MS = 3_000;
const LOOK_MS = 300;
const MOST_LINKS = 100;
const MOST_KEPT = 500;
const MOST_BY_ITSELF = 100;
const RENEW_MS = 30_000;
const TICK_MS = 20_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

let warned = false;

// --- The element ---

export class TocsinInbox extends (globalThis.HTMLElement ?? class {}) {
  static observedAttributes = ["src", "token", "mode", "lang", "worker"];

  #inbox = null;
  #provider = null;
  #own = null;
  #lacking = 0;
  #bare = false;
  #starting = false;
  #built = false;
  #parts = {};
  #rows = new Map();
  #days = new Map();
  #tab = "all";
  #pane = "list";
  #current = null;
  #opened = false;
  #told = null;
  #drawing = false;
  #tabbing = false;
  #ticking = 0;
  #saying = 0;
  #undoing = 0;
  #apologising = 0;
  #apology = "";
  #words = WORDS.en;
  #times = null;
  #push = null;
  #near = null;
  #preferences = null;

  get mode() { return this.getAttribute("mode") === "page" ? "page" : "bell"; }
  set mode(value) { reflect(this, "mode", value); }

  /** Called for a token when there is none, when the last was refused, and shortly before it expires. */
  get tokenProvider() { return this.#provider; }
  set tokenProvider(provider) {
    this.#provider = provider;
    if (this.#inbox) this.#inbox.client.provider = provider;
    else this.#start();
  }

  /** The page's own words, in the places of those of the language; see docs/guides/web-inbox.md. */
  get words() { return this.#own; }
  set words(words) {
    const same = words === this.#own;
    this.#own = words;
    if (same || !this.#built) return;
    this.#hide();
    this.#build();
  }

  /** How many are unread; null until it is known. */
  get unread() { return this.#inbox?.shownUnread ?? null; }

  /** Whether the bell's panel is open. */
  get open() { return this.#opened; }
  set open(open) {
    if (!this.#built || this.mode === "page" || open === this.#opened) return;
    if (open) this.#show();
    else this.#hide();
  }

  /** Ask for the list again. */
  async refresh() { await this.#inbox?.refresh(); }

  connectedCallback() {
    for (const name of ["src", "token", "mode", "theme", "worker", "words", "tokenProvider"]) adopt(this, name);
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

  /** What happens around the element: the one listener of page and window. */
  handleEvent(event) {
    const inside = event.composedPath().includes(this);
    switch (event.type) {
      case "pointerdown": if (this.#opened && !inside) this.#hide(); break;
      case "keydown": if (event.key === "Escape" && this.#opened && !event.defaultPrevented) this.#hide(true); break;
      case "scroll": case "resize": if (this.#opened && !inside) this.#place(); break;
      case "pagehide": this.#inbox?.commit(); this.#inbox?.feed?.stop(); break;
      case "freeze": this.#inbox?.feed?.stop(); break; // another tab is to stream, or nobody
      case "pageshow": case "resume": if (event.persisted !== false) this.#inbox?.feed?.start(); break;
      case "message": if (event.data?.tocsin?.opened) this.#inbox?.opened(event.data.tocsin.opened); break;
      default: this.#inbox?.wake(event.type); this.#tick();
    }
  }

  #outside() {
    return [
      [document, "pointerdown"], [document, "visibilitychange"], [document, "scroll", true], [document, "freeze"], [document, "keydown"],
      [document, "resume"], [window, "resize"],
      [window, "online"], [window, "offline"], [window, "pagehide"], [window, "pageshow"],
      ...(navigator.serviceWorker ? [[navigator.serviceWorker, "message"]] : []),
    ];
  }

  /** Begin once all that is being set now is set. */
  #start() {
    if (this.#starting || this.#inbox || !this.#built) return;
    this.#starting = true;
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

  /** Nobody said where the service is, or who the user is. */
  #lacks() {
    if (this.#inbox || !this.isConnected) return;
    const problem = new Refusal(401, "token", "<tocsin-inbox> needs src, and token or tokenProvider.");
    if (!warned) console.warn(problem.message);
    warned = this.#bare = true;
    this.#failed(problem);
    this.#draw();
  }

  /** Load what is looked at now. */
  #look() {
    this.#inbox.load(this.#tab);
    this.#inbox.lookAtPause();
  }

  #stop() {
    this.#inbox?.end();
    this.#inbox = null;
    this.#push = null;
    this.#told = null;
    this.#rows.clear();
    this.#days.clear();
    this.#pane = "list";
    this.#draw();
  }

  #failed(problem, what) {
    if (!(problem instanceof Refusal)) reportError(problem); // a bug of ours
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

  // --- Its frame ---

  #build() {
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet()];
    const { language, locale } = languageOf(this);
    const words = (this.#words = wordsWith(WORDS[language], this.#own ?? {}));
    this.#times = new Times(locale, words);
    const bell = this.mode === "bell";
    this.#opened = false;
    this.#rows.clear();
    this.#days.clear();
    this.#preferences = null;

    const p = (this.#parts = {});
    p.badge = h("span", { class: "badge", part: "badge", "aria-hidden": "true", hidden: true });
    p.bell = h("button", { class: "bell", part: "bell", type: "button", "aria-haspopup": "dialog", "aria-expanded": "false",
      onclick: () => { this.open = !this.#opened; }, onpointerenter: () => this.#inbox?.load(this.#tab), },
      h("slot", { name: "bell" }, icon("bell")), p.badge);
    p.back = iconButton("back", words.back, () => this.#turn("list"));
    p.title = h("h2", { class: "title", part: "title", id: "title" });
    p.readAll = iconButton("checks", words.readAll, () => this.#readAll());
    p.settings = iconButton("sliders", words.preferences, () => this.#turn("preferences"));
    p.close = iconButton("close", words.close, () => this.#hide(true));
    p.close.classList.add("close");
    p.tabs = ["all", "unread"].map((name) => h("button", { class: "tab", part: "tab", type: "button", role: "tab", id: `tab-${name}`,
      "aria-controls": "list", onclick: () => this.#choose(name) }, h("span", {}, words[name]), h("span", { class: "count" })));
    p.notice = h("p", { class: "notice", part: "notice", hidden: true });
    p.pausedText = h("span", {});
    p.paused = h("div", { class: "notice paused", part: "paused", hidden: true }, p.pausedText, textButton("text-button", words.resume, () => this.#inbox.resume()));
    p.pill = textButton("pill", "", () => this.#reveal());
    p.days = h("div", { class: "days" });
    p.more = textButton("text-button", words.more, () => this.#inbox.more(this.#tab));
    [p.pill.part, p.more.part] = ["pill", "more"];
    p.near = h("i", { class: "near" });
    p.foot = h("div", { class: "foot" }, p.near, p.more);
    p.state = h("div", { class: "state" });
    p.emptyText = h("div", {});
    p.empty = h("div", { class: "state", part: "empty", hidden: true }, h("slot", { name: "empty" }, p.emptyText));
    p.list = h("div", { class: "list", part: "list", id: "list", role: "tabpanel", onkeydown: (event) => this.#pressed(event) },
      h("div", { class: "pills" }, p.pill), p.days, p.foot, p.state, p.empty);
    p.pane = h("div", { class: "pane", hidden: true });
    p.body = h("div", { class: "body" }, p.list, p.pane);
    p.toast = h("div", { class: "toast", part: "toast", hidden: true, onpointerenter: () => clearTimeout(this.#undoing),
      onpointerleave: () => this.#arm(), onfocusin: () => clearTimeout(this.#undoing), onfocusout: () => this.#arm() });
    p.tablist = h("div", { class: "tabs", role: "tablist", "aria-label": words.show, onkeydown: (event) => this.#tabbed(event) }, p.tabs);
    p.bar = h("div", { class: "bar", part: "header" }, p.back, p.title, h("slot", { name: "header" }), p.readAll, p.settings,
      bell ? p.close : null);
    p.panel = h("div", { class: "panel", part: "panel", role: bell ? "dialog" : "region", "aria-labelledby": "title", tabindex: "-1",
      lang: locale, hidden: bell, onkeydown: (event) => this.#key(event), onfocusout: (event) => this.#left(event) },
      p.bar, p.tablist, p.notice, p.paused, p.body, p.toast);
    if (bell && "showPopover" in p.panel) p.panel.popover = "manual";
    p.live = h("div", { class: "unseen", role: "status", "aria-live": "polite", lang: locale });
    root.replaceChildren(...(bell ? [p.bell, p.panel, p.live] : [p.panel, p.live]));

    this.#near?.disconnect();
    this.#near = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.#further());
    this.#built = true;
    this.#pane = "list";
    this.#draw();
  }

  #show() {
    const { panel, bell } = this.#parts;
    this.#opened = true;
    panel.hidden = false;
    if (panel.popover) panel.showPopover();
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
    if (panel.popover && panel.matches(":popover-open")) panel.hidePopover();
    panel.hidden = true;
    bell.setAttribute("aria-expanded", "false");
    if (returnFocus) bell.focus();
    this.#tick();
  }

  /** Put the panel under the bell, or above it where there is more room, inside the window. */
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

  /** Close the panel when the focus goes on to the rest of the page, which it would hide, or past its end. */
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

  /** Load more by itself; in place not for ever, so that the rest of the page can be reached. */
  #further() {
    if (this.mode === "bell" || this.#inbox?.lists[this.#tab].ids.length < MOST_BY_ITSELF) this.#inbox?.more(this.#tab, true);
  }

  // --- What is drawn ---

  /** Draw soon; many changes at once are drawn once. */
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
    p.badge.textContent = unread > 99 ? "99+" : String(unread);
    p.bell.setAttribute("aria-label", unread ? `${words.title}, ${words.unreadCount(unread)}` : words.title);
    if (inbox && inbox.shownUnread !== this.#told && inbox.shownUnread !== null) {
      this.#told = inbox.shownUnread;
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
    p.tabs[1].lastChild.textContent = unread ? (unread > 99 ? "99+" : String(unread)) : "";
    const notice = inbox && words.connection[inbox.connection];
    p.notice.hidden = !notice;
    if (notice && p.notice.textContent !== notice) this.#say(notice);
    p.notice.textContent = notice ?? "";
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
    if (!notes.some((note) => note.id === this.#current)) this.#current = notes[0]?.id ?? null;
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
    inbox?.look(notes.map(({ id }) => id));
    keepOnly(this.#rows, new Set(inbox?.notes.keys()));
    keepOnly(this.#days, groups);

    const fresh = list ? inbox.waiting(this.#tab) : 0;
    p.pill.hidden = !fresh;
    if (fresh) p.pill.textContent = words.fresh(fresh > 99 ? "99+" : fresh);
    const failed = list?.error ?? (this.#bare ? { status: 401 } : null);
    p.empty.hidden = !(list?.loaded && !notes.length && !fresh && !list.next && !failed);
    if (!p.empty.hidden) p.emptyText.replaceChildren(icon(this.#tab === "all" ? "bell" : "checks"), ...words.empty[this.#tab].map((text) => h("p", {}, text)));
    p.foot.hidden = !(list?.loaded && list.next && !failed);
    if (list?.loading || p.foot.hidden) this.#near.unobserve(p.near);
    else this.#near.observe(p.near); // anew after each page, as the end may still be in sight
    p.more.textContent = list?.loading ? words.loading : words.more;
    p.state.hidden = !(failed || (list && !list.loaded) || !inbox);
    p.list.setAttribute("aria-busy", String(Boolean(list?.loading)));
    const state = failed ? `failed ${failed.status}` : p.state.hidden ? "" : "loading";
    if (p.state.dataset.is === state) return;
    p.state.dataset.is = state;
    p.state.replaceChildren(...(failed
      ? [h("p", { role: "alert" }, problemOf(words, failed)), inbox && textButton("button", words.retry, () => inbox.retry(this.#tab))].filter(Boolean)
      : state ? [h("p", {}, words.loading)] : []));
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
      });
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

  /** Keep times and days right while somebody can see them. */
  #tick() {
    clearInterval(this.#ticking);
    if (document.visibilityState !== "visible" || !this.#built || (this.mode === "bell" && !this.#opened)) return;
    this.#ticking = setInterval(() => this.isConnected ? this.#draw() : clearInterval(this.#ticking), TICK_MS);
    this.#draw();
  }

  // --- What its user does ---

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
    this.#current = this.#inbox.shown(this.#tab)[0]?.id ?? null;
    this.#draw(true);
    this.#parts.panel.scrollIntoView?.({ block: "nearest" });
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
    const elsewhere = event.type === "auxclick" || event.ctrlKey || event.metaKey || event.shiftKey;
    if (elsewhere) return;
    const inbox = this.#inbox;
    if (inbox.links.has(id)) return void (this.#leads(note) || event.preventDefault());
    event.preventDefault(); // where it leads is still being asked
    inbox.whereTo(id).then((link) => this.#inbox === inbox && this.#leads(note) && location.assign(link));
  }

  /** Tell the page that somebody opens it; return whether the browser is to go there. */
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
    const [shown, had] = [this.#inbox.shown(this.#tab), this.#inner()];
    const at = shown.findIndex((note) => note.id === id);
    const next = shown[at + 1] ?? shown[at - 1];
    this.#inbox.remove(id);
    this.#say(this.#words.deleted(this.#inbox.going));
    this.#draw(true);
    this.#arm();
    if (had && next) this.#focusRow(next.id);
    else if (had) this.#parts.panel.focus();
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
    const before = new Set(this.#inbox.shown(this.#tab));
    clearTimeout(this.#undoing);
    this.#inbox.undo();
    this.#draw(true);
    this.#say(this.#words.restored);
    this.#focusRow((this.#inbox.shown(this.#tab).find((note) => !before.has(note)) ?? {}).id ?? this.#current);
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

  /** Whether something new would move what somebody is reading. */
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
    const turn = { ArrowRight: 1, ArrowLeft: 1, Home: 0, End: 0 }[event.key];
    if (turn !== undefined) {
      const tab = event.key === "Home" ? "all" : event.key === "End" ? "unread" : this.#tab === "all" ? "unread" : "all";
      this.#choose(tab);
      this.#parts.tabs.find((found) => found.id === `tab-${tab}`).focus();
    } else if (event.key === "ArrowDown" && this.#current) this.#focusRow(this.#current);
    else return;
    event.preventDefault();
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#parts.days.contains(event.target)) return;
    const [shown, id] = [this.#inbox.shown(this.#tab), this.#current];
    const at = shown.findIndex((note) => note.id === id);
    const go = (to) => this.#focusRow(shown[Math.max(0, Math.min(to, shown.length - 1))]?.id);
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

/** One notification: made once, brought up to date as often as it takes, where it changed: there may be thousands. */
function makeRow(note, words, times, does) {
  const { id } = note;
  const at = timeOf(note.created_at);
  const time = h("time", { class: "time", part: "time", id: `time-${id}`, datetime: at.toISOString(), title: times.full(at) });
  const state = h("span", { class: "unseen", id: `state-${id}` });
  const sender = senderOf(note);
  const from = sender && h("div", { class: "sender", part: "sender", id: `from-${id}` }, `${words.sender} `, h("bdi", {}, sender));
  const text = h("div", { class: "text", part: "text", id: `text-${id}`, onfocusin: () => unfold(true), onclick: (event) => event.target.closest("a") && does.read() });
  const fold = textButton("text-button fold", words.unfold, () => unfold(!open));
  const main = h("a", { class: "main", part: "item", "aria-labelledby": `state-${id} from-${id} text-${id} time-${id}`,
    onclick: (event) => {
      does.open(event);
      if (!main.href && !fold.hidden) unfold(true);
    },
    onauxclick: (event) => event.button === 1 && does.open(event),
    onkeydown: (event) => {
      if (main.href || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      main.click();
    } });
  const toggle = h("button", { class: "icon-button dot", type: "button", onclick: does.toggle }, h("i", {}));
  const remove = iconButton("trash", words.remove, does.remove);
  remove.classList.add("remove");
  const element = h("li", { class: "row", part: "row", onfocusin: does.focus }, main, state, avatar(note),
    h("div", { class: "said" }, from, text, h("div", { class: "below" }, time, fold)), h("div", { class: "actions" }, toggle, remove));
  let [drawn, open] = [{}, false];
  const stops = () => {
    for (const control of [main, fold, toggle, remove, ...text.querySelectorAll("a")]) control.tabIndex = drawn.current && !control.hidden ? 0 : -1;
  };
  const unfold = (wide) => {
    open = wide;
    element.classList.toggle("open", open);
    fold.textContent = open ? words.fold : words.unfold;
  };
  fits.set(text, () => {
    if (open) return;
    fold.hidden = ![...text.children].some((part) => part.scrollHeight > part.clientHeight + 1);
    stops();
  });
  return {
    element,
    main,
    day: times.day(at),
    update({ read_at, message_formatted }, link, current, moment) {
      const now = { unread: !read_at, message_formatted, link: link ?? null, current, moment };
      const before = drawn;
      const changed = (name) => before[name] !== now[name];
      drawn = now;
      if (changed("message_formatted")) {
        text.replaceChildren(...messageOf({ ...note, message_formatted }));
        fold.hidden = true;
        fitted(text);
      }
      if (changed("moment")) put(time, times.short(at));
      if (changed("unread")) {
        element.classList.toggle("unread", now.unread);
        state.textContent = now.unread ? words.isUnread : "";
        label(toggle, now.unread ? words.markRead : words.markUnread);
      }
      if (changed("link")) {
        reflect(main, "href", link);
        reflect(main, "role", link ? null : "button");
      }
      if (changed("current") || changed("message_formatted")) stops();
    },
  };
}

/** What finds out whether a message is shown in whole, as often as the room that it has changes. */
const fits = new WeakMap();
let fitter;

function fitted(text) {
  fitter ??= new ResizeObserver((entries) => entries.forEach(({ target }) => fits.get(target)?.()));
  fitter.unobserve(text);
  fitter.observe(text);
}

const namesOf = (person) => [person?.first_name, person?.last_name].filter((name) => typeof name === "string" && name.trim());

/** Who wrote a message of their own words, which is not to be taken for one of the service's. */
function senderOf({ type, data }) {
  const user = type === "custom" && data?.user;
  return user ? namesOf(user).join(" ") || `#${user.id}` : null;
}

/** The person's picture where there is one that may be shown; else their initials; else a bell. */
function avatar({ data }) {
  const names = namesOf(data?.user ?? data?.contact);
  const initials = names.map((name) => firstOf(name.trim())).join("").toLocaleUpperCase();
  const place = h("span", { class: initials ? "avatar person" : "avatar", part: "avatar", "aria-hidden": "true" });
  set(place, "--_hue", [...names.join(" ")].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 0));
  const letters = initials ? h("bdi", {}, initials) : icon("bell");
  const picture = pictureOf(data?.user?.profile_picture);
  if (!picture) return place.append(letters), place;
  place.append(h("img", { src: picture, alt: "", loading: "lazy", referrerPolicy: "no-referrer", decoding: "async",
    onerror: () => place.replaceChildren(letters) }));
  return place;
}

/** The first letter as people see it. */
const firstOf = (text) => (Intl.Segmenter ? [...new Intl.Segmenter().segment(text)][0].segment : [...text][0]);

function help(words) {
  const keys = [["j", "↓"], ["k", "↑"], ["Home", "End"], ["Enter"], ["u"], ["e"], ["Ctrl Z"], ["?"], ["Esc"]];
  return h("dl", { class: "keys" }, keys.flatMap((names, i) => [
    h("dt", {}, names.map((name) => h("kbd", {}, name))), h("dd", {}, words.keys[i]),
  ]));
}

// --- The pane of preferences ---

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

class Preferences {
  #client;
  #push;
  #words;
  #times;
  #say;
  #failed;
  #changed;
  #kinds = [];
  #now = null;
  #select = null;
  #zoned = false;
  #saving = Promise.resolve();
  #alert = h("p", { class: "problem", role: "alert", hidden: true });

  constructor(client, push, words, times, say, failed, changed) {
    [this.#client, this.#push, this.#words, this.#times, this.#say, this.#failed, this.#changed] = [client, push, words, times, say, failed, changed];
    this.element = h("div", { class: "preferences", part: "preferences" });
  }

  async load() {
    const words = this.#words;
    this.element.replaceChildren(h("p", { class: "state" }, words.loading));
    try {
      const [kinds, now, push] = await Promise.all([
        this.#client.json("GET", "/notifications/kinds"), this.#client.json("GET", "/notifications/preferences"),
        this.#push?.state() ?? null,
      ]);
      this.#kinds = kinds.data;
      this.#now = now;
      this.#changed(now);
      this.#show(push);
    } catch (problem) {
      this.#failed(problem);
      this.element.replaceChildren(h("div", { class: "state" }, h("p", { role: "alert" }, problemOf(words, problem)),
        textButton("button", words.retry, () => this.load())));
    }
  }

  #show(push) {
    this.#pause = h("div", {});
    this.#quiet = h("div", {});
    this.#drawPause();
    this.#drawQuiet();
    this.element.replaceChildren(this.#alert, ...(push ? [this.#browser(push)] : []), this.#pause, this.#quiet, this.#zone(), ...this.#groups());
  }

  #pause = null;
  #quiet = null;

  /** Send a change, one after the other; what is refused is put back as it was, with the reason. */
  #save(change, redraw) {
    this.#saving = this.#saving.then(async () => {
      try {
        this.#now = await this.#client.json("PATCH", "/notifications/preferences", change);
        this.#changed(this.#now);
        this.#alert.hidden = true;
        this.#say(this.#words.saved);
      } catch (problem) {
        this.#failed(problem);
        this.#warn(problem.code === "validation.prohibited" ? this.#words.locked : `${this.#words.failed.save} ${problem.status ? problem.message : ""}`);
      }
      redraw();
    });
  }

  #warn(text) {
    this.#alert.textContent = text;
    this.#alert.hidden = false;
  }

  #browser(state) {
    const words = this.#words;
    const input = h("input", { type: "checkbox", role: "switch", id: "push-here", class: "switch", part: "switch", checked: state === "on", disabled: state === "denied",
      onchange: async () => {
        const wanted = input.checked;
        try {
          await (wanted ? this.#push.on() : this.#push.off());
        } catch (problem) {
          this.#failed(problem);
        }
        const now = await this.#push.state();
        input.checked = now === "on";
        input.disabled = now === "denied";
        hint.textContent = now === "denied" ? words.pushDenied : (now === "on") !== wanted ? words.pushFailed : words.pushHint;
      } });
    input.setAttribute("aria-describedby", "push-hint");
    const hint = h("p", { class: "hint", id: "push-hint" }, state === "denied" ? words.pushDenied : words.pushHint);
    return h("section", {}, h("div", { class: "setting" }, h("label", { for: "push-here" }, words.pushHere), input), hint);
  }

  #drawPause() {
    const words = this.#words;
    const until = this.#now.paused_until && timeOf(this.#now.paused_until);
    const had = this.#pause.contains(this.element.getRootNode().activeElement);
    const set = (moment) => this.#save({ paused_until: moment && moment.toISOString() }, () => this.#drawPause());
    const button = (text, moment) => textButton("button", text, () => set(moment()));
    const morning = new Date();
    morning.setDate(morning.getDate() + 1);
    morning.setHours(8, 0, 0, 0);
    this.#pause.replaceChildren(h("section", {}, h("h3", {}, words.pause), ...(until > Date.now()
      ? [h("p", { class: "hint" }, words.pausedUntil(this.#times.moment(until))), h("div", { class: "buttons" }, button(words.resume, () => null))]
      : [h("p", { class: "hint" }, words.pauseHint), h("div", { class: "buttons" }, button(words.pauseHour, () => new Date(Date.now() + 3_600_000)),
        button(words.pauseTomorrow(this.#times.clock(morning)), () => morning))])));
    if (had) this.#pause.querySelector("button").focus();
  }

  #drawQuiet() {
    const words = this.#words;
    const windows = structuredClone(this.#now.quiet_hours ?? []);
    const had = this.#quiet.contains(this.element.getRootNode().activeElement);
    const redraw = () => this.#drawQuiet();
    const save = () => {
      if (windows.some(({ from, to }) => !from || !to)) return;
      this.#save({ quiet_hours: windows }, redraw);
    };
    const clock = (window, name) => h("label", { class: "clock" }, words[name],
      h("input", { type: "time", value: window[name], required: true, onchange: (event) => { window[name] = event.target.value; save(); } }));
    const day = (window, name, i) => {
      const [short, long] = this.#times.weekday(i);
      return h("label", { class: "day-of-week", title: long }, h("input", { type: "checkbox", checked: !window.days?.length || window.days.includes(name), "aria-label": long,
        onchange: (event) => {
          const days = window.days?.length ? window.days : DAYS;
          window.days = DAYS.filter((other) => (other === name ? event.target.checked : days.includes(other)));
          if (window.days.length) return save();
          redraw();
          this.#warn(words.oneDay);
        } }), h("span", { "aria-hidden": "true" }, short));
    };
    const rows = windows.map((window, at) => h("fieldset", { class: "quiet" }, h("legend", { class: "unseen" }, words.quiet),
      h("div", { class: "setting" }, clock(window, "from"), clock(window, "to")),
      h("div", { class: "week" }, DAYS.map((name, i) => day(window, name, i)), iconButton("trash", words.removeQuiet, () => { windows.splice(at, 1); save(); }))));
    const add = textButton("button", words.addQuiet, () => {
      windows.push({ days: DAYS, from: "20:00", to: "07:00" });
      this.#save({ quiet_hours: windows }, () => { redraw(); this.#adoptZone(); });
    });
    add.disabled = windows.length >= 20;
    this.#quiet.replaceChildren(h("section", {}, h("h3", {}, words.quiet), h("p", { class: "hint" }, words.quietHint), ...rows, h("div", { class: "buttons" }, add)));
    if (had) add.focus();
  }

  #zone() {
    const zones = new Set([this.#now.time_zone, "UTC", ...(Intl.supportedValuesOf?.("timeZone") ?? [])]);
    this.#select = h("select", { id: "zone", onchange: () => this.#saveZone(this.#select.value) },
      [...zones].sort().map((zone) => h("option", { value: zone }, zone.replaceAll("_", " "))));
    this.#select.value = this.#now.time_zone;
    return h("section", {}, h("div", { class: "setting" }, h("label", { for: "zone" }, this.#words.zone), this.#select));
  }

  #saveZone(zone) {
    this.#zoned = true;
    this.#save({ time_zone: zone }, () => { this.#select.value = this.#now.time_zone; });
  }

  /** The first quiet hours go by the clock of this browser, where no other was chosen. */
  #adoptZone() {
    const here = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const chosen = this.#zoned || this.#now.time_zone !== "UTC" || this.#now.quiet_hours.length !== 1;
    if (!chosen && here !== "UTC") this.#saveZone(here);
  }

  #groups() {
    const groups = new Map();
    for (const kind of this.#kinds) groups.set(kind.group, [...(groups.get(kind.group) ?? []), kind]);
    return [...groups.values()].map((kinds) => {
      const channels = ["push", "web_push"];
      const head = h("tr", {}, h("th", { scope: "col" }, h("h3", {}, kinds[0].group_label)), channels.map((name) => h("th", { scope: "col" }, this.#words.channels[name])));
      return h("section", {}, h("table", { "aria-label": kinds[0].group_label }, h("thead", {}, head),
        h("tbody", {}, kinds.map((kind) => h("tr", {}, h("th", { scope: "row" }, kind.label), channels.map((name) => h("td", {}, this.#switch(kind, name))))))));
    });
  }

  #switch(kind, channel) {
    if (!kind.channels.includes(channel)) return null;
    const locked = Boolean(kind.locked?.[channel]);
    const input = h("input", { type: "checkbox", role: "switch", class: "switch", part: "switch", disabled: locked, checked: this.#now.kinds[kind.name]?.[channel] === true,
      "aria-label": `${kind.label}: ${this.#words.channels[channel]}`,
      onchange: () => this.#save({ kinds: { [kind.name]: { [channel]: input.checked } } }, () => { input.checked = this.#now.kinds[kind.name]?.[channel] === true; }) });
    if (!locked) return input;
    return h("span", { class: "locked", title: this.#words.locked }, icon("lock"), input, h("span", { class: "unseen" }, this.#words.locked));
  }
}

// --- What is shown of an inbox ---

/** The notifications that were loaded, and what becomes of them; it knows nothing of the page. */
class Inbox {
  notes = new Map();
  links = new Map();
  /** What is being deleted: `undoable` for a moment, then `sent`. */
  deleting = new Map();
  /** What is marked as read by "all", as long as it can be undone. */
  reading = null;
  pausedUntil = 0;
  lists = { all: emptyList(), unread: emptyList() };
  unread = null;
  connection = "connecting";
  feed = null;
  #on;
  #replay = [];
  #linksThere = true;
  #wanted = new Set();
  #looking = null;
  #kept;
  #sending = false;
  #ended = false;
  #patience = 0;
  #nudge = null;

  constructor(client, on) {
    this.client = client;
    this.#on = on;
    this.#kept = new Kept(client);
  }

  /** What the badge says: without what is about to be deleted, or to be read. */
  get shownUnread() {
    if (this.unread === null) return null;
    const open = [...this.notes.values()].filter(({ read_at }) => !read_at);
    if (this.reading) return open.filter(({ id }) => !this.deleting.has(id)).length;
    return Math.max(0, this.unread - open.filter(({ id }) => this.deleting.has(id)).length);
  }

  /** How many deletions can be undone. */
  get going() { return [...this.deleting.values()].filter((state) => state === "undoable").length; }

  /** Go live as soon as there is a token: a provider that fails is asked again, one that has none when somebody looks. */
  async begin() {
    for (let failures = 0; !this.feed && !this.#ended; failures += 1) {
      try {
        await this.client.credentials();
      } catch (problem) {
        this.#failed(problem);
        await new Promise((resolve) => {
          this.#nudge = resolve;
          if (problem.status !== 401) setTimeout(resolve, Math.min(30_000, 1_000 * 2 ** failures));
        });
        continue;
      }
      if (this.#ended) return;
      this.feed = new Feed(this.client, (event, data) => this.#heard(event, data));
      this.feed.start();
      for (const [tab, list] of Object.entries(this.lists)) if (list.error) this.load(tab, true);
    }
  }

  /** Somebody looks, or the network is back. */
  wake(why) {
    if (this.feed) this.feed.wake(why);
    else this.#nudge?.();
  }

  end() {
    this.commit();
    this.#ended = true;
    clearTimeout(this.#patience);
    this.feed?.stop();
  }

  /** Go on with a new token of the same user. */
  renewed(token) {
    this.client.token = token;
    if (this.feed) this.feed.restart();
    else this.#nudge?.();
    for (const [tab, list] of Object.entries(this.lists)) if (list.error) this.retry(tab);
  }

  shown(tab) {
    const hidden = tab === "unread" ? this.reading?.ids : null;
    return this.lists[tab].ids.filter((id) => !this.deleting.has(id) && !hidden?.has(id)).map((id) => this.notes.get(id)).filter(Boolean);
  }

  /** How many have come that are not shown yet. */
  waiting(tab) {
    const { fresh, other } = this.lists[tab];
    return (other ? other.ids : fresh).filter((id) => !this.deleting.has(id)).length;
  }

  async load(tab, again = false) {
    const list = this.lists[tab];
    if (list.loading || (list.loaded && !again)) return list.loading;
    list.loading = this.#load(tab).catch((problem) => {
      list.error = list.loaded ? null : problem;
      this.#failed(problem);
    }).finally(() => {
      list.loading = null;
      if (!Object.values(this.lists).some((other) => other.loading)) {
        for (const [event, data] of this.#replay.splice(0)) this.#apply(event, data, true);
      }
      this.#changed();
    });
    this.#changed();
    return list.loading;
  }

  async #load(tab) {
    const list = this.lists[tab];
    const page = await this.client.json("GET", `/notifications?per_page=${PER_PAGE}${tab === "unread" ? "&show=unread" : ""}`);
    this.#take(page.data);
    this.unread = page.pagination.unread;
    this.#merge(tab, page);
    Object.assign(list, { loaded: true, error: null });
    if (this.feed) this.feed.resume();
    else this.#nudge?.();
  }

  /** Load the next page; by itself (as one scrolls) not again after a failure. */
  async more(tab, byItself = false) {
    const list = this.lists[tab];
    if (list.loading || !list.loaded || !list.next || (byItself && list.stuck)) return;
    list.loading = (async () => {
      const page = await this.client.json("GET", `/notifications${list.next}`);
      this.#take(page.data);
      const had = new Set([...list.ids, ...list.fresh]);
      list.ids.push(...page.data.map(({ id }) => id).filter((id) => !had.has(id)));
      list.next = nextOf(page);
      list.stuck = false;
    })().catch((problem) => {
      list.stuck = true;
      this.#failed(problem, "load");
    }).finally(() => {
      list.loading = null;
      this.#changed();
    });
    this.#changed();
    await list.loading;
  }

  async retry(tab) {
    this.lists[tab].error = null;
    await this.load(tab, true);
  }

  async refresh() {
    await Promise.all(Object.keys(this.lists).filter((tab) => this.lists[tab].loaded).map((tab) => this.load(tab, true)));
  }

  /** Show what has come and waited. */
  reveal(tab) {
    const list = this.lists[tab];
    if (list.other) Object.assign(list, list.other);
    else list.ids.unshift(...list.fresh);
    Object.assign(list, { fresh: [], other: null });
    this.#changed();
  }

  /** What was read on the tab of unread ones stays there until it is left. */
  leave(tab) {
    if (tab === "unread") this.lists.unread.ids = this.lists.unread.ids.filter((id) => !this.notes.get(id)?.read_at);
  }

  async mark(id, read) {
    await this.#readThem();
    const note = this.notes.get(id);
    if (!note || Boolean(note.read_at) === read) return;
    const before = note.read_at;
    this.#set(id, read ? now() : null);
    this.#changed();
    if (read) this.#on.settled([id]);
    try {
      await this.#send(id, read ? "read" : "unread");
    } catch (problem) {
      this.#set(id, before);
      this.#failed(problem, "save");
      this.#changed();
    }
  }

  /** A push was opened in this browser. */
  opened(id) {
    if (this.notes.has(id)) this.mark(id, true);
    else this.#send(encodeURIComponent(id), "read").catch(() => {});
  }

  /** Mark as read what is shown, and nothing newer; a moment later for good. */
  readAll(tab) {
    const [newest] = this.shown(tab);
    if (!newest) return;
    this.commit();
    this.reading = { tab, newest, ids: new Set(this.#readUpTo(newest.id).map(({ id }) => id)) };
    this.#changed();
  }

  async #readThem() {
    if (!this.reading) return;
    const { unread, reading: { tab, newest, ids } } = this;
    this.unread = this.shownUnread;
    this.reading = null;
    this.#kept.put({ ...Object.fromEntries([...ids].map((id) => [id, null])), up_to: newest.id });
    try {
      await this.client.ask("PUT", "/notifications/read", { up_to: newest.id }, { keepalive: true });
      this.#kept.done("up_to", newest.id);
      this.#on.settled([...ids]);
      this.lists.unread.ids = this.lists.unread.ids.filter((id) => tab !== "unread" || !ids.has(id));
      if (this.connection !== "live" || tab === "unread") await this.load(tab, true);
    } catch (problem) {
      if (!problem.status) return this.#on.kept();
      this.#kept.done("up_to", newest.id);
      this.#reset(ids, null);
      this.unread = unread;
      this.#failed(problem, "save");
      this.#changed();
    }
  }

  /** Take it away from sight; a moment later for good. */
  remove(id) {
    this.#readThem();
    this.deleting.set(id, "undoable");
    this.#changed();
  }

  undo() {
    for (const [id, state] of this.deleting) if (state === "undoable") this.deleting.delete(id);
    if (this.reading) this.#reset(this.reading.ids, null);
    this.reading = null;
    this.#changed();
  }

  /** Do for good what could be undone so far. */
  commit() {
    this.#readThem();
    for (const [id, state] of this.deleting) if (state === "undoable") this.#delete(id);
    this.#changed();
  }

  async #delete(id) {
    this.deleting.set(id, "sent");
    try {
      if (await this.#send(id, "deleted")) this.#drop([id]);
    } catch (problem) {
      this.deleting.delete(id);
      this.#failed(problem, "remove");
      this.#changed();
    }
  }

  /** Send a mark; return whether it arrived. Where the service is not reached, the mark is kept and sent later. */
  async #send(id, mark) {
    this.#kept.put({ [id]: mark });
    try {
      await this.client.ask(...MARKS[mark](id), undefined, { keepalive: true });
    } catch (problem) {
      if (!problem.status) return this.#on.kept(), false;
      this.#kept.done(id, mark);
      if (problem.status !== 404 && problem.status !== 410) throw problem;
      this.#drop([id]);
    }
    this.#kept.done(id, mark);
    return true;
  }

  /** Send what was kept. */
  async #sendKept() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      for (const [id, mark] of Object.entries(this.#kept.all)) { // in the order in which they were made
        const call = id === "up_to" ? ["PUT", "/notifications/read", { up_to: mark }] : MARKS[mark]?.(id);
        if (call) await this.client.ask(...call).catch(passed);
        this.#kept.done(id, mark);
        if (mark === "deleted") this.#drop([id]);
      }
    } catch {
      // not yet: when the service is there again
    } finally {
      this.#sending = false;
    }
  }

  /** Learn until when this user's pushes are paused; what fails is left as it was. */
  async lookAtPause() {
    const found = await this.client.json("GET", "/notifications/preferences").catch(() => null);
    if (found) this.paused(found);
  }

  async resume() {
    try {
      this.paused(await this.client.json("PATCH", "/notifications/preferences", { paused_until: null }));
    } catch (problem) {
      this.#failed(problem, "save");
    }
  }

  paused({ paused_until: until }) {
    this.pausedUntil = until ? timeOf(until) : 0;
    this.#changed();
  }

  // --- Where they lead ---

  /** Ask where these lead, which are shown: one question for all that come within a moment. */
  look(ids) {
    for (const id of ids) if (!this.links.has(id)) this.#wanted.add(id);
    if (!this.#linksThere || !this.#wanted.size || this.#looking) return;
    this.#looking = wait(this.links.size ? LOOK_MS : 0).then(() => this.#look());
  }

  async #look() {
    if (this.#ended) return;
    const ids = [...this.#wanted].slice(0, MOST_LINKS);
    let pause = 0;
    try {
      const { data } = await this.client.json("GET", `/notifications/links?ids=${ids.join(",")}`);
      for (const id of ids) {
        this.links.set(id, linkOf(data?.[id]));
        this.#wanted.delete(id);
      }
    } catch (problem) {
      if (problem.status === 404) this.#linksThere = false;
      pause = POLL_MS;
    }
    this.#changed();
    wait(pause).then(() => { this.#looking = null; this.look([]); });
  }

  /** Where one leads, once that is known; a service that can't tell, or not soon, holds nothing up. */
  async whereTo(id) {
    const late = wait(5_000).then(() => { if (!this.links.has(id)) this.links.set(id, null); });
    while (!this.links.has(id) && this.#linksThere) {
      this.look([id]);
      await Promise.race([Promise.all([this.#looking, wait(50)]), late]);
    }
    return this.links.get(id) ?? null;
  }

  // --- What the service tells ---

  #heard(event, data) {
    if (this.#ended) return;
    if (Object.values(this.lists).some((list) => list.loading) && !["state", "fresh", "resync"].includes(event)) this.#replay.push([event, data]);
    this.#apply(event, data);
    this.#changed();
  }

  #apply(event, data, again = false) {
    switch (event) {
      case "state": return this.#connected(data), data === "live" && void this.#sendKept();
      case "refused": return this.#failed(new Refusal(data.status, data.code, data.message));
      case "fresh": case "resync": return void this.refresh();
      case "count": this.unread = data.unread; return;
      case "page": return this.#polled(data);
      case "notification": return this.#arrived(data, again);
      case "unread": return this.#reset([data.id], null);
      case "read":
        if (data.all) return void this.#readUpTo(data.up_to);
        for (const id of data.ids ?? [data.id]) this.reading?.ids.delete(id);
        this.#reset(data.ids ?? [data.id], now());
        return this.#on.settled(data.ids ?? [data.id]);
      case "deleted":
        this.#drop(data.ids ?? [data.id], false);
        return this.#on.settled(data.ids ?? [data.id]);
    }
  }

  /** A short interruption is nobody's business. */
  #connected(state) {
    clearTimeout(this.#patience);
    if (state !== "reconnecting" || this.connection === "offline") this.connection = state;
    else this.#patience = setTimeout(() => { this.connection = state; this.#changed(); }, 3_000);
  }

  #arrived(note, again) {
    const known = this.notes.has(note.id);
    this.#take([note]);
    if (known && again) return;
    if (!known && !note.read_at) this.#on.arrived(1);
    this.#insert([note]);
  }

  #insert(notes) {
    for (const [tab, list] of Object.entries(this.lists)) {
      const had = new Set([...list.ids, ...list.fresh, ...(list.other?.ids ?? [])]);
      const come = notes.filter(({ id, read_at }) => !had.has(id) && (tab === "all" || !read_at)).map(({ id }) => id);
      if (!list.loaded || !come.length) continue;
      if (list.other) list.other.ids.unshift(...come);
      else (list.fresh.length || this.#on.busy(tab) ? list.fresh : list.ids).unshift(...come);
    }
  }

  #polled(page) {
    const come = page.data.filter(({ id }) => !this.notes.has(id));
    const gone = page.data.filter(({ id, read_at }) => read_at && !this.notes.get(id)?.read_at).map(({ id }) => id);
    const first = this.unread === null;
    const more = page.pagination.unread - (this.unread ?? 0);
    this.unread = page.pagination.unread;
    this.#sendKept();
    if (!first && more > 0) this.#on.arrived(more);
    this.#on.settled(gone);
    if (!this.lists.all.loaded && !this.lists.unread.loaded) return;
    this.#take(page.data);
    if (this.lists.all.loaded) this.#merge("all", page);
    this.#insert(come);
  }

  /** Make a list begin as this first page does, keeping what lies behind it, and holding back what would move it. */
  #merge(tab, page) {
    const list = this.lists[tab];
    const ids = page.data.map(({ id }) => id);
    const known = new Map(list.ids.map((id, at) => [id, at]));
    const joint = ids.findIndex((id) => known.has(id));
    const busy = list.loaded && list.ids.length > 0 && this.#on.busy(tab);
    if (joint < 0) {
      const whole = { ids, next: nextOf(page) };
      if (busy && ids.length) list.other = whole;
      else Object.assign(list, whole, { fresh: [], other: null });
      return;
    }
    const end = Math.max(...ids.filter((id) => known.has(id)).map((id) => known.get(id))) + 1;
    const tail = nextOf(page) ? list.ids.slice(end) : [];
    Object.assign(list, { ids: [...(busy ? ids.slice(joint) : ids), ...tail], fresh: busy ? ids.slice(0, joint) : [], other: null });
    if (!tail.length) list.next = nextOf(page);
  }

  /** Read this one and everything older; none means all. Return those whose state it changed. */
  #readUpTo(id) {
    const last = this.notes.get(id);
    if (id && !last) return this.refresh(), [];
    const upTo = Object.values(this.lists).flatMap(({ ids, fresh, other }) => {
      const order = [...(other?.ids ?? fresh), ...ids]; // all that is known, the newest first
      return order.includes(id) ? order.slice(order.indexOf(id)) : [];
    });
    const read = new Set(upTo);
    const changed = [...this.notes.values()].filter((note) => !note.read_at && (!id || read.has(note.id) || note.created_at < last.created_at));
    for (const note of changed) note.read_at = now();
    return changed;
  }

  #reset(ids, read) {
    for (const id of ids) {
      const note = this.notes.get(id);
      if (note && Boolean(note.read_at) !== Boolean(read)) note.read_at = read;
    }
  }

  #set(id, read) {
    const note = this.notes.get(id);
    if (!note) return;
    if (this.unread !== null && Boolean(note.read_at) !== Boolean(read)) this.unread = Math.max(0, this.unread + (read ? -1 : 1));
    note.read_at = read;
  }

  #drop(ids, count = true) {
    const gone = new Set(ids);
    for (const id of ids) {
      const note = this.notes.get(id);
      if ((count || this.deleting.has(id)) && note && !note.read_at && this.unread !== null) this.unread = Math.max(0, this.unread - 1);
      this.notes.delete(id);
      this.deleting.delete(id);
    }
    for (const list of Object.values(this.lists)) {
      list.ids = list.ids.filter((id) => !gone.has(id));
      list.fresh = list.fresh.filter((id) => !gone.has(id));
      if (list.other) list.other.ids = list.other.ids.filter((id) => !gone.has(id));
    }
    this.#changed();
  }

  /** Take over what the service has, but for what it has not been told yet. */
  #take(notes) {
    const marks = this.#kept.all;
    const { newest, ids } = this.reading ?? {};
    for (const note of notes) {
      const mark = marks[note.id];
      if (mark === "deleted") this.deleting.set(note.id, "sent");
      if (mark === "unread") note.read_at = null;
      if (newest && !note.read_at && (ids.has(note.id) || note.created_at < newest.created_at)) ids.add(note.id);
      if (mark === "read" || ids?.has(note.id)) note.read_at ??= now();
      this.notes.set(note.id, note);
    }
  }

  #changed() {
    if (!this.#ended) this.#on.changed();
  }

  #failed(problem, what) {
    if (!this.#ended) this.#on.failed(problem, what);
  }
}

/** How the service is told of a mark. */
const MARKS = {
  read: (id) => ["PUT", `/notifications/${id}/read`],
  unread: (id) => ["PUT", `/notifications/${id}/unread`],
  deleted: (id) => ["DELETE", `/notifications/${id}`],
};

/** What the service refuses for good is done with; else it is to be asked again. */
function passed(problem) {
  if (!(problem.status >= 400 && problem.status < 500) || [401, 408, 429].includes(problem.status)) throw problem;
}

/** Marks that the service may not have been told of: by the notification, the last of each, as long as the page may keep them. */
class Kept {
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

  /** Keep these; null takes one away. */
  put(marks) {
    const all = Object.entries({ ...this.all, ...marks }).filter(([, mark]) => mark).slice(-MOST_KEPT);
    const text = all.length ? JSON.stringify(Object.fromEntries(all)) : null;
    this.#here = this.#name && store(this.#name, text) === text ? {} : Object.fromEntries(all);
  }

  done(id, mark) {
    if (this.all[id] === mark) this.put({ [id]: null });
  }
}

const emptyList = () => ({ ids: [], fresh: [], other: null, next: null, loaded: false, loading: null, error: null, stuck: false });

/** The query of the next page. Its address is the service's own idea of where it is: ours is what reaches it. */
const nextOf = (page) => (page.pagination.urls.next ? new URL(page.pagination.urls.next, "http://x").search : null);

// --- The live stream, one for all tabs of a user ---

class Feed {
  #client;
  #report;
  #stop = null;
  #turn = null;
  #channel = null;
  #lastId = null;
  #state = "connecting";
  #count = null;
  #silence = 0;
  #nudge = null;
  #rank = Math.random();

  constructor(client, report) {
    this.#client = client;
    this.#report = report;
  }

  /** Take part: one tab streams for all others. Where tabs can't speak with each other, each streams by itself. */
  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    const user = this.#client.identity;
    if (!user || !globalThis.BroadcastChannel) return void this.#lead();
    const name = `tocsin:${this.#client.src}:${user}`;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#heard(data);
    this.#join(name);
    this.#ask();
  }

  /** How long another tab may take to answer; without locks (on plain http) whoever waited first leads. */
  get #patience() { return navigator.locks ? 5_000 : LOOK_MS * (1 + 2 * Math.random()); }

  /** Speak to the other tabs. */
  #post(message) {
    this.#channel?.postMessage({ ...message, rank: this.#rank });
  }

  stop() {
    this.#state = "connecting";
    if (this.#turn) this.#post({ leaves: true });
    this.#stop?.abort();
    this.#turn?.abort();
    this.#channel?.close();
    clearTimeout(this.#silence);
    this.#stop = this.#turn = this.#channel = null;
  }

  restart() {
    this.stop();
    this.start();
  }

  /** The token may be good again. */
  resume() {
    if (this.#state === "refused") this.restart();
  }

  /** The network is back, or somebody looks: don't wait any longer. */
  wake(why) {
    if (why === "offline") return void (this.#turn && this.#tell("state", "offline"));
    if (why === "visibilitychange" && document.visibilityState !== "visible") return;
    this.resume();
    this.#nudge?.();
    if (this.#channel && !this.#turn) this.#ask();
  }

  async #join(name, steal = false) {
    const stop = this.#stop;
    if (!navigator.locks) return;
    this.#expect(name);
    try {
      await navigator.locks.request(name, steal ? { steal } : { signal: stop.signal }, () => this.#lead());
    } catch {
      this.#turn?.abort(); // it was stolen: we were asleep, and took too long to answer
      if (!stop.signal.aborted) this.#join(name);
    }
  }

  #ask() {
    this.#post({ asks: true });
    this.#expect(this.#channel.name, this.#patience);
  }

  /** A leader that is not heard for so long is frozen: take its place, if somebody looks at this tab. */
  #expect(name, ms = 2 * SILENCE_MS) {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      if (this.#turn || !this.#stop) return;
      if (!navigator.locks) this.#lead();
      else if (document.visibilityState === "visible") this.#join(name, true);
      else this.#expect(name);
    }, ms);
  }

  #heard({ asks, leaves, rank, event, data, id }) {
    if (asks) {
      if (!this.#turn) return;
      this.#nudge?.();
      this.#post({ event: "state", data: this.#state, id: this.#lastId });
      if (this.#count) this.#post({ event: "count", data: this.#count, id: this.#lastId });
      return;
    }
    if (leaves) return void (this.#turn || navigator.locks || this.#ask());
    if (this.#turn && (navigator.locks || rank > this.#rank)) return;
    this.#turn?.abort(); // of two that began at once, one goes on
    this.#expect(this.#channel.name);
    this.#lastId = id ?? this.#lastId;
    if (event) this.#report(event, data);
  }

  #tell(event, data) {
    if (event === "state") this.#state = data;
    if (event === "count") this.#count = data;
    if (event === "page") this.#count = { unread: data.pagination.unread };
    this.#post({ event, data, id: this.#lastId });
    this.#report(event, data);
  }

  async #lead() {
    const turn = (this.#turn = new AbortController());
    clearTimeout(this.#silence);
    let failures = 0;
    while (!turn.signal.aborted) {
      let pause = 0;
      try {
        const retry = await this.#stream(turn.signal, () => { failures = 0; });
        pause = (0.1 + Math.random()) * retry; // after a restart, not all at once
      } catch (problem) {
        if (turn.signal.aborted) break;
        if (problem.status === 404) {
          await this.#poll(turn.signal).catch(() => {});
        } else if (problem.status === 401) {
          this.#tell("refused", { status: 401, code: problem.code, message: problem.message });
          this.#state = "refused";
          break; // until there is another token
        }
        pause = (problem.after ?? 0) * 1_000 + Math.min(30_000, 1_000 * 2 ** failures) * (0.5 + Math.random() / 2);
        failures += 1;
      }
      if (turn.signal.aborted) break;
      this.#tell("state", navigator.onLine ? "reconnecting" : "offline");
      await this.#pause(pause, turn.signal);
    }
    if (this.#turn === turn) this.#turn = null;
  }

  /** Read the stream until it ends. Return how long to wait before the next, in ms. */
  async #stream(signal, begun) {
    const attempt = new AbortController();
    const end = () => attempt.abort();
    signal.addEventListener("abort", end);
    const renewal = setTimeout(end, this.#client.msToRenewal);
    let silence = setTimeout(end, SILENCE_MS);
    const nudge = (this.#nudge = () => { if (this.#state === "offline") end(); });
    try {
      const headers = { Accept: "text/event-stream", ...(this.#lastId ? { "Last-Event-ID": this.#lastId } : {}) };
      const answer = await this.#client.ask("GET", "/notifications/stream", undefined, { signal: attempt.signal, headers, streams: true });
      begun();
      if (!this.#lastId) this.#tell("fresh");
      this.#tell("state", "live");
      const [reader, decoder, parser] = [answer.body.getReader(), new TextDecoder(), new EventParser()];
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return parser.retry ?? RETRY_MS;
        clearTimeout(silence);
        silence = setTimeout(end, SILENCE_MS);
        const events = [...parser.push(decoder.decode(value, { stream: true }))];
        for (const { type, data, id } of events) {
          this.#lastId = id ?? this.#lastId;
          this.#tell(type, data);
        }
        if (!events.length) this.#post({ id: this.#lastId }); // the tabs hear that we are awake
      }
    } catch (problem) {
      if (!attempt.signal.aborted) throw problem;
      return LOOK_MS; // we ended it, to go on with another token or after a silence
    } finally {
      clearTimeout(renewal);
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
      if (this.#nudge === nudge) this.#nudge = null;
      attempt.abort();
    }
  }

  /** Where there is no stream, look now and then. */
  async #poll(signal) {
    while (!signal.aborted) {
      const page = await this.#client.json("GET", `/notifications?per_page=${PER_PAGE}`, undefined, { signal });
      this.#tell("page", page);
      this.#tell("state", "polling");
      await this.#pause(POLL_MS, signal);
    }
  }

  #pause(ms, signal) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#nudge = () => { clearTimeout(timer); resolve(); };
      signal.addEventListener("abort", this.#nudge, { once: true });
    }).finally(() => { this.#nudge = null; });
  }
}

/** Server-sent events, however their text is cut up. */
export class EventParser {
  #rest = "";
  #type = "";
  #data = [];
  #id = null;
  /** How long to wait before asking again, in ms, where the service said so. */
  retry = null;

  *push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        const event = this.#take();
        if (event) yield event;
        continue;
      }
      const at = line.indexOf(":");
      const field = at < 0 ? line : line.slice(0, at);
      const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (field === "event") this.#type = value;
      else if (field === "data") this.#data.push(value);
      else if (field === "id" && !value.includes("\0")) this.#id = value;
      else if (field === "retry" && /^\d{1,6}$/.test(value)) this.retry = Number(value);
    }
  }

  #take() {
    const [type, data] = [this.#type || "message", this.#data.join("\n")];
    const empty = !this.#data.length;
    [this.#type, this.#data] = ["", []];
    try {
      return empty ? null : { type, data: JSON.parse(data), id: this.#id };
    } catch {
      return null; // nothing that we could read
    }
  }
}

// --- The service, as its caller sees it ---

/** Why something was not done; status 0 means that the service was not reached. */
export class Refusal extends Error {
  constructor(status, code, message, after = 0) {
    super(message);
    this.name = "Refusal";
    Object.assign(this, { status, code, after });
  }

  static async of(answer) {
    const [error] = (await answer.json().catch(() => null))?.errors ?? [];
    return new Refusal(answer.status, error?.code ?? "error", error?.message ?? answer.statusText, Number(answer.headers.get("retry-after")) || 0);
  }
}

class Client {
  src;
  token;
  provider;
  #renewing = null;
  #clockFits = true;

  constructor(src, token, provider) {
    Object.assign(this, { src: src.replace(/\/+$/, ""), token, provider });
  }

  /** Who the token is for, so that nothing is shared with anybody else; null where it does not say. */
  get identity() { return identityOf(this.token); }

  get msToRenewal() {
    const { exp } = claimsOf(this.token);
    if (!this.provider || !this.#clockFits || typeof exp !== "number") return LONGEST_TIMER_MS;
    return Math.max(0, Math.min(exp * 1_000 - Date.now() - RENEW_MS, LONGEST_TIMER_MS));
  }

  /** Return a token that is good, asking for another one shortly before the last expires. */
  async credentials() {
    return this.token && this.msToRenewal > 0 ? checked(this.token) : this.#renew(this.token);
  }

  async json(...request) {
    const answer = await this.ask(...request);
    return answer.json().catch((cause) => { throw unreachable(cause); });
  }

  /** Ask the service, with another token where this one is refused. Throws a Refusal. */
  async ask(method, path, body, more = {}) {
    const token = await this.credentials();
    let answer = await this.#send(token, method, path, body, more);
    if (answer.status === 401 && (this.provider || this.token !== token)) {
      answer = await this.#send(await this.#renew(token), method, path, body, more);
    }
    if (!answer.ok) throw await Refusal.of(answer);
    return answer;
  }

  /** An answer that has not come in whole in time is given up; a stream sees to itself. */
  async #send(token, method, path, body, { headers, signal, streams, ...more }) {
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

  /** Return another token than the one that was used; whoever asks meanwhile gets the same. */
  async #renew(used) {
    if (this.token && this.token !== used) return this.token;
    if (!this.provider) throw new Refusal(401, "token", "There is no token.");
    this.#renewing ??= Promise.race([(async () => this.provider())(), wait(LIMIT_MS).then(() => { throw new Error(LATE); })]).then((given) => {
      const token = checked(given);
      if (used && identityOf(used) !== identityOf(token)) throw new Refusal(401, "token", "The token provider returned another user's token.");
      this.token = token;
      this.#clockFits = true;
      this.#clockFits = this.msToRenewal > 0; // a token that ends at once says that the clocks differ: wait for a 401
      return token;
    }, (cause) => {
      throw new Refusal(0, "token", String(cause?.message ?? cause));
    }).finally(() => { this.#renewing = null; });
    return this.#renewing;
  }
}

const LATE = "No answer in time.";

const unreachable = (cause) => new Refusal(0, "unreachable", String(cause?.message ?? cause));

/** Return a token, if it is one: a provider may have fetched a login page. */
function checked(token) {
  if (/^\s*[\w-]+\.[\w-]+\.[\w-]*\s*$/.test(token)) return token.trim();
  throw new Refusal(401, "token", token ? "The token is not a JWT." : "There is no token.");
}

/** What a token says, which decides nothing but who shares and when to renew. */
function claimsOf(token) {
  try {
    const text = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (letter) => letter.charCodeAt(0)))) ?? {};
  } catch {
    return {};
  }
}

const PASSING = new Set(["exp", "iat", "nbf", "jti", "auth_time", "sid", "nonce", "at_hash"]);

/** All that a token says of its user, without what differs from one token to the next. */
function identityOf(token) {
  const claims = claimsOf(token);
  if (claims.sub === undefined) return null;
  return JSON.stringify(Object.entries(claims).filter(([name]) => !PASSING.has(name)).sort(([a], [b]) => (a < b ? -1 : 1)));
}

// --- Pushes to this browser ---

class BrowserPush {
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

  /** Tell whether this user is pushed to here: `on`, `off`, `denied`; null where the service pushes to no browsers. */
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
    await this.#client.ask("DELETE", "/notifications/web-push", { endpoint: subscription.endpoint });
    await subscription.unsubscribe();
  }

  /** Register again what was registered before, and subscribe anew where the service's key is another one. */
  async restore() {
    await this.#client.credentials(); // which say whose it is
    if (!this.#isOurs() || Notification.permission !== "granted" || !(await this.#subscription())) return;
    if (await this.#keyOfService()) await this.#subscribe();
  }

  /** Close what this browser still shows of these. */
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

  /** Wait until the worker is there. */
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

function store(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return null; // the page may not keep anything
  }
}

const bytesOf = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));

const sameBytes = (buffer, bytes) => {
  const other = new Uint8Array(buffer ?? []);
  return other.length === bytes.length && other.every((byte, at) => byte === bytes[at]);
};

// --- What strangers wrote, made safe ---

const ALLOWED = new Set(["P", "STRONG", "EM", "BR"]);
const SILENT = new Set(["SCRIPT", "STYLE", "TEMPLATE", "IFRAME", "OBJECT", "TEXTAREA", "TITLE", "NOSCRIPT", "SVG", "MATH"]);

/** Return nodes for a notification's message: text and four tags, made anew, whatever the markup holds. */
function messageOf({ message, message_formatted: formatted }) {
  const parsed = parse(String(formatted ?? ""));
  const made = parsed ? rebuilt(parsed.body) : [];
  if (made.some((node) => node.textContent.trim())) return made;
  return String(message ?? "").split(" <br> ").map((line) => h("p", { dir: "auto" }, linked(line)));
}

function rebuilt(from) {
  return [...from.childNodes].flatMap((node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.parentNode.nodeName === "STRONG" ? isolated(node.data) : linked(node.data);
    if (node.nodeType !== Node.ELEMENT_NODE || SILENT.has(node.nodeName.toUpperCase())) return [];
    if (!ALLOWED.has(node.nodeName)) return rebuilt(node);
    return [h(node.nodeName.toLowerCase(), node.nodeName === "P" ? { dir: "auto" } : {}, rebuilt(node))];
  }).map((node) => (typeof node === "string" ? document.createTextNode(node) : node));
}

/** Names of the other direction move nothing around them, an English genitive least of all. */
function isolated(text) {
  const [, name, genitive = ""] = /^(.*?)(['’]s)?$/s.exec(text);
  return [h("bdi", {}, name), genitive];
}

/** Make links of the addresses in a text: of http and https, and of none that names a user, as "https://bank@evil" does. */
function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"\u200e\u200f\u202a-\u202e\u2066-\u2069]+)/i).flatMap((part, at) => {
    let end = at % 2 ? part.length : 0;
    while (end && (".,:;!?'’”…»]}".includes(part[end - 1]) || (part[end - 1] === ")" && !part.includes("(")))) end -= 1; // the sentence's own
    const url = urlOf(part.slice(0, end));
    if (!url?.host || url.username || url.password) return part;
    return [h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", dir: "ltr" }, part.slice(0, end)), part.slice(end)];
  });
}

/** Parse markup in a document that runs and loads nothing; null where the page allows not even that. */
function parse(markup) {
  try {
    return new DOMParser().parseFromString(trusted().createHTML(markup), "text/html");
  } catch {
    return null;
  }
}

let policy;

/** Where a page demands trusted types, it allows our policy by its name. */
function trusted() {
  const rules = { createHTML: (text) => text, createScriptURL: ofThisPage };
  return (policy ??= globalThis.trustedTypes?.createPolicy("tocsin-inbox", rules) ?? rules);
}

/** A worker is a script of the page's own, whatever the attribute says. */
function ofThisPage(url) {
  if (urlOf(url)?.origin !== location.origin) throw new TypeError("A worker must be of the page's origin.");
  return url;
}

/** Return the address that a link leads to, if it may: http, https, or within this page's own site. */
function linkOf(link) {
  const url = urlOf(link);
  return url && /^https?:$/.test(url.protocol) ? url.href : null;
}

const pictureOf = (picture) => {
  const url = urlOf(picture);
  return url?.protocol === "https:" ? url.href : null;
};

function urlOf(text) {
  try {
    return typeof text === "string" && text ? new URL(text, document.baseURI) : null;
  } catch {
    return null;
  }
}

// --- Times ---

/** The service's times are UTC, and look like this: 2026-11-24 16:11:25. */
const timeOf = (text) => new Date(`${text.replace(" ", "T").replace(/Z?$/, "Z")}`);

const now = () => new Date().toISOString().slice(0, 19).replace("T", " ");

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Times {
  #locale;
  #relative;
  #days;
  #formats = {};

  constructor(locale) {
    this.#locale = locale;
    this.#relative = new Intl.RelativeTimeFormat(locale, { numeric: "auto", style: "short" });
    this.#days = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
  }

  /** The day on the clock of whoever looks, to group by. */
  day(at) { return `${at.getFullYear()}-${at.getMonth() + 1}-${at.getDate()}`; }

  heading(day) {
    const [year, month, date] = day.split("-").map(Number);
    const at = new Date(year, month - 1, date);
    const today = new Date();
    const ago = Math.round((new Date(today.getFullYear(), today.getMonth(), today.getDate()) - at) / 86_400_000);
    const text = ago === 0 || ago === 1 ? this.#days.format(-ago, "day")
      : this.#format(at, { weekday: "long", day: "numeric", month: "long", ...(year === today.getFullYear() ? {} : { year: "numeric" }) });
    return text.charAt(0).toLocaleUpperCase(this.#locale) + text.slice(1);
  }

  /** How long ago, on the day itself; later the time of the day, under the day's heading. */
  short(at) {
    const seconds = Math.max(0, (Date.now() - at) / 1_000);
    if (this.day(at) !== this.day(new Date())) return this.clock(at);
    if (seconds < 60) return this.#relative.format(0, "second");
    if (seconds < 3_600) return this.#relative.format(-Math.floor(seconds / 60), "minute");
    return this.#relative.format(-Math.floor(seconds / 3_600), "hour");
  }

  full(at) { return this.#format(at, { dateStyle: "full", timeStyle: "short" }); }

  clock(at) { return this.#format(at, { hour: "numeric", minute: "2-digit" }); }

  moment(at) { return this.#format(at, { weekday: "short", hour: "numeric", minute: "2-digit" }); }

  /** The day of the week, shortest and in full; 0 is Monday. */
  weekday(i) {
    const at = new Date(2024, 0, 1 + i);
    return [this.#format(at, { weekday: "narrow" }), this.#format(at, { weekday: "long" })];
  }

  #format(at, options) {
    const key = JSON.stringify(options);
    this.#formats[key] ??= new Intl.DateTimeFormat(this.#locale, options);
    return this.#formats[key].format(at);
  }
}

// --- Words ---

const WORDS = {
  en: {
    title: "Notifications", all: "All", unread: "Unread", show: "Which to show", back: "Back", close: "Close",
    readAll: "Mark all as read", preferences: "Preferences", more: "Show more", loading: "Loading…", retry: "Try again", undo: "Undo",
    remove: "Delete", markRead: "Mark as read", markUnread: "Mark as unread", isUnread: "Unread.", saved: "Saved",
    markedRead: "Marked as read", markedUnread: "Marked as unread", allRead: "All marked as read", restored: "Restored", kept: "Saved on this device. It is sent when you are online.", sender: "From", unfold: "Read more", fold: "Show less",
    unreadCount: (n) => `${n} unread`, fresh: (n) => `${n} new`, arrived: (n) => (n === 1 ? "1 new notification" : `${n} new notifications`),
    deleted: (n) => (n === 1 ? "Notification deleted" : `${n} notifications deleted`),
    empty: { all: ["No notifications yet", "New notifications will appear here."], unread: ["You’re all caught up", "There is nothing unread."] },
    connection: { offline: "You are offline. This is what was loaded.", reconnecting: "Reconnecting…" },
    failed: { remove: "That could not be deleted.", load: "More could not be loaded.", save: "That could not be saved." },
    problem: { signedOut: "You are signed out. Sign in again to see your notifications.", failed: "Your notifications could not be loaded.",
      unreachable: "The notification service can’t be reached." },
    help: "Keyboard shortcuts",
    keys: ["Next", "Previous", "First, last", "Open", "Mark as read or unread", "Delete", "Undo", "Show or hide this help", "Back, close"],
    pushHere: "Notify me in this browser", pushHint: "Also when this page is not open.",
    pushDenied: "Your browser blocks notifications of this site. Allow them in its settings.", pushFailed: "Your browser could not be set up.",
    pause: "Pause", pauseHint: "Nothing is sent to your phone and browser until then. Your inbox has everything.", pauseHour: "For 1 hour",
    pauseTomorrow: (clock) => `Until tomorrow, ${clock}`, pausedUntil: (moment) => `Paused until ${moment}.`, resume: "Resume now",
    quiet: "Quiet hours", quietHint: "What comes in these hours is sent when they end.", addQuiet: "Add quiet hours", removeQuiet: "Remove these quiet hours", oneDay: "Choose at least one day, or remove these quiet hours.",
    from: "From", to: "To", zone: "Time zone", channels: { push: "Phone", web_push: "Browser" }, locked: "Set by your organisation",
  },
  da: {
    title: "Notifikationer", all: "Alle", unread: "Ulæste", show: "Hvad der vises", back: "Tilbage", close: "Luk",
    readAll: "Markér alle som læst", preferences: "Indstillinger", more: "Vis flere", loading: "Henter…", retry: "Prøv igen", undo: "Fortryd",
    remove: "Slet", markRead: "Markér som læst", markUnread: "Markér som ulæst", isUnread: "Ulæst.", saved: "Gemt",
    markedRead: "Markeret som læst", markedUnread: "Markeret som ulæst", allRead: "Alle er markeret som læst", restored: "Gendannet", kept: "Gemt på enheden. Det sendes, når du er online.", sender: "Fra", unfold: "Læs mere", fold: "Vis mindre",
    unreadCount: (n) => `${n} ulæste`, fresh: (n) => (n === 1 ? "1 ny" : `${n} nye`), arrived: (n) => (n === 1 ? "1 ny notifikation" : `${n} nye notifikationer`),
    deleted: (n) => (n === 1 ? "Notifikationen er slettet" : `${n} notifikationer er slettet`),
    empty: { all: ["Ingen notifikationer endnu", "Nye notifikationer vises her."], unread: ["Du er helt ajour", "Der er intet ulæst."] },
    connection: { offline: "Du er offline. Her er det, der blev hentet.", reconnecting: "Opretter forbindelse igen…" },
    failed: { remove: "Det kunne ikke slettes.", load: "Der kunne ikke hentes flere.", save: "Det kunne ikke gemmes." },
    problem: { signedOut: "Du er logget ud. Log ind igen for at se dine notifikationer.", failed: "Dine notifikationer kunne ikke hentes.",
      unreachable: "Der er ingen forbindelse til notifikationstjenesten." },
    help: "Tastaturgenveje",
    keys: ["Næste", "Forrige", "Første, sidste", "Åbn", "Markér som læst eller ulæst", "Slet", "Fortryd", "Vis eller skjul denne hjælp", "Tilbage, luk"],
    pushHere: "Giv mig besked i denne browser", pushHint: "Også når siden ikke er åben.",
    pushDenied: "Din browser blokerer notifikationer fra dette websted. Tillad dem i browserens indstillinger.", pushFailed: "Din browser kunne ikke sættes op.",
    pause: "Pause", pauseHint: "Indtil da sendes intet til din telefon og browser. Indbakken har det hele.", pauseHour: "I 1 time",
    pauseTomorrow: (clock) => `Indtil i morgen kl. ${clock}`, pausedUntil: (moment) => `På pause indtil ${moment}.`, resume: "Genoptag nu",
    quiet: "Stilletid", quietHint: "Det, der kommer i disse timer, sendes, når de er slut.", addQuiet: "Tilføj stilletid", removeQuiet: "Fjern denne stilletid", oneDay: "Vælg mindst én dag, eller fjern denne stilletid.",
    from: "Fra", to: "Til", zone: "Tidszone", channels: { push: "Telefon", web_push: "Browser" }, locked: "Bestemt af din organisation",
  },
  de: {
    title: "Benachrichtigungen", all: "Alle", unread: "Ungelesen", show: "Was angezeigt wird", back: "Zurück", close: "Schließen",
    readAll: "Alle als gelesen markieren", preferences: "Einstellungen", more: "Mehr anzeigen", loading: "Wird geladen…", retry: "Erneut versuchen", undo: "Rückgängig",
    remove: "Löschen", markRead: "Als gelesen markieren", markUnread: "Als ungelesen markieren", isUnread: "Ungelesen.", saved: "Gespeichert",
    markedRead: "Als gelesen markiert", markedUnread: "Als ungelesen markiert", allRead: "Alle als gelesen markiert", restored: "Wiederhergestellt", kept: "Auf dem Gerät gespeichert. Es wird gesendet, sobald Sie online sind.", sender: "Von", unfold: "Mehr lesen", fold: "Weniger anzeigen",
    unreadCount: (n) => `${n} ungelesen`, fresh: (n) => `${n} neu`, arrived: (n) => (n === 1 ? "1 neue Benachrichtigung" : `${n} neue Benachrichtigungen`),
    deleted: (n) => (n === 1 ? "Benachrichtigung gelöscht" : `${n} Benachrichtigungen gelöscht`),
    empty: { all: ["Noch keine Benachrichtigungen", "Neue Benachrichtigungen erscheinen hier."], unread: ["Alles gelesen", "Es gibt nichts Ungelesenes."] },
    connection: { offline: "Sie sind offline. Angezeigt wird, was geladen wurde.", reconnecting: "Verbindung wird wiederhergestellt…" },
    failed: { remove: "Das konnte nicht gelöscht werden.", load: "Mehr konnte nicht geladen werden.", save: "Das konnte nicht gespeichert werden." },
    problem: { signedOut: "Sie sind abgemeldet. Melden Sie sich wieder an, um Ihre Benachrichtigungen zu sehen.",
      failed: "Ihre Benachrichtigungen konnten nicht geladen werden.", unreachable: "Der Benachrichtigungsdienst ist nicht erreichbar." },
    help: "Tastenkürzel",
    keys: ["Nächste", "Vorige", "Erste, letzte", "Öffnen", "Als gelesen oder ungelesen markieren", "Löschen", "Rückgängig machen", "Diese Hilfe zeigen oder verbergen", "Zurück, schließen"],
    pushHere: "In diesem Browser benachrichtigen", pushHint: "Auch wenn diese Seite nicht geöffnet ist.",
    pushDenied: "Ihr Browser blockiert Benachrichtigungen dieser Website. Erlauben Sie sie in seinen Einstellungen.", pushFailed: "Ihr Browser konnte nicht eingerichtet werden.",
    pause: "Pause", pauseHint: "Bis dahin wird nichts an Telefon und Browser gesendet. Im Posteingang ist alles.", pauseHour: "Für 1 Stunde",
    pauseTomorrow: (clock) => `Bis morgen, ${clock}`, pausedUntil: (moment) => `Pausiert bis ${moment}.`, resume: "Jetzt fortsetzen",
    quiet: "Ruhezeiten", quietHint: "Was in diesen Stunden kommt, wird gesendet, wenn sie enden.", addQuiet: "Ruhezeit hinzufügen", removeQuiet: "Diese Ruhezeit entfernen", oneDay: "Wählen Sie mindestens einen Tag, oder entfernen Sie diese Ruhezeit.",
    from: "Von", to: "Bis", zone: "Zeitzone", channels: { push: "Telefon", web_push: "Browser" }, locked: "Von Ihrer Organisation festgelegt",
  },
};

const problemOf = ({ problem }, { status }) => (status === 401 ? problem.signedOut : status ? problem.failed : problem.unreachable);

/** Words with a page's own in their places; in a text of the page's, {} stands for the number or the time. */
function wordsWith(words, own) {
  return Object.fromEntries(Object.entries(words).map(([name, word]) => {
    const given = own[name] ?? word;
    if (typeof word === "object" && !Array.isArray(word)) return [name, wordsWith(word, given)];
    return [name, typeof word === "function" && typeof given === "string" ? (value) => given.replaceAll("{}", value) : given];
  }));
}

/** The language of the words, and the locale of dates: the element's own, that around it, or the browser's. */
function languageOf(element) {
  const [wanted] = [element.getAttribute("lang") || langAround(element), ...navigator.languages, "en"].filter(Boolean);
  const language = wanted.slice(0, 2).toLowerCase();
  const known = Object.hasOwn(WORDS, language);
  if (!known && !element.words) return { language: "en", locale: "en" };
  try {
    return { language: known ? language : "en", locale: Intl.getCanonicalLocales(wanted)[0] };
  } catch {
    return { language: known ? language : "en", locale: language };
  }
}

function langAround(element) {
  for (let at = element; at; at = at.getRootNode().host) {
    const found = at.closest("[lang]")?.getAttribute("lang");
    if (found) return found;
  }
  return null;
}

// --- Elements ---

/** Make an element: listeners by `on...`, properties where they are no strings, attributes else. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean" || name === "value" || name === "referrerPolicy") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function iconButton(name, text, onclick) {
  return label(h("button", { class: "icon-button", part: "button", type: "button", onclick }, icon(name)), text);
}

function textButton(style, text, onclick) {
  return h("button", { class: style, type: "button", onclick }, text);
}

function label(element, text) {
  element.setAttribute("aria-label", text);
  element.title = text;
  return element;
}

const ICONS = {
  bell: "M6 16.5V11a6 6 0 0 1 12 0v5.5l1.5 1.5h-15zM10 20.5a2.2 2.2 0 0 0 4 0",
  checks: "M2.5 12.5 7 17l9-9.5M11.5 15.5 13 17l9-9.5",
  sliders: "M4 8h7M17 8h3M4 16h3M13 16h7M14 5.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5zM10 13.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5z",
  trash: "M4.5 7h15M9.5 7V4.5h5V7M6.5 7l.8 12.5h9.4L17.5 7M10.2 11v5M13.8 11v5",
  close: "M6 6l12 12M18 6 6 18",
  back: "M14.5 5.5 8 12l6.5 6.5",
  lock: "M6.5 11h11v8.5h-11zM9 11V8.5a3 3 0 0 1 6 0V11",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  for (const [key, value] of [["viewBox", "0 0 24 24"], ["class", `icon icon-${name}`], ["aria-hidden", "true"]]) svg.setAttribute(key, value);
  svg.append(path);
  return svg;
}

/** Make these the children, in this order, moving none that stays: so focus, scrolling and selection are kept. */
function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let at = parent.firstChild;
  for (const child of children) {
    if (child === at) at = at.nextSibling;
    else parent.insertBefore(child, at);
  }
}

function keepOnly(map, keys) {
  for (const key of map.keys()) if (!keys.has(key)) map.delete(key);
}

/** Set a text that may be there already: setting it again would lay out the list anew. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function reflect(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Take over what was set on the element before it was one of ours. */
function adopt(element, name) {
  if (!Object.hasOwn(element, name)) return;
  const value = element[name];
  delete element[name];
  element[name] = value;
}

const set = (element, name, value) => element.style.setProperty(name, value);

// --- Style ---

/** Names that begin with `--_` are private: a page may give any other to a `--tocsin-` property. */
const STYLE = `
:host {
  --_bg: var(--tocsin-background, light-dark(#fff, #16191d)); --_fg: var(--tocsin-text, light-dark(#1c2127, #e8ebef));
  --_muted: var(--tocsin-muted, light-dark(#59626d, #9aa4b0)); --_line: var(--tocsin-border, light-dark(#e4e7eb, #2a3037));
  --_hover: var(--tocsin-hover, light-dark(#f4f5f7, #1f242a)); --_new: var(--tocsin-unread, light-dark(#f2f6ff, #1a2332));
  --_accent: var(--tocsin-accent, light-dark(#2455d3, #8ab0ff)); --_on-accent: var(--tocsin-on-accent, light-dark(#fff, #0c1424));
  --_alert: var(--tocsin-badge, light-dark(#c5281c, #ff7b72)); --_on-alert: var(--tocsin-on-badge, light-dark(#fff, #1d0605));
  --_shade: 0 10px 30px light-dark(rgb(15 23 42 / .18), rgb(0 0 0 / .6)); --_corner: var(--tocsin-radius, 12px);
  display: inline-block; position: relative;
  font: var(--tocsin-font, .875rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif);
}
:host([theme="light"]) { color-scheme: light; }
:host([theme="dark"]) { color-scheme: dark; }
:host([mode="page"]) { display: block; }
:host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; }
button, input, select { font: inherit; color: inherit; }
button { cursor: pointer; }
button:disabled { cursor: default; }
h2, h3, p, ul, dl, dd, fieldset { margin: 0; padding: 0; border: 0; }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
.unseen { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.icon { inline-size: 20px; block-size: 20px; flex: none; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round; stroke-linejoin: round; }
:host(:dir(rtl)) .icon-back { transform: scaleX(-1); }

.bell, .icon-button, .text-button { border: 0; background: none; border-radius: 8px; }
.bell { position: relative; display: grid; place-items: center; inline-size: 40px; block-size: 40px; padding: 0; color: inherit; }
.bell:hover, .icon-button:hover:not(:disabled) { background: color-mix(in srgb, currentColor 9%, transparent); }
.bell .icon { inline-size: 22px; block-size: 22px; }
.badge {
  position: absolute; inset-block-start: 2px; inset-inline-start: 20px; min-inline-size: 18px; padding-inline: 5px; border-radius: 9px;
  background: var(--_alert); color: var(--_on-alert); font-size: 11px; font-weight: 600; line-height: 18px; text-align: center; font-variant-numeric: tabular-nums;
}
.icon-button { display: grid; place-items: center; inline-size: 32px; block-size: 32px; padding: 0; color: var(--_muted); outline-offset: -1px; }
.icon-button:hover:not(:disabled) { color: var(--_fg); }
.icon-button:disabled { opacity: .35; }
.text-button { padding: 5px 8px; color: var(--_accent); font-weight: 600; }
.text-button:hover { text-decoration: underline; }
.button { padding: 6px 12px; border: 1px solid var(--_line); border-radius: 8px; background: var(--_bg); font-weight: 500; }
.button:hover { background: var(--_hover); }

/* What the page says about its text ends here. */
.panel { all: initial; flex-direction: column; background: var(--_bg); color: var(--_fg); font: inherit; color-scheme: inherit; visibility: inherit; text-align: left; text-size-adjust: inherit; outline-offset: -2px; }
:host(:dir(rtl)) .panel { text-align: right; }
.panel :is(h2, h3, p, dd, button, time, label, legend, th, .toast > span) { unicode-bidi: plaintext; }
.panel:not([hidden]) { display: flex; }
.panel:focus { outline: none; }
:host(:not([mode="page"])) .panel {
  position: fixed; z-index: 2147483000; inset: auto; inset-block: var(--_top, auto) var(--_bottom, auto); left: var(--_left, auto); margin: 0; padding: 0;
  inline-size: var(--tocsin-width, 26rem); max-inline-size: calc(100vw - 16px); block-size: auto; max-block-size: min(var(--_room, 80vh), var(--tocsin-height, 40rem));
  border: 1px solid var(--_line); border-radius: var(--_corner); box-shadow: var(--_shade); overflow: hidden;
}
/* In the page itself nothing scrolls but the page. */
:host([mode="page"]) .body { overflow: visible; }
:host([mode="page"]) .toast { position: sticky; inset-inline: auto; margin-block: 8px 12px; }
:host([mode="page"]) .panel { border: 1px solid var(--_line); border-radius: var(--_corner); overflow: clip; position: relative; }
.bar { display: flex; align-items: center; gap: 2px; padding: 10px 10px 4px 16px; padding-inline: 16px 10px; }
.title { flex: 1; min-inline-size: 0; font-size: 1.0625rem; font-weight: 650; letter-spacing: -.01em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar .icon-button:first-child { margin-inline-start: -8px; }
.close { display: none; }
.tabs { display: flex; gap: 8px; padding-inline: 12px; border-block-end: 1px solid var(--_line); }
.tab { display: flex; align-items: center; gap: 6px; margin-block-end: -1px; padding: 7px 4px 8px; border: 0; border-block-end: 2px solid transparent; background: none; color: var(--_muted); font-weight: 500; }
.tab:hover { color: var(--_fg); }
.tab[aria-selected="true"] { border-color: var(--_accent); color: var(--_fg); }
.tab:focus-visible { outline-offset: -1px; border-radius: 4px; }
.count:empty { display: none; }
.count { padding-inline: 6px; border-radius: 9px; background: var(--_hover); font-size: .75rem; font-variant-numeric: tabular-nums; }
.notice { padding: 6px 16px; border-block-end: 1px solid var(--_line); background: var(--_hover); color: var(--_muted); font-size: .8125rem; }
.paused { display: flex; align-items: center; justify-content: space-between; gap: 8px; padding-block: 2px; }
.body { flex: 1; min-block-size: 0; overflow-y: auto; overscroll-behavior: contain; scrollbar-width: thin; scrollbar-color: var(--_line) transparent; }
.list { position: relative; min-block-size: 10rem; }
.pills { position: sticky; z-index: 2; inset-block-start: 8px; block-size: 0; text-align: center; }
.pill { padding: 5px 14px; border: 0; border-radius: 15px; background: var(--_accent); color: var(--_on-accent); font-size: .8125rem; font-weight: 600; box-shadow: var(--_shade); }

.day { padding: 12px 16px 5px; color: var(--_muted); font-size: .75rem; font-weight: 600; }
.rows { list-style: none; }
.row { position: relative; display: flex; gap: 12px; padding: 10px 0 11px; padding-inline-start: 16px; content-visibility: auto; contain-intrinsic-block-size: auto 5rem; }
/* Rows overlap by a pixel: at heights that are no whole number the page would show between them. */
.row + .row { margin-block-start: -1px; }
.row + .row::before { content: ""; position: absolute; inset-block-start: 0; inset-inline: 62px 0; border-block-start: 1px solid var(--_line); }
.row:hover, .row:focus-within { background: var(--_hover); }
.row.unread { background: var(--_new); }
.row.unread:hover, .row.unread:focus-within { background: color-mix(in srgb, var(--_accent) 5%, var(--_new)); }
/* The link covers the row; what can be pressed in it lies above. */
.main { position: absolute; inset: 0; }
.main:focus-visible { outline-offset: -2px; border-radius: 8px; }
.avatar { flex: none; display: grid; place-items: center; inline-size: 34px; block-size: 34px; margin-block-start: 1px; border-radius: 50%; overflow: hidden; background: var(--_line); color: var(--_muted); font-size: .75rem; font-weight: 600; }
.avatar img { inline-size: 100%; block-size: 100%; object-fit: cover; }
.avatar .icon { inline-size: 18px; block-size: 18px; }
.avatar.person { background: light-dark(oklch(.92 .045 var(--_hue)), oklch(.36 .06 var(--_hue))); color: light-dark(oklch(.4 .11 var(--_hue)), oklch(.92 .05 var(--_hue))); }
.said { flex: 1; min-inline-size: 0; }
.sender { unicode-bidi: plaintext; color: var(--_muted); font-size: .75rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.text { color: var(--_muted); overflow-wrap: anywhere; hyphens: auto; overflow: hidden; }
.unread .text { color: var(--_fg); }
.text > br { display: none; }
.text p { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; }
.text p + p, .text br + p { margin-block-start: 2px; color: var(--_muted); -webkit-line-clamp: 2; }
.text strong { color: var(--_fg); font-weight: 600; }
.text em { font-style: normal; }
.text a { position: relative; color: var(--_accent); }
.open .text p { display: block !important; }
.open .main:not([href]) ~ .said .text { position: relative; cursor: text; user-select: text; }
.below { display: flex; flex-wrap: wrap; align-items: center; gap: 0 12px; margin-block-start: 2px; }
.time { color: var(--_muted); font-size: .75rem; }
.fold { position: relative; padding: 2px 4px; min-block-size: 24px; font-size: .75rem; }
.actions { position: relative; flex: none; display: flex; flex-direction: column; align-items: center; margin-block: -2px -11px; padding-inline-end: 8px; }
.actions .icon-button { inline-size: 28px; block-size: 28px; }
.actions .icon { inline-size: 18px; block-size: 18px; }
.dot i { inline-size: 9px; block-size: 9px; border: 1.5px solid currentColor; border-radius: 50%; }
.unread .dot i { background: var(--_accent); border-color: var(--_accent); }
.row:not(.unread) .dot, .remove { opacity: 0; }
.row:is(:hover, :focus-within) :is(.dot, .remove) { opacity: 1; }
@media (hover: none) { .row:not(.unread) .dot, .remove { opacity: .75; } }

.foot { position: relative; padding: 8px; text-align: center; }
.near { position: absolute; inset-block-start: -300px; inline-size: 1px; block-size: 300px; pointer-events: none; }
.state { display: flex; flex-direction: column; align-items: center; gap: 4px; padding: 40px 32px 48px; color: var(--_muted); text-align: center; text-wrap: balance; }
.state .icon { inline-size: 36px; block-size: 36px; margin-block-end: 6px; stroke-width: 1.2; opacity: .7; }
.state div p:first-of-type { color: var(--_fg); font-weight: 600; }
.state .button { margin-block-start: 10px; color: var(--_fg); }
.toast {
  position: absolute; z-index: 3; inset-block-end: 12px; inset-inline: 16px; margin-inline: auto; inline-size: fit-content; max-inline-size: calc(100% - 32px);
  display: flex; align-items: center; gap: 8px; min-block-size: 38px; padding: 4px 6px 4px 14px; padding-inline: 14px 6px; border-radius: 9px; background: #22272e; color: #fff; box-shadow: var(--_shade);
}
.toast .text-button { color: #9ec1ff; }
.toast :focus-visible { outline-color: #9ec1ff; }
.toast > span:last-child { padding-inline-end: 8px; }

.preferences, .keys { padding: 4px 16px 20px; }
.preferences section { padding-block: 14px; border-block-end: 1px solid var(--_line); }
.preferences > section:last-child { border: 0; }
.preferences h3 { font-size: .875rem; font-weight: 600; }
.hint, .problem { margin-block-start: 2px; color: var(--_muted); font-size: .8125rem; }
.problem { margin-block: 10px 0; padding: 8px 12px; border-inline-start: 3px solid var(--_alert); background: var(--_hover); color: var(--_fg); }
.setting { display: flex; align-items: center; justify-content: space-between; gap: 12px; }
.setting > label { font-weight: 500; }
.buttons { display: flex; flex-wrap: wrap; gap: 8px; margin-block-start: 10px; }
.quiet { margin-block-start: 10px; min-inline-size: 0; }
.clock { display: flex; align-items: center; gap: 8px; color: var(--_muted); }
select, input[type="time"] { min-block-size: 32px; max-inline-size: 14rem; padding: 3px 8px; border: 1px solid color-mix(in srgb, var(--_muted) 60%, var(--_line)); border-radius: 8px; background: var(--_bg); color: var(--_fg); }
.week { display: flex; gap: 4px; margin-block-start: 8px; }
.day-of-week { position: relative; flex: 1; max-inline-size: 40px; }
.day-of-week input { position: absolute; inset: 0; inline-size: 100%; block-size: 100%; margin: 0; opacity: 0; cursor: pointer; }
.day-of-week span { display: grid; place-items: center; block-size: 30px; border: 1px solid var(--_line); border-radius: 8px; color: var(--_muted); font-size: .8125rem; }
.day-of-week input:checked + span { border-color: var(--_accent); background: var(--_accent); color: var(--_on-accent); font-weight: 600; }
.day-of-week input:focus-visible + span { outline: 2px solid var(--_accent); outline-offset: 2px; }
table { inline-size: 100%; border-collapse: collapse; }
th { padding: 0; text-align: inherit; font-weight: 400; overflow-wrap: anywhere; hyphens: auto; }
thead th { padding-block-end: 4px; }
thead th + th { inline-size: 72px; color: var(--_muted); font-size: .75rem; }
thead th + th, td { text-align: center; }
td { padding: 5px 0; }
.switch { appearance: none; position: relative; inline-size: 36px; block-size: 24px; margin: 0; flex: none; vertical-align: middle; border-radius: 12px; cursor: pointer; }
.switch::before { content: ""; position: absolute; inset: 2px 0; border-radius: 10px; background: color-mix(in srgb, var(--_muted) 85%, var(--_bg)); transition: background .15s; }
.switch::after { content: ""; position: absolute; inset-block-start: 4px; inset-inline-start: 2px; inline-size: 16px; block-size: 16px; border-radius: 50%; background: var(--_bg); transition: inset-inline-start .15s; }
.switch:checked::before { background: var(--_accent); }
.switch:checked::after { inset-inline-start: 18px; }
.switch:disabled { opacity: .45; cursor: default; }
.locked { position: relative; display: inline-flex; align-items: center; }
.locked .icon { position: absolute; inset-inline-start: -17px; inline-size: 15px; block-size: 15px; color: var(--_muted); }
.keys { display: grid; grid-template-columns: auto 1fr; gap: 10px 16px; padding-block-start: 12px; align-items: baseline; }
.keys dt { display: flex; gap: 4px; margin: 0; }
kbd { min-inline-size: 24px; padding: 1px 6px; border: 1px solid var(--_line); border-radius: 6px; background: var(--_hover); font: inherit; font-size: .8125rem; text-align: center; }

@media (max-width: 480px) {
  :host(:not([mode="page"])) .panel { inset: 0; inline-size: 100%; max-inline-size: none; block-size: 100%; max-block-size: none; border: 0; border-radius: 0; }
  .close { display: grid; }
}
@media (prefers-reduced-motion: reduce) { *, ::before, ::after { animation: none !important; transition: none !important; } }
@media (forced-colors: active) {
  .badge, .pill, .toast { border: 1px solid CanvasText; forced-color-adjust: none; background: Canvas; color: CanvasText; }
  .unread .dot i { background: Highlight; border-color: Highlight; forced-color-adjust: none; }
  .row.unread { border-inline-start: 3px solid Highlight; }
  .tab { border-color: Canvas; }
  .tab[aria-selected="true"] { border-color: Highlight; }
  .switch { border: 1px solid ButtonText; }
  .switch::after { background: ButtonText; forced-color-adjust: none; }
  .switch:checked::before, .day-of-week input:checked + span { background: Highlight; color: HighlightText; forced-color-adjust: none; }
}
`;

let made;

/** One sheet for all, which the strictest policy allows. */
function sheet() {
  if (!made) {
    made = new CSSStyleSheet();
    made.replaceSync(STYLE);
  }
  return made;
}

for (const name of ["src", "token", "theme", "worker"]) {
  Object.defineProperty(TocsinInbox.prototype, name, {
    get() { return this.getAttribute(name); },
    set(value) { reflect(this, name, value); },
    configurable: true,
    enumerable: true,
  });
}

if (globalThis.customElements && !customElements.get("tocsin-inbox")) customElements.define("tocsin-inbox", TocsinInbox);
