/* The views. Each has a title and a `load` that requests its data; no view polls. */

import { Chart, spanName } from "./charts.js";
import { ask, eventLink, facts, link, moment, state, table } from "./elements.js";
import { SPANS } from "./measures.js";
import { call, company, may, serverTime } from "./session.js";
import { wishes } from "./wishes.js";
import { h } from "../shared/dom.js";
import { utc } from "../shared/times.js";

const MAX_DEAD_LETTERS = 1_000;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const ENDING_LENGTH = 6;
const MIN_SEARCH_LENGTH = 2;
const MAX_FOUND = 50;
const PAGE_SIZE = 25;
const SINCE = { "1h": ["1 hour", 3_600_000], "24h": ["24 hours", 86_400_000], "7d": ["7 days", 604_800_000], "30d": ["30 days", 2_592_000_000] };

/** Return the view of a URL fragment; unknown names become a search. */
export function viewOf(name) {
  const [kind, ...rest] = name.split("/").map(decoded);
  const views = {
    "dead-letters": () => new DeadLetters(),
    custom: () => new Customs(),
    audit: () => new Audit(...rest),
    event: () => new Event(...rest),
    user: () => new User(...rest),
    device: () => new Device(...rest),
    find: () => found(rest.join("/")),
  };
  return Object.hasOwn(views, kind) ? views[kind]() : found(decoded(name));
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Return the view for a search: a UUID is an event, a number a user, six characters may end a device token. */
function found(text) {
  if (UUID.test(text)) return new Event(text.toLowerCase());
  if (/^\d{1,10}$/.test(text) && text.length !== ENDING_LENGTH) return new User(text);
  if (/^\d+$/.test(text) && text.length === ENDING_LENGTH) return new UserOrDevice(text);
  return new Found(text);
}

/** Problems first, then lanes, recent failures, and charts of the last minutes. */
export class Overview {
  title = "Overview";
  span = SPANS[0]; // of the charts, in milliseconds
  #verdict = h("ul", { class: "verdict", "aria-label": "Problems" }, h("li", {}, "Loading metrics …"));
  #processes = h("p", { class: "faint" });
  #lanes = h("div");
  #stopped = ""; // the stopped lanes, as the table shows them
  #known = []; // the lanes, as last loaded
  #now = null; // the latest measurement
  #period = h("h2");
  #periods = h("fieldset", { class: "row" }, h("legend", { class: "unseen" }, "Period of the charts"),
    SPANS.map((span) => h("label", {},
      h("input", { type: "radio", name: "span", checked: span === this.span, onchange: () => this.#choose(span) }),
      periodOf(span))));
  #charts = [
    new Chart({
      title: "Throughput", note: "per second", format: rate,
      lines: [
        { key: "events", name: "events in inboxes" }, { key: "pushes", name: "pushes delivered" },
        { key: "requests", name: "API responses" },
      ],
    }),
    new Chart({
      title: "Queue depth", note: "due now", format: count, least: 10,
      lines: [
        { key: "direct", name: "direct jobs" }, { key: "bulk", name: "bulk jobs" }, { key: "waiting", name: "pushes" },
      ],
    }),
    new Chart({
      title: "Longest wait", note: "of a due job", format: duration, least: 1,
      lines: [{ key: "oldest direct", name: "direct" }, { key: "oldest bulk", name: "bulk" }],
    }),
    latencies("inbox", "Accepted to inbox"),
    latencies("push", "Inbox to provider"),
    new Chart({
      title: "Errors", note: "last minute", format: count, least: 4,
      lines: [
        { key: "apns errors", name: "APNs" }, { key: "fcm errors", name: "FCM" }, { key: "web errors", name: "browsers" },
        { key: "api errors", name: "API, 5xx" },
      ],
    }),
  ];

  /** `load` loads the history that the chosen span needs, and shows the measurements. */
  constructor(load) {
    this.loadSpan = load;
    this.#name();
  }

  async load() {
    const [lanes, letters] = await Promise.all([call("operations/lanes"), call("operations/dead-letters?limit=5")]);
    this.#tabulate(lanes.data);
    return [
      this.#verdict,
      h("section", {}, h("h2", {}, "Lanes"), this.#lanes),
      h("section", {}, h("h2", {}, "Recent failures"),
        table("Recent failures", DEAD_LETTER, letters.data.map(letterCells), noFailures()),
        letters.data.length ? h("p", {}, link("dead-letters", "View all dead letters")) : null),
      h("section", {}, this.#period, this.#periods,
        h("div", { class: "charts" }, this.#charts.map((chart) => chart.element)), this.#processes),
    ];
  }

  /** Draw the measurements; called after each new one. */
  show(measures) {
    const now = measures.latest;
    if (!now) return;
    const points = measures.points(this.span);
    for (const chart of this.#charts) chart.show(points, now.at, this.span);
    this.#now = now;
    this.#judge();
    this.#processes.textContent = measures.processes > 1
      ? `The charts show the sum of ${measures.processes} processes that answer this page.`
      : "The charts show the process that answers this page, and before that each minute of all processes.";
    if (this.#lanes.isConnected && now.stopped.join() !== this.#stopped) this.#reload();
  }

  #choose(span) {
    this.span = span;
    this.#name();
    this.loadSpan();
  }

  #name() {
    this.#period.textContent = periodOf(this.span);
  }

  /** Load the lanes again when the metrics report that one stopped or resumed. */
  async #reload() {
    const lanes = await call("operations/lanes").catch(() => null); // the poll of the metrics shows errors
    if (lanes) this.#tabulate(lanes.data);
  }

  /** Show the problems found in the lanes and the metrics. */
  #judge() {
    this.#verdict.replaceChildren(...verdict(this.#known, this.#now).map(([kind, text]) => h("li", { class: kind }, text)));
  }

  #tabulate(lanes) {
    this.#known = lanes;
    if (this.#now || lanes.some(hasProblem)) this.#judge();
    this.#stopped = lanes.filter((lane) => lane.stopped_at).map(({ name }) => name).join();
    this.#lanes.replaceChildren(laneTable(lanes));
  }
}

class DeadLetters {
  title = "Dead letters";

  async load(refresh) {
    const { data } = await call(`operations/dead-letters?limit=${MAX_DEAD_LETTERS}`);
    const letters = byEvent(data);
    const boxes = letters.map(({ event_id: id }) =>
      h("input", { type: "checkbox", value: id, "aria-label": `Replay event ${id}`, onchange: () => count() }));
    const all = h("input", { type: "checkbox", onchange: () => {
      for (const box of boxes) box.checked = all.checked;
      count();
    } });
    const button = h("button", { type: "button", class: "main", disabled: true, onclick: () =>
      replay({ events: chosen() }, refresh) }, "Replay selected");
    const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);
    const count = () => {
      const { length } = chosen();
      button.disabled = !length;
      button.textContent = length ? `Replay ${length} selected` : "Replay selected";
      all.checked = length === boxes.length;
      all.indeterminate = length > 0 && length < boxes.length;
    };
    const lanes = [...new Set(data.filter(({ what }) => what === "push").map(({ lane }) => lane))].sort();
    return [
      h("p", { class: "faint" }, "Jobs and pushes that failed permanently in the last 30 days. Replaying an event requeues its failed jobs and pushes."),
      h("div", { class: "row" }, letters.length && may("support") ? [h("label", {}, all, " Select all"), button] : null,
        may("operator") ? lanes.map((lane) =>
          h("button", { type: "button", onclick: () => replayLane(lane, refresh) }, `Replay lane ${lane}`)) : null),
      may("support")
        ? table("Dead letters", ["Replay", ...DEAD_LETTER], letters.map((letter, nth) => [boxes[nth], ...letterCells(letter)]), noFailures())
        : table("Dead letters", DEAD_LETTER, letters.map(letterCells), noFailures()),
      data.length === MAX_DEAD_LETTERS ? h("p", { class: "faint" }, `Only the latest ${MAX_DEAD_LETTERS.toLocaleString("en")} are shown.`) : null,
    ];
  }
}

class Customs {
  title = "Custom notifications";

  async load() {
    const { data } = await call("operations/custom-notifications?limit=100");
    return [
      h("p", { class: "faint" }, "Senders of the last 100 custom notifications. Texts are not shown."),
      table("Custom notifications", ["Accepted (UTC)", "Event", "Sender", "Users", "Teams", "Reached", "Dropped"], data.map((each) => [
        moment(each.accepted_at), eventLink(each.id), sender(each), each.users, each.teams, each.recipients, each.dropped,
      ]), "No custom notifications."),
    ];
  }
}

/** The audit log in pages, of all actions or one, and of all callers or one. */
class Audit {
  title = "Audit log";

  constructor(action = "", caller = "") {
    this.action = Object.hasOwn(ACTIONS, action) ? action : "";
    this.caller = caller;
  }

  async load() {
    const place = h("div");
    const action = h("select", { id: "action" },
      h("option", { value: "" }, "All actions"),
      Object.entries(ACTIONS).map(([name, words]) => h("option", { value: name, selected: name === this.action }, words)));
    const caller = h("input", { id: "caller", value: this.caller, maxlength: "200", placeholder: "user 4" });
    const filter = new URLSearchParams({ limit: String(PAGE_SIZE) });
    if (this.action) filter.set("action", this.action);
    if (this.caller) filter.set("caller", this.caller);
    const show = async (before) => {
      const { data, next } = await call(`operations/audit?${filter}${before ? `&before=${before}` : ""}`);
      place.replaceChildren(
        table("Audit log", ["Time (UTC)", "Action", "Caller", "Company", "Subject", "Details", "Request"], data.map((each) => [
          moment(each.at), ACTIONS[each.action] ?? each.action, actor(each), each.company_id ?? "all", subject(each),
          details(each.details), each.request_id ? h("code", { class: "id", title: each.request_id }, `${each.request_id.slice(0, 8)}…`) : "–",
        ]), next ? "No entries on this page." : "No entries."),
        h("p", { class: "row" },
          ...before ? [h("button", { type: "button", onclick: () => show().catch(showError) }, "First page")] : [],
          ...next ? [h("button", { type: "button", onclick: () => show(next).catch(showError) }, "Next page")] : []));
    };
    await show();
    return [
      h("p", { class: "faint" }, "Who did what. Names are those at that time. Texts of notifications are not recorded."),
      h("form", { class: "row", onsubmit: (event) => {
        event.preventDefault();
        this.#filter(action.value, caller.value);
      } }, h("label", { for: "action" }, "Action"), action, h("label", { for: "caller" }, "Caller"), caller,
      h("button", { type: "submit" }, "Filter")),
      place,
    ];
  }

  #filter(action, caller) {
    location.hash = `audit/${action}/${encodeURIComponent(caller.trim())}`;
  }
}

