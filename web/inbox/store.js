/** The state of an inbox: lists, marks, counts. Independent of the DOM. */

import { Refusal } from "./client.js";
import { Feed } from "./feed.js";
import { Kept } from "./kept.js";
import { linkOf } from "./safe_html.js";
import { backoff, timeOf, utc, wait } from "../shared/times.js";

const PER_PAGE = 20;
const POLL_MS = 30_000;
const LOOK_MS = 300;
const MOST_LINKS = 100;

/** The loaded notifications and their changes. Independent of the DOM. */
export class Inbox {
  notes = new Map();
  links = new Map();
  /** Pending deletions: `undoable` for a while, then how many counts the service had sent when the deletion was sent. */
  deleting = new Map();
  /** A pending "mark all as read" that can be undone. */
  reading = null;
  pausedUntil = 0;
  lists = { all: emptyList(), unread: emptyList() };
  unread = null;
  connection = "connecting";
  feed = null;
  #on;
  #replay = [];
  #counts = 0;
  #linksThere = true;
  #wanted = new Set();
  #looking = null;
  #kept;
  /** How to answer those who made a mark that is not sent yet. */
  #made = new Map();
  #sending = false;
  #late = false;
  #retrying = null;
  #failures = 0;
  #ended = false;
  #patience = 0;
  #nudge = null;

  constructor(client, on) {
    this.client = client;
    this.#on = on;
    this.#kept = new Kept(client);
  }

  /** The number on the badge, without pending deletions and reads. */
  get shownUnread() {
    if (this.unread === null) return null;
    const open = [...this.notes.values()].filter(({ read_at }) => !read_at);
    if (this.reading) return open.filter(({ id }) => !this.deleting.has(id)).length;
    return Math.max(0, this.unread - open.filter(({ id }) => this.deleting.has(id)).length);
  }

  /** The number of deletions that can be undone. */
  get going() { return [...this.deleting.values()].filter((state) => state === "undoable").length; }

