/** The preferences pane: pushes in this browser, pause, quiet hours, time zone, and a switch for each kind and channel. */

import { icon, iconButton, textButton } from "./icons.js";
import { problemOf } from "./words.js";
import { h } from "../shared/dom.js";
import { timeOf } from "../shared/times.js";

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

export class Preferences {
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

  /** Send changes one after another; a refused one is reverted and its reason shown. */
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
    const had = this.#pause.contains(/** @type {ShadowRoot} */ (this.element.getRootNode()).activeElement);
    const set = (moment) => this.#save({ paused_until: moment && moment.toISOString() }, () => this.#drawPause());
    const button = (text, moment) => textButton("button", text, () => set(moment()));
    const morning = new Date();
    morning.setDate(morning.getDate() + 1);
    morning.setHours(8, 0, 0, 0);
    this.#pause.replaceChildren(h("section", {}, h("h3", {}, words.pause), ...(+until > Date.now()
      ? [h("p", { class: "hint" }, words.pausedUntil(this.#times.moment(until))), h("div", { class: "buttons" }, button(words.resume, () => null))]
      : [h("p", { class: "hint" }, words.pauseHint), h("div", { class: "buttons" }, button(words.pauseHour, () => new Date(Date.now() + 3_600_000)),
        button(words.pauseTomorrow(this.#times.clock(morning)), () => morning))])));
    if (had) this.#pause.querySelector("button").focus();
  }

  #drawQuiet() {
    const words = this.#words;
    const windows = structuredClone(this.#now.quiet_hours ?? []);
    const had = this.#quiet.contains(/** @type {ShadowRoot} */ (this.element.getRootNode()).activeElement);
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
      h("div", { class: "buttons" }, clock(window, "from"), clock(window, "to")),
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

  /** The first quiet hours use the time zone of this browser, if none is set. */
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