const ACTIONS = {
  console_opened: "Opened the console", custom_sent: "Sent a custom notification", event_cancelled: "Cancelled an event",
  exported: "Exported", imported: "Imported", preference_locks_changed: "Changed locked preferences",
  replayed: "Replayed", sessions_ended: "Ended sessions", signed_in: "Signed in", signed_out: "Signed out", subject_resolved: "Resolved a subject", test_push_sent: "Sent a test push", user_erased: "Erased a user",
};

function actor({ caller, name }) {
  return name ? [caller, " ", h("bdi", { class: "name", title: name }, name)] : caller;
}

function subject({ subject: text }) {
  const [, kind, id] = /^(event|user):(.+)$/.exec(text ?? "") ?? [];
  if (kind === "event") return eventLink(id);
  return kind ? link(`user/${id}`, `User ${id}`) : text ?? "–";
}

function details(found) {
  return Object.entries(found).map(([name, value]) => `${name}: ${[value].flat().join(", ") || "none"}`).join("; ");
}

class Event {
  missing = "No event has this ID: it was never accepted, it was deleted after the retention time, or it belongs to another company.";

  constructor(id, user) {
    this.id = id;
    this.user = user;
    this.title = "Event";
  }

  async load(refresh) {
    const path = `events/${encodeURIComponent(this.id)}`;
    const [event, recipients, explanation] = await Promise.all([
      call(path), new Recipients(this.id).load(), this.user && call(`${path}/recipients/${encodeURIComponent(this.user)}`).catch(ignoreNotFound),
    ]);
    const field = h("input", { id: "explain-user", inputmode: "numeric", pattern: "[0-9]+", required: true, value: this.user });
    const pushes = Object.entries(event.pushes).filter(([, number]) => number);
    const isReplayable = event.state === "failed" || event.pushes.dead > 0;
    return [
      facts([
        ["ID", h("code", {}, event.id)], ["Type", event.type], ["State", state(event.state)], ["Reason", event.reason],
        ["Replaced by", event.replaced_by && eventLink(event.replaced_by)],
        ["Inboxes reached", event.recipients], ["Read", event.read], ["Dropped", event.dropped],
        ["Pushes", pushes.length ? h("ul", { class: "states" }, pushes.map(([name, number]) => h("li", {}, state(name), ` ${number}`))) : "none"],
      ]),
      isReplayable ? h("button", { type: "button", class: "main", onclick: () => replay({ events: [event.id] }, refresh) }, "Replay failed jobs and pushes") : null,
      h("section", {}, h("h2", {}, "Explain a delivery"),
        h("form", { class: "row", onsubmit: (submit) => {
          submit.preventDefault();
          location.hash = `event/${event.id}/${field.value}`;
        } }, h("label", { for: "explain-user" }, "User ID"), field, h("button", { type: "submit" }, "Explain")),
        this.user ? (explanation ? [explained(explanation), h("p", {}, link(`user/${this.user}`, `View user ${this.user}`))] : h("p", { class: "nothing" }, `No information about user ${this.user}.`)) : null),
      ...recipients,
    ];
  }
}

