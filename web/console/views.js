/* The views: each has a title, and loads what it shows when it is opened; nothing here asks by itself. */

import { Chart } from "./charts.js";
import { ask, eventLink, facts, link, moment, state, table } from "./elements.js";
import { KEPT } from "./measures.js";
import { call } from "./session.js";
import { h } from "../shared/dom.js";
import { utc } from "../shared/times.js";

const MOST_LETTERS = 1_000;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const ENDING = 6;
const SHORTEST = 2; // characters of a name that are searched for
const MOST_FOUND = 50;
const A_PAGE = 25;
const SINCE = { "1h": ["1 hour", 3_600_000], "24h": ["24 hours", 86_400_000], "7d": ["7 days", 604_800_000], "30d": ["30 days", 2_592_000_000] };

/** Return the view that an address names; anything else is searched for. */
export function viewOf(name) {
  const [kind, ...rest] = name.split("/").map(decoded);
  const views = {
    "dead-letters": () => new DeadLetters(),
    custom: () => new Customs(),
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

/** An event's id is a UUID and a user's a number; anything else a name, or a device's ending where it is as long. */
function found(text) {
  if (UUID.test(text)) return new Event(text.toLowerCase());
  if (/^\d{1,10}$/.test(text) && text.length !== ENDING) return new User(text);
  if (/^\d+$/.test(text) && text.length === ENDING) return new UserOrDevice(text);
  return new Found(text);
}

/** What is going on: charts of the last minutes, what stands out, lanes, and what was given up last. */
export class Overview {
  title = "Overview";
  #verdict = h("ul", { class: "verdict", "aria-label": "What stands out" }, h("li", {}, "Asking for the metrics …"));
  #processes = h("p", { class: "faint" });
  #lanes = h("div");
  #stopped = ""; // the lanes that have, as the table has it
  #known = []; // the lanes, as they were asked for last
  #now = null; // what the metrics said last
  #charts = [
    new Chart({
      title: "Throughput", note: "a second", format: rate, span: KEPT,
      lines: [
        { key: "events", name: "events in inboxes" }, { key: "pushes", name: "pushes delivered" },
        { key: "requests", name: "requests answered" },
      ],
    }),
    new Chart({
      title: "Queue depth", note: "what is due", format: count, span: KEPT, least: 10,
      lines: [
        { key: "direct", name: "jobs, direct" }, { key: "bulk", name: "jobs, bulk" }, { key: "waiting", name: "pushes" },
      ],
    }),
    new Chart({
      title: "Longest wait", note: "of a job that is due", format: duration, span: KEPT, least: 1,
      lines: [{ key: "oldest direct", name: "direct" }, { key: "oldest bulk", name: "bulk" }],
    }),
    latencies("inbox", "Accepted to inbox"),
    latencies("push", "Inbox to provider"),
    new Chart({
      title: "Errors", note: "in the last minute", format: count, span: KEPT, least: 4,
      lines: [
        { key: "apns errors", name: "APNs" }, { key: "fcm errors", name: "FCM" }, { key: "web errors", name: "browsers" },
        { key: "api errors", name: "API, 5xx" },
      ],
    }),
  ];

  async load() {
    const [lanes, letters] = await Promise.all([call("operations/lanes"), call("operations/dead-letters?limit=5")]);
    this.#tabulate(lanes.data);
    return [
      this.#verdict,
      h("section", {}, h("h2", {}, "Lanes"), this.#lanes),
      h("section", {}, h("h2", {}, "Recent failures"),
        table("Recent failures", LETTER, letters.data.map(letterCells), "Nothing was given up in the last 30 days."),
        letters.data.length ? h("p", {}, link("dead-letters", "All dead letters")) : null),
      h("section", {}, h("h2", {}, "The last 15 minutes"),
        h("div", { class: "charts" }, this.#charts.map((chart) => chart.element)), this.#processes),
    ];
  }

  /** Draw what is known; called whenever something new is. */
  show(measures) {
    const now = measures.points.at(-1);
    if (!now) return;
    for (const chart of this.#charts) chart.show(measures.points, now.at);
    this.#now = now;
    this.#judge();
    this.#processes.textContent = measures.processes > 1
      ? `${measures.processes} processes answer here in turn; what they do is added up.`
      : "The charts show what the process that answers here does, for as long as this page is looked at.";
    if (this.#lanes.isConnected && now.stopped.join() !== this.#stopped) this.#reload();
  }

  /** Say why a lane has stopped, or that it goes again, as soon as the metrics say that it does. */
  async #reload() {
    const lanes = await call("operations/lanes").catch(() => null); // what is wrong is told where metrics are asked for
    if (lanes) this.#tabulate(lanes.data);
  }

  /** Say what stands out, by what is known of lanes and of the metrics. */
  #judge() {
    this.#verdict.replaceChildren(...verdict(this.#known, this.#now).map(([kind, text]) => h("li", { class: kind }, text)));
  }

  #tabulate(lanes) {
    this.#known = lanes;
    if (this.#now || lanes.some(isTroubled)) this.#judge();
    this.#stopped = lanes.filter((lane) => lane.stopped_at).map(({ name }) => name).join();
    this.#lanes.replaceChildren(laneTable(lanes));
  }
}

class DeadLetters {
  title = "Dead letters";

  async load(refresh) {
    const { data } = await call(`operations/dead-letters?limit=${MOST_LETTERS}`);
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
      h("p", { class: "faint" }, "What was given up in the last 30 days. Replaying an event sets going once more all that was given up of it."),
      h("div", { class: "row" }, letters.length ? [h("label", {}, all, " All shown"), button] : null, lanes.map((lane) =>
        h("button", { type: "button", onclick: () => replayLane(lane, refresh) }, `Replay lane ${lane}`))),
      table("Dead letters", ["Replay", ...LETTER], letters.map((letter, nth) => [boxes[nth], ...letterCells(letter)]),
        "Nothing was given up in the last 30 days."),
      data.length === MOST_LETTERS ? h("p", { class: "faint" }, `Only the last ${MOST_LETTERS} are shown.`) : null,
    ];
  }
}

class Customs {
  title = "Custom notifications";

  async load() {
    const { data } = await call("operations/custom-notifications?limit=100");
    return [
      h("p", { class: "faint" }, "Who sent what users write to each other, the last 100. What they say is not shown."),
      table("Custom notifications", ["Accepted (UTC)", "Event", "Sender", "Users", "Teams", "Reached", "Dropped"], data.map((each) => [
        moment(each.accepted_at), eventLink(each.id), sender(each), each.users, each.teams, each.recipients, each.dropped,
      ]), "There is no custom notification."),
    ];
  }
}

class Event {
  constructor(id, user) {
    Object.assign(this, { id, user, title: "Event" });
  }

  async load(refresh) {
    const path = `events/${encodeURIComponent(this.id)}`;
    const [event, reached, told] = await Promise.all([
      call(path), new Recipients(this.id).load(), this.user && call(`${path}/recipients/${encodeURIComponent(this.user)}`).catch(unlessMissing),
    ]);
    const field = h("input", { id: "whom", inputmode: "numeric", pattern: "[0-9]+", required: true, value: this.user });
    const pushes = Object.entries(event.pushes).filter(([, number]) => number);
    const isReplayable = event.state === "failed" || event.pushes.dead > 0;
    return [
      facts([
        ["Id", h("code", {}, event.id)], ["Type", event.type], ["State", state(event.state)], ["Reason", event.reason],
        ["Replaced by", event.replaced_by && eventLink(event.replaced_by)],
        ["Inboxes reached", event.recipients], ["Read", event.read], ["Dropped", event.dropped],
        ["Pushes", pushes.length ? h("ul", { class: "states" }, pushes.map(([name, number]) => h("li", {}, state(name), ` ${number}`))) : "none"],
      ]),
      isReplayable ? h("button", { type: "button", class: "main", onclick: () => replay({ events: [event.id] }, refresh) }, "Replay what was given up") : null,
      h("section", {}, h("h2", {}, "Explain a delivery"),
        h("form", { class: "row", onsubmit: (submit) => {
          submit.preventDefault();
          location.hash = `event/${event.id}/${field.value}`;
        } }, h("label", { for: "whom" }, "User id"), field, h("button", { type: "submit" }, "Explain")),
        this.user ? (told ? [explained(told), h("p", {}, link(`user/${this.user}`, `All of user ${this.user}`))] : h("p", { class: "nothing" }, `There is nothing to tell of user ${this.user}.`)) : null),
      ...reached,
    ];
  }
}

class User {
  constructor(id, since = "24h") {
    Object.assign(this, { id, since: Object.hasOwn(SINCE, since) ? since : "24h", title: `User ${id}` });
  }

  async load() {
    const path = `operations/users/${encodeURIComponent(this.id)}`;
    const since = Date.now() - SINCE[this.since][1];
    const [user, lately] = await Promise.all([call(path), call(`${path}/events?limit=50&since=${encodeURIComponent(utc(since))}`)]);
    const isCut = lately.looked_back_to > utc(since);
    return [
      facts([
        ["Name", h("bdi", {}, `${user.first_name} ${user.last_name}`)], ["Active", user.active ? "yes" : state("no: nothing is delivered")],
        ["Company", user.company_id], ["Inbox", `${user.unread} unread of ${user.total}`], ["Time zone", user.time_zone],
      ]),
      h("section", {}, h("h2", {}, "Devices"), deviceTable(user.devices)),
      h("section", {}, h("h2", {}, `What came lately, and what did not`),
        h("p", { class: "row" }, "Since: ", Object.entries(SINCE).map(([name, [words]]) => name === this.since
          ? h("strong", {}, words) : link(`user/${this.id}/${name}`, words))),
        isCut ? h("p", { class: "trouble" }, `There was so much that what did not come is told from ${lately.looked_back_to} on.`) : null,
        lately.data.length ? lately.data.map((event) => h("article", { class: "told" },
          h("h3", {}, moment(event.accepted_at), " ", event.type, " ", eventLink(event.event_id, user.id)), explained(event)))
          : h("p", { class: "nothing" }, "Nothing concerned this user."),
        lately.data.length === 50 ? h("p", { class: "faint" }, "Only the last 50 are shown.") : null),
    ];
  }
}

class Device {
  constructor(ending) {
    Object.assign(this, { ending, title: `Devices that end with ${ending}` });
  }

  async load() {
    const { data } = await call(`operations/devices?ending=${encodeURIComponent(this.ending)}`);
    return table(this.title, ["User", "Type", "Lane", "App", "Registered (UTC)", "Last delivered (UTC)"], data.map((each) => [
      link(`user/${each.user_id}`, `User ${each.user_id}`), each.type, each.lane, each.app, moment(each.registered_at), moment(each.last_delivered_at),
    ]), "No device that is registered now ends with this.");
  }
}

class UserOrDevice {
  constructor(text) {
    Object.assign(this, { title: `User or device ${text}`, user: new User(text), device: new Device(text) });
  }

  async load(refresh) {
    const [user, device] = await Promise.all([this.user.load(refresh).catch(unlessMissing), this.device.load()]);
    return [h("h2", {}, this.device.title), device, ...user ?? [h("p", { class: "nothing" }, "There is no such user.")]];
  }
}

class Found {
  constructor(text) {
    Object.assign(this, { text, title: `Find ${text}`, device: [...text].length === ENDING ? new Device(text) : null });
  }

  async load() {
    const search = encodeURIComponent(this.text);
    const isShort = [...this.text].length < SHORTEST;
    const [people, device] = await Promise.all([
      isShort ? { data: [] } : call(`operations/users?limit=${MOST_FOUND}&search=${search}`), this.device?.load(),
    ]);
    return [
      h("p", { class: "faint" }, "Users whose name, last name or e-mail address begins with this. An event is found by its id (a UUID), a user by theirs (a number), a device by the last six characters of its token."),
      table("Users", ["User", "Name", "E-mail", "Company", "Active"], people.data.map((each) => [
        link(`user/${each.id}`, `User ${each.id}`), named(each), each.email ?? "–", each.company_id, each.active ? "yes" : state("no"),
      ]), "No user is found by this."),
      people.data.length === MOST_FOUND ? h("p", { class: "faint" }, `Only ${MOST_FOUND} are shown. Write more of the name.`) : null,
      ...device ? [h("h2", {}, this.device.title), device] : [],
    ];
  }
}

/** The recipients of an event, a page at a time; those whose push did not go come first. */
class Recipients {
  constructor(event) {
    Object.assign(this, { event, path: `operations/events/${encodeURIComponent(event)}/recipients?limit=${A_PAGE}` });
  }

  async load() {
    return [await this.#section("A push did not go, or not yet", "&pushed=no", "No push failed or waits."), await this.#section("Recipients", "", "It is in no inbox yet.")];
  }

  async #section(title, more, nothing) {
    const place = h("div");
    const show = async (after) => {
      const { data } = await call(`${this.path}${more}&after=${after}`);
      place.replaceChildren(
        table(title, ["User", "Name", "Read (UTC)", "Pushes"], data.map((each) => [
          link(`event/${this.event}/${each.user_id}`, `User ${each.user_id}`), named(each),
          each.read_at ? moment(each.read_at) : "–", each.pushes.length ? each.pushes.map((push) => [state(push), " "]) : "none",
        ]), after ? "There are no more." : nothing),
        h("p", { class: "row" },
          ...after ? [h("button", { type: "button", onclick: () => show(0).catch(tell) }, "First page")] : [],
          ...data.length === A_PAGE ? [h("button", { type: "button", onclick: () => show(data.at(-1).user_id).catch(tell) }, "Next page")] : []));
    };
    await show(0);
    return h("section", {}, h("h2", {}, title), place);
  }
}

function tell(error) {
  document.getElementById("news").textContent = error.message;
}

function named({ first_name: first, last_name: last }) {
  const name = [first, last].filter(Boolean).join(" ");
  return name ? h("bdi", { class: "name", title: name }, name) : "–";
}

const LETTER = ["Given up (UTC)", "What", "Event", "User", "Lane", "Tries", "Reason"];

function letterCells(letter) {
  const users = letter.users ?? [letter.user_id].filter(Boolean);
  const more = users.length > 3 ? ` and ${users.length - 3} more` : "";
  return [
    moment(letter.at), `${letter.task}${letter.times > 1 ? ` ×${letter.times}` : ""}`,
    /deliver|push/.test(letter.task) ? eventLink(letter.event_id) : h("code", {}, letter.event_id.slice(-12)),
    users.length ? [...users.slice(0, 3).flatMap((id, nth) => [nth ? ", " : "", link(`user/${id}`, id)]), more] : "–",
    letter.lane, letter.attempts, letter.reason,
  ];
}

/** One line for all that was given up of an event: that is what a replay sets going. */
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
  const yes = await ask(`Send up to 10,000 pushes of ${lane} once more, the oldest first?`, "Replay");
  if (yes) await replay({ lane }, refresh);
}

function explained(told) {
  const came = told.recipient ? state("came") : state("did not come");
  const times = [["read", told.read_at], ["deleted", told.deleted_at]].filter(([, at]) => at).map(([did, at]) => `, ${did} at ${at}`);
  return h("div", { class: "explained" },
    h("p", {}, came, told.recipient ? ` into the inbox at ${told.delivered_at}: ` : " ", told.why, times),
    told.devices.length ? h("ul", {}, told.devices.map((device) => h("li", {},
      state(device.state), ` ${device.type} …${device.token_ending} by ${device.lane}`,
      device.what && device.what !== device.state ? `: ${device.what}` : "",
      device.attempts > 1 ? ` (tried ${device.attempts} times)` : ""))) : null);
}

function deviceTable(devices) {
  return table("Devices", ["Type", "Ending", "Lane", "Last push", "Why", "Last delivered (UTC)", "Registered (UTC)"], devices.map((each) => [
    each.type, h("code", {}, `…${each.token_ending}`), each.lane, state(each.state), each.what === each.state ? "" : each.what, moment(each.last_delivered_at), moment(each.registered_at),
  ]), "No device is registered: nothing is pushed.");
}

function laneTable(lanes) {
  return table("Lanes", ["Lane", "State", "Due", "Last delivered (UTC)", "Stopped (UTC)", "Why"], lanes.map((lane) => [
    lane.name, state(lane.stopped_at ? "stopped" : lane.problem ? "failing" : lane.delivered_at ? "works" : "no traffic yet"), lane.due, moment(lane.delivered_at),
    lane.stopped_at ? moment(lane.stopped_at) : "", lane.reason ?? lane.problem,
  ]), "No keys for pushes are set: there is no lane.");
}

function sender({ sender: user, service }) {
  if (!user) return `service ${service}`;
  const name = [user.first_name, user.last_name].filter(Boolean).join(" ");
  return [link(`user/${user.id}`, `User ${user.id}`), ...name ? [" ", h("bdi", { class: "name", title: name }, name)] : [], service ? `, by service ${service}` : ""];
}

/** What a person on call must know first, each with how bad it is: what has stopped, since when, why, what to do. */
function verdict(lanes, now) {
  const said = lanes.flatMap(troublesOf);
  for (const name of now?.stopped ?? []) {
    if (!lanes.some((lane) => lane.name === name && lane.stopped_at)) said.push(["bad", `Lane ${name} has stopped: nothing of it is pushed, nothing is lost.`]);
  }
  if (!now) return said;
  const oldest = Math.max(now["oldest direct"], now["oldest bulk"]);
  if (oldest > 60) said.push(["bad", `A job waits for ${duration(oldest)}. See that a worker runs: \`tocsin serve\` or \`tocsin worker\`.`]);
  if (now["api errors"]) said.push(["bad", `In the last minute ${number(now["api errors"], "request was", "requests were")} answered 5xx. The log has the reason.`]);
  const errors = ["apns", "fcm", "web"].map((provider) => now[`${provider} errors`] ?? 0).reduce((sum, each) => sum + each);
  if (errors) said.push(["odd", `In the last minute ${number(errors, "push", "pushes")} failed.`]);
  return said.length ? said : [["good", "No lane has stopped, and nothing waits for long."]];
}

function isTroubled(lane) {
  return lane.stopped_at || lane.problem || lane.refused_by?.length;
}

/** What is wrong with a lane; one that has stopped comes with what waits and what to do. */
function troublesOf(lane) {
  const due = `${number(lane.due, "push waits", "pushes wait")}; nothing is lost.`;
  if (lane.stopped_at) {
    return [["bad", `${lane.name} stopped at ${lane.stopped_at} UTC: ${lane.reason}. ${due} Put its key or settings right and send the service SIGHUP; it is tried again by itself, too.`]];
  }
  const refused = (lane.refused_by ?? []).map(({ service, since, reason }) =>
    ["bad", `${service} refuses ${lane.name} since ${since} UTC: ${reason}. ${due}`]);
  return lane.problem && !refused.length ? [["bad", `${lane.name}: ${lane.problem}. ${due}`]] : refused;
}

function latencies(line, title) {
  return new Chart({
    title, note: "of the last minute", format: duration, span: KEPT, least: 0.01,
    lines: [{ key: `${line} p50`, name: "p50" }, { key: `${line} p95`, name: "p95" }, { key: `${line} p99`, name: "p99" }],
  });
}

function unlessMissing(error) {
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