  /** Start once there is a token. A provider that fails is called again; one without a token, when the tab becomes visible. */
  async begin() {
    for (let failures = 0; !this.feed && !this.#ended; failures += 1) {
      try {
        await this.client.credentials();
      } catch (problem) {
        this.#failed(problem);
        await new Promise((resolve) => {
          this.#nudge = resolve;
          if (problem.status !== 401) setTimeout(resolve, backoff(failures));
        });
        continue;
      }
      if (this.#ended) return;
      this.feed = new Feed(this.client, (event, data) => this.#heard(event, data));
      this.feed.start();
      this.#again();
    }
  }

  /** The tab is visible again, or the network is back. */
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

  /** Continue with a new token of the same user. */
  renewed(token) {
    this.client.token = token;
    if (this.feed) this.feed.restart();
    else this.#nudge?.();
    this.#again();
  }

  shown(tab) {
    const hidden = tab === "unread" ? this.reading?.ids : null;
    return this.lists[tab].ids.filter((id) => !this.deleting.has(id) && !hidden?.has(id)).map((id) => this.notes.get(id)).filter(Boolean);
  }

  /** The number of received notifications that are not shown yet. */
  waiting(tab) {
    const { fresh, other } = this.lists[tab];
    return (other?.ids ?? fresh).filter((id) => !this.deleting.has(id)).length;
  }

  get #loading() { return Object.values(this.lists).some(({ loading }) => loading); }

  async load(tab, again = false) {
    const list = this.lists[tab];
    if (list.loading || (list.loaded && !again)) return list.loading;
    list.loading = this.#load(tab).catch((problem) => {
      list.error = problem;
      if (list.loaded) this.#retry(problem); // else there is a button
      this.#failed(problem);
    }).finally(() => {
      list.loading = null;
      if (!this.#loading) {
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
    this.#counted(page.pagination.unread);
    this.#merge(tab, page);
    Object.assign(list, { loaded: true, error: null });
    this.#failures = 0;
    if (this.feed) this.feed.resume();
    else this.#nudge?.();
  }

  /** Load the next page; an automatic load (by scrolling) is not repeated after a failure. */
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

  /** Load the lists again. One that is being loaded may have been read before this call. */
  async refresh() {
    await Promise.all(Object.entries(this.lists).map(async ([tab, list]) => {
      await list.loading;
      if (list.loaded) await this.load(tab, true);
    }));
  }

  /** Show the notifications that were held back. */
  reveal(tab) {
    const list = this.lists[tab];
    if (list.other) Object.assign(list, list.other);
    else list.ids.unshift(...list.fresh);
    Object.assign(list, { fresh: [], other: null });
    this.#changed();
  }

  /** Notifications read on the tab "Unread" stay there until the user leaves it. */
  leave(tab) {
    if (tab === "unread") this.lists.unread.ids = this.lists.unread.ids.filter((id) => !this.notes.get(id)?.read_at);
  }

  async mark(id, read) {
    this.#readThem();
    const note = this.notes.get(id);
    if (!note || Boolean(note.read_at) === read) return;
    const before = note.read_at;
    this.#set(id, read ? utc() : null);
    const counts = this.#counts;
    this.#changed();
    if (read) this.#on.settled([id]);
    try {
      await this.#send(id, read ? "read" : "unread");
    } catch (problem) {
      if (counts === this.#counts) this.#set(id, before);
      else this.#reset([id], before); // the count that came since is without this mark
      this.#failed(problem, "save");
      this.#changed();
    }
  }

  /** A push was opened in this browser. */
  opened(id) {
    if (this.notes.has(id)) this.mark(id, true);
    else this.#send(encodeURIComponent(id), "read").catch(() => {});
  }

  /** Mark the shown notifications as read, but no newer ones; final after the time for undo. */
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
    try {
      if (!(await this.#send("up_to", newest.id))) return;
      this.#on.settled([...ids]);
      this.lists.unread.ids = this.lists.unread.ids.filter((id) => tab !== "unread" || !ids.has(id));
      if (this.connection !== "live" || tab === "unread") await this.load(tab, true);
    } catch (problem) {
      this.#reset(ids, null);
      this.unread = unread;
      this.#failed(problem, "save");
      this.#changed();
    }
  }

  /** Hide a notification; it is deleted after the time for undo. */
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

  /** Send all pending changes now. */
  commit() {
    this.#readThem();
    for (const [id, state] of this.deleting) if (state === "undoable") this.#delete(id);
    this.#changed();
  }

  async #delete(id) {
    try {
      await this.#send(id, "deleted");
    } catch (problem) {
      this.#failed(problem, "remove");
      this.#changed();
    }
  }

  /**
   * Store a mark and send it; return whether the service has it. Marks are sent one after another, in the order in which
   * they were made, so that an earlier one never arrives after a later one. Deletions are final, and sent at once.
   */
  #send(id, mark) {
    this.#kept.put(id, mark);
    return new Promise((...answer) => {
      this.#made.get(id)?.[0](); // replaced before it was sent
      this.#made.set(id, answer);
      if (mark === "deleted") this.#ask(id, mark).catch(() => {});
      else this.#sendKept();
    });
  }

  /** Send the stored marks, but for deletions under way. */
  async #sendKept() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      for (let next; (next = Object.entries(this.#kept.all).find(([id]) => !(this.deleting.get(id) >= 0)));) await this.#ask(...next);
      if (this.#late) this.refresh(); // marks may cancel each other out, and then no count follows
      this.#late = false;
    } catch {
      // sent again later
    }
    this.#sending = false;
  }

  /** Send a stored mark. One without an answer stays stored, as does an old one that is refused only for now: throws. */
  async #ask(id, mark) {
    const made = this.#made.get(id);
    let gone = mark === "deleted";
    this.#late ||= !made;
    if (gone) this.deleting.set(id, this.#counts);
    try {
      await this.client.ask(...requestOf(id, mark), { keepalive: true });
    } catch (problem) {
      const { status } = problem;
      if (!status || (!made && /401|408|429|5../.test(status))) {
        this.#late = true;
        if (gone) this.deleting.set(id, "sent");
        if (this.#made.size) this.#on.kept();
        for (const [answer] of this.#made.values()) answer();
        this.#made.clear();
        this.#retry(problem);
        throw problem;
      }
      gone = /404|410/.test(status);
      if (!gone) {
        this.deleting.delete(id);
        made?.[1](problem);
      }
    }
    if (this.#kept.all[id] === mark) this.#kept.put(id, null);
    if (made === this.#made.get(id)) this.#made.delete(id);
    if (gone) this.#drop([id]);
    made?.[0](true);
  }

  /** Try again in a while, but not without a valid token. */
  #retry({ status }) {
    if (status !== 401) this.#retrying ??= wait(backoff(this.#failures++)).then(() => { this.#retrying = null; this.#again(); });
  }

  /** Try again what failed: the stored marks, and the lists. */
  #again() {
    if (this.#ended) return;
    if (this.#late || this.feed?.leads) this.#sendKept();
    for (const [tab, list] of Object.entries(this.lists)) if (list.error) this.load(tab, true);
  }

  /** Load the end of the user's pause; a failure changes nothing. */
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
    this.pausedUntil = until ? timeOf(until).getTime() : 0;
    this.#changed();
  }

  // --- Links ---

  /** Load the links of shown notifications, in one request for all that are added within a moment. */
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

  /** Return the link of a notification; null on a failure or a timeout. */
  async whereTo(id) {
    const late = wait(5_000).then(() => { if (!this.links.has(id)) this.links.set(id, null); });
    while (!this.links.has(id) && this.#linksThere) {
      this.look([id]);
      await Promise.race([Promise.all([this.#looking, wait(50)]), late]);
    }
    return this.links.get(id) ?? null;
  }

  // --- Events of the stream ---

  #heard(event, data) {
    if (this.#ended) return;
    if (this.#loading && !["state", "fresh", "resync"].includes(event)) this.#replay.push([event, data]);
    this.#apply(event, data);
    this.#changed();
  }

  #apply(event, data, again = false) {
    switch (event) {
      case "state":
        this.#connected(data);
        return data === "live" && this.#again();
      case "refused":
        this.#connected("signedOut");
        return this.#failed(new Refusal(data.status, data.code, data.message));
      case "fresh": case "resync": return void this.refresh();
      case "count": return this.#counted(data.unread);
      case "page": return this.#polled(data);
      case "notification": return this.#arrived(data, again);
      case "unread": return this.#reset([data.id], null);
      case "read":
        if (data.all) return void this.#readUpTo(data.up_to);
        for (const id of data.ids ?? [data.id]) this.reading?.ids.delete(id);
        this.#reset(data.ids ?? [data.id], utc());
        return this.#on.settled(data.ids ?? [data.id]);
      case "deleted":
        this.#drop(data.ids ?? [data.id]);
        return this.#on.settled(data.ids ?? [data.id]);
    }
  }

  /** Report interruptions, but not short ones. */
  #connected(state) {
    if (state === "reconnecting" && this.connection !== "offline") {
      this.#patience ||= setTimeout(() => { this.connection = state; this.#changed(); }, 3_000);
      return;
    }
    clearTimeout(this.#patience);
    this.#patience = 0;
    this.connection = state;
  }

  /** Add a received notification. `again`: after a list has loaded, which may lack it; deleted ones are not added. */
  #arrived(note, again) {
    const known = this.notes.has(note.id);
    if (again && !known) return;
    if (!again) this.#take([note]);
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
    const more = this.unread === null ? 0 : page.pagination.unread - this.unread;
    this.#counted(page.pagination.unread);
    this.#again();
    if (more > 0) this.#on.arrived(more);
    this.#on.settled(gone);
    if (!this.lists.all.loaded && !this.lists.unread.loaded) return;
    this.#take(page.data);
    if (this.lists.all.loaded) this.#merge("all", page);
    this.#insert(come);
  }

  /** Merge a first page into a list: keep the later pages, and hold back new rows that would move the shown ones. */
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

  /** Mark this one and all older ones as read, or all without one. Return those that changed. */
  #readUpTo(id) {
    const last = this.notes.get(id);
    if (id && !last) return this.refresh(), [];
    const upTo = Object.values(this.lists).flatMap(({ ids, fresh, other }) => {
      const order = [...(other?.ids ?? fresh), ...ids]; // all known ids, newest first
      return order.includes(id) ? order.slice(order.indexOf(id)) : [];
    });
    const read = new Set(upTo);
    const changed = [...this.notes.values()].filter((note) => !note.read_at && (!id || read.has(note.id) || note.created_at < last.created_at));
    for (const note of changed) note.read_at = utc();
    return changed;
  }

  #reset(ids, read) {
    for (const id of ids) {
      const note = this.notes.get(id);
      if (note && !note.read_at === Boolean(read)) note.read_at = read;
    }
  }

  #set(id, read) {
    const note = this.notes.get(id);
    if (!note) return;
    if (this.unread !== null && !note.read_at === Boolean(read)) this.unread = Math.max(0, this.unread + (read ? -1 : 1));
    note.read_at = read;
  }

  #counted(unread) {
    this.unread = unread;
    this.#counts += 1;
  }

  /** Forget notifications. A count that came since a deletion was sent may be without it already: only an older one is lowered. */
  #drop(ids) {
    const gone = new Set(ids);
    for (const id of ids) {
      const note = this.notes.get(id);
      if (note && !note.read_at && this.deleting.get(id) === this.#counts) this.unread = Math.max(0, this.unread - 1);
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

  /** Take over the service's state, except for marks that have not reached it yet. */
  #take(notes) {
    const marks = this.#kept.all;
    const { newest, ids } = this.reading ?? {};
    for (const note of notes) {
      const mark = marks[note.id];
      if (mark === "deleted") this.deleting.set(note.id, "sent");
      if (mark === "unread") note.read_at = null;
      if (newest && !note.read_at && (ids.has(note.id) || note.created_at < newest.created_at)) ids.add(note.id);
      if (mark === "read" || ids?.has(note.id)) note.read_at ??= utc();
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

/** The request for a stored mark. */
const requestOf = (id, mark) => (id === "up_to" ? ["PUT", "/notifications/read", { up_to: mark }]
  : mark === "deleted" ? ["DELETE", `/notifications/${id}`, undefined] : ["PUT", `/notifications/${id}/${mark}`, undefined]);

const emptyList = () => ({ ids: [], fresh: [], other: null, next: null, loaded: false, loading: null, error: null, stuck: false });

/** The query of the next page. Only the query: the host in the URL may not be the one that reaches the service. */
const nextOf = (page) => (page.pagination.urls.next ? new URL(page.pagination.urls.next, "http://x").search : null);