class User {
  missing = "No user has this ID: the directory does not have the user, or the user belongs to another company.";

  constructor(id, since = "24h") {
    this.id = id;
    this.since = Object.hasOwn(SINCE, since) ? since : "24h";
    this.title = `User ${id}`;
  }

  async load() {
    const path = `operations/users/${encodeURIComponent(this.id)}`;
    const since = serverTime() - SINCE[this.since][1];
    const [user, recent] = await Promise.all([call(path), call(`${path}/events?limit=50&since=${encodeURIComponent(utc(since))}`)]);
    const isCut = recent.looked_back_to > utc(since);
    return [
      facts([
        ["Name", h("bdi", {}, `${user.first_name} ${user.last_name}`)], ["Active", user.active ? "yes" : state("no: nothing is delivered")],
        ["Company", user.company_id], ["Inbox", `${user.unread} unread of ${user.total}`], ["Time zone", user.time_zone],
      ]),
      h("section", {}, h("h2", {}, "Preferences"), facts(wishes(user.preferences))),
      h("section", {}, h("h2", {}, "Devices"), deviceTable(user.devices, path)),
      h("section", {}, h("h2", {}, "Recent events"),
        h("p", { class: "row" }, "Since: ", Object.entries(SINCE).map(([name, [words]]) => name === this.since
          ? h("strong", {}, words) : link(`user/${this.id}/${name}`, words))),
        isCut ? h("p", { class: "trouble" }, `Undelivered events are listed only from ${recent.looked_back_to} UTC.`) : null,
        recent.data.length ? recent.data.map((event) => h("article", { class: "recent" },
          h("h3", {}, moment(event.accepted_at), " ", event.type, " ", eventLink(event.event_id, user.id)), explained(event)))
          : h("p", { class: "nothing" }, "No events for this user."),
        recent.data.length === 50 ? h("p", { class: "faint" }, "Only the latest 50 are shown.") : null),
    ];
  }
}

class Device {
  constructor(ending) {
    this.ending = ending;
    this.title = `Devices with a token ending in ${ending}`;
  }

  async load() {
    const { data } = await call(`operations/devices?ending=${encodeURIComponent(this.ending)}`);
    return table(this.title, ["User", "Type", "Lane", "App", "Registered (UTC)", "Last delivered (UTC)"], data.map((each) => [
      link(`user/${each.user_id}`, `User ${each.user_id}`), each.type, each.lane, each.app, moment(each.registered_at), moment(each.last_delivered_at),
    ]), "No registered device has a token with this ending.");
  }
}

class UserOrDevice {
  constructor(text) {
    this.title = `User or device ${text}`;
    this.user = new User(text);
    this.device = new Device(text);
  }

  async load() {
    const [user, device] = await Promise.all([this.user.load().catch(ignoreNotFound), this.device.load()]);
    return [h("h2", {}, this.device.title), device, ...user ?? [h("p", { class: "nothing" }, "No user has this ID.")]];
  }
}

class Found {
  constructor(text) {
    this.text = text;
    this.title = `Find ${text}`;
    this.device = [...text].length === ENDING_LENGTH ? new Device(text) : null;
  }

  async load() {
    const search = encodeURIComponent(this.text);
    const isShort = [...this.text].length < MIN_SEARCH_LENGTH;
    const [people, device] = await Promise.all([
      isShort ? { data: [] } : call(`operations/users?limit=${MAX_FOUND}&search=${search}`), this.device?.load(),
    ]);
    return [
      h("p", { class: "faint" }, "Users whose first name, last name or email address starts with this text. You can also search by event ID (a UUID), user ID (a number), or the last six characters of a device token."),
      table("Users", ["User", "Name", "Email", "Company", "Active"], people.data.map((each) => [
        link(`user/${each.id}`, `User ${each.id}`), named(each), each.email ?? "–", each.company_id, each.active ? "yes" : state("no"),
      ]), "No users found."),
      people.data.length === MAX_FOUND ? h("p", { class: "faint" }, `Only the first ${MAX_FOUND} are shown. Enter more of the name.`) : null,
      ...device ? [h("h2", {}, this.device.title), device] : [],
    ];
  }
}

/** The recipients of an event in pages; those without a delivered push in a section of their own, first. */
class Recipients {
  constructor(event) {
    this.event = event;
    this.path = `operations/events/${encodeURIComponent(event)}/recipients?limit=${PAGE_SIZE}`;
  }

  async load() {
    return [await this.#section("Undelivered pushes", "&pushed=no", "No push failed, and none is waiting."), await this.#section("Recipients", "", "No inbox has this event yet.")];
  }

  async #section(title, filter, nothing) {
    const place = h("div");
    const show = async (after) => {
      const { data } = await call(`${this.path}${filter}&after=${after}`);
      place.replaceChildren(
        table(title, ["User", "Name", "Read (UTC)", "Pushes"], data.map((each) => [
          link(`event/${this.event}/${each.user_id}`, `User ${each.user_id}`), named(each),
          each.read_at ? moment(each.read_at) : "–", each.pushes.length ? each.pushes.map((push) => [state(push), " "]) : "none",
        ]), after ? "No more recipients." : nothing),
        h("p", { class: "row" },
          ...after ? [h("button", { type: "button", onclick: () => show(0).catch(showError) }, "First page")] : [],
          ...data.length === PAGE_SIZE ? [h("button", { type: "button", onclick: () => show(data.at(-1).user_id).catch(showError) }, "Next page")] : []));
    };
    await show(0);
    return h("section", {}, h("h2", {}, title), place);
  }
}

function showError(error) {
  document.getElementById("news").textContent = error.message;
}

function named({ first_name: first, last_name: last }) {
  const name = [first, last].filter(Boolean).join(" ");
  return name ? h("bdi", { class: "name", title: name }, name) : "–";
}

/** Of one company, the service finds only the failures among the latest of all companies. */
function noFailures() {
  return company() === null ? "No failures in the last 30 days."
    : "No failures of this company among the latest 10,000 jobs and 10,000 pushes of all companies that failed in the last 30 days.";
}

const DEAD_LETTER = ["Failed (UTC)", "Task", "Event", "User", "Lane", "Attempts", "Reason"];

function letterCells(letter) {
  const users = letter.users ?? [letter.user_id].filter(Boolean);
  const more = users.length > 3 ? ` and ${users.length - 3} more` : "";
  return [
    moment(letter.at), `${letter.task}${letter.times > 1 ? ` ×${letter.times}` : ""}`,
    /deliver|push/.test(letter.task) && may("support") ? eventLink(letter.event_id) : h("code", {}, letter.event_id.slice(-12)),
    users.length ? [...users.slice(0, 3).flatMap((id, nth) => [nth ? ", " : "", may("support") ? link(`user/${id}`, id) : id]), more] : "–",
    letter.lane, letter.attempts, letter.reason,
  ];
}

/** Group dead letters by event, which is the unit of a replay. */
function byEvent(letters) {
  return [...Map.groupBy(letters, ({ event_id: id }) => id).values()].map((group) => {
    const each = (name) => [...new Set(group.map((letter) => letter[name]).filter((value) => value != null))];
    return {
      ...group[0],
      times: group.length,
      users: each("user_id"),
      attempts: Math.max(...each("attempts")),
      ...Object.fromEntries(["task", "lane", "reason"].map((name) => [name, each(name).join(name === "reason" ? "; " : ", ")])),
    };
  });
}

async function replay(what, refresh) {
  const news = document.getElementById("news");
  try {
    const { jobs, pushes } = await call("operations/replay", what);
    await refresh();
    news.textContent = `Requeued ${number(jobs, "job", "jobs")} and ${number(pushes, "push", "pushes")}.`;
  } catch (error) {
    news.textContent = error.message;
  }
}

async function replayLane(lane, refresh) {
  const yes = await ask(`Resend up to 10,000 failed pushes of ${lane}, oldest first?`, "Replay");
  if (yes) await replay({ lane }, refresh);
}

function explained(found) {
  const times = [["read", found.read_at], ["deleted", found.deleted_at]].filter(([, at]) => at).map(([did, at]) => `, ${did} at ${at}`);
  return h("div", { class: "explained" },
    h("p", {}, state(found.recipient ? "delivered" : "not delivered"), found.recipient ? ` to the inbox at ${found.delivered_at}: ` : ": ", found.why === "named" ? "named in notify.users" : found.why, times),
    found.devices.length ? h("ul", {}, found.devices.map((device) => h("li", {},
      state(device.state), ` ${device.type} …${device.token_ending} through ${device.lane}`,
      device.what && device.what !== device.state ? `: ${device.what}` : "",
      device.attempts > 1 ? ` (${device.attempts} attempts)` : ""))) : null);
}

function deviceTable(devices, user) {
  return table("Devices", ["Type", "Token ending", "Lane", "Last push", "Reason", "Last delivered (UTC)", "Registered (UTC)", "Test"], devices.map((each) => [
    each.type, h("code", {}, `…${each.token_ending}`), each.lane, state(each.state), each.what === each.state ? "" : each.what, moment(each.last_delivered_at), moment(each.registered_at),
    testOf(each, `${user}/devices/${each.id}/test`),
  ]), "No registered devices, so nothing is pushed.");
}

/** Return a button that sends a test push, and the place of its result. */
function testOf(device, path) {
  let isSending = false;
  const result = h("p", { role: "status" });
  const button = h("button", { type: "button", "aria-label": `Send test push to ${device.type} …${device.token_ending}`, onclick: async () => {
    if (isSending) return;
    isSending = true;
    button.setAttribute("aria-disabled", "true"); // a disabled button would lose the focus
    result.replaceChildren("Sending …");
    try {
      const { state: word, reason } = await call(path, {});
      result.replaceChildren(state(word), reason === word ? "" : ` ${reason}`);
    } catch (error) {
      result.replaceChildren(error.message);
    } finally {
      isSending = false;
      button.removeAttribute("aria-disabled");
    }
  } }, "Send test push");
  return [button, result];
}

function laneTable(lanes) {
  return table("Lanes", ["Lane", "State", "Due", "Last delivered (UTC)", "Stopped (UTC)", "Reason"], lanes.map((lane) => [
    lane.name, state(lane.stopped_at ? "stopped" : lane.problem ? "failing" : lane.delivered_at ? "working" : "no traffic yet"), lane.due, moment(lane.delivered_at),
    lane.stopped_at ? moment(lane.stopped_at) : "", lane.reason ?? lane.problem,
  ]), "No lanes: no push credentials are configured.");
}

function sender({ sender: user, service }) {
  if (!user) return `service ${service}`;
  const name = [user.first_name, user.last_name].filter(Boolean).join(" ");
  return [link(`user/${user.id}`, `User ${user.id}`), ...name ? [" ", h("bdi", { class: "name", title: name }, name)] : [], service ? `, through service ${service}` : ""];
}

/** Return the problems, each with its severity: what has stopped, since when, why, and what to do. */
function verdict(lanes, now) {
  const problems = lanes.flatMap(problemsOf);
  if (!now) return problems;
  for (const reason of now.problems) {
    if (!lanes.some((lane) => says(lane, reason)) && !(now.diskLow && reason.includes("disk"))) problems.push(["bad", `Work waits or fails: ${reason}.`]);
  }
  if (now.diskLow) problems.push(["bad", "New events are refused: the disk of the database is almost full. Free space on it."]);
  if (now.unarchived !== null) problems.push(["bad", `PostgreSQL cannot archive its log: ${number(now.unarchived, "segment waits", "segments wait")} on its disk. Run \`tocsin doctor\`.`]);
  if (now["api errors"]) problems.push(["bad", `${number(now["api errors"], "request was", "requests were")} answered 5xx in the last minute. See the log for the reason.`]);
  if (now["rate limited"]) problems.push(["odd", `${number(now["rate limited"], "request", "requests")} exceeded a rate limit in the last minute: ${now.limits.join(", ")}.`]);
  const errors = ["apns", "fcm", "web"].map((provider) => now[`${provider} errors`] ?? 0).reduce((sum, each) => sum + each);
  if (errors) problems.push(["odd", `${number(errors, "push", "pushes")} failed in the last minute.`]);
  return problems.length ? problems : [["good", "No problems: no lane has stopped, and no job waits for long."]];
}

/** Return whether the problems of a lane include a problem of the metrics. */
function says(lane, reason) {
  return lane.problem?.includes(reason) || reason.includes(`${lane.name} ${lane.problem}`) || (lane.stopped_at && reason.includes(lane.reason)) || lane.refused_by?.some(({ service }) => reason.startsWith(service));
}

function hasProblem(lane) {
  return lane.stopped_at || lane.problem || lane.refused_by?.length;
}

/** Return the problems of a lane; for a stopped one with the number of waiting pushes and what to do. */
function problemsOf(lane) {
  const due = `${number(lane.due, "push waits", "pushes wait")}; nothing is lost.`;
  if (lane.stopped_at) {
    return [["bad", `${lane.name} stopped at ${lane.stopped_at} UTC: ${lane.reason}. ${due} Fix its key or settings, then send SIGHUP to the service. It also retries by itself.`]];
  }
  const refused = (lane.refused_by ?? []).map(({ service, since, reason }) =>
    ["bad", `${service} has refused pushes of ${lane.name} since ${since} UTC: ${reason}. ${due}`]);
  return lane.problem && !refused.length ? [["bad", `${lane.name}: ${lane.problem}. ${due}`]] : refused;
}

function latencies(line, title) {
  return new Chart({
    title, note: "last minute", format: duration, least: 0.01,
    lines: [{ key: `${line} p50`, name: "p50" }, { key: `${line} p95`, name: "p95" }, { key: `${line} p99`, name: "p99" }],
  });
}

/** Return the name of a span as a heading. */
function periodOf(span) {
  return spanName(span).replace("the last", "Last");
}

function ignoreNotFound(error) {
  if (error.status === 404) return null;
  throw error;
}

function number(value, one, many) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

function rate(value) {
  return value < 10 ? value.toFixed(1) : count(value);
}

function count(value) {
  return Math.round(value).toLocaleString("en");
}

function duration(seconds) {
  if (seconds < 1) return `${+(seconds * 1000).toPrecision(2)} ms`;
  return seconds < 120 ? `${+seconds.toPrecision(2)} s` : `${Math.round(seconds / 60)} min`;
}
