/** The frame of the element: bell, panel, bar, tabs, list, toast. */

import { icon, iconButton, textButton } from "./icons.js";
import { h } from "../shared/dom.js";

/** Return the parts by name; `root` has the top-level ones. `on` has the handlers of the controls. */
export function frameOf(mode, words, locale, on) {
  const bell = mode === "bell";
  /** @type {Record<string, any>} */
  const p = {};
  p.badge = h("span", { class: "badge", part: "badge", "aria-hidden": "true", hidden: true });
  p.bell = h("button", { class: "bell", part: "bell", type: "button", "aria-haspopup": "dialog", "aria-expanded": "false",
    onclick: on.bell, onpointerenter: on.hover },
    h("slot", { name: "bell" }, icon("bell")), p.badge);
  p.back = iconButton("back", words.back, () => on.turn("list"));
  p.title = h("h2", { class: "title", part: "title", id: "title" });
  p.readAll = iconButton("checks", words.readAll, on.readAll);
  p.settings = iconButton("sliders", words.preferences, () => on.turn("preferences"));
  p.close = iconButton("close", words.close, on.close);
  p.close.classList.add("close");
  p.tabs = ["all", "unread"].map((name) => h("button", { class: "tab", part: "tab", type: "button", role: "tab", id: `tab-${name}`,
    "aria-controls": "list", onclick: () => on.choose(name) }, h("span", {}, words[name]), h("span", { class: "count" })));
  p.notice = h("p", { class: "notice", part: "notice", hidden: true });
  p.pausedText = h("span", {});
  p.paused = h("div", { class: "notice paused", part: "paused", hidden: true }, p.pausedText, textButton("text-button", words.resume, on.resume));
  p.pill = textButton("pill", "", on.reveal);
  p.days = h("div", { class: "days" });
  p.more = textButton("text-button", words.more, on.more);
  [p.pill.part, p.more.part] = ["pill", "more"];
  p.near = h("i", { class: "near" });
  p.foot = h("div", { class: "foot" }, p.near, p.more);
  p.state = h("div", { class: "state" });
  p.emptyText = h("div", {});
  p.empty = h("div", { class: "state", part: "empty", hidden: true }, h("slot", { name: "empty" }, p.emptyText));
  p.list = h("div", { class: "list", part: "list", id: "list", role: "tabpanel", onkeydown: on.rowKey },
    h("div", { class: "pills" }, p.pill), p.days, p.foot, p.state, p.empty);
  p.pane = h("div", { class: "pane", hidden: true });
  p.body = h("div", { class: "body" }, p.list, p.pane);
  p.toast = h("div", { class: "toast", part: "toast", hidden: true, onpointerenter: on.hold,
    onpointerleave: on.arm, onfocusin: on.hold, onfocusout: on.arm });
  p.tablist = h("div", { class: "tabs", role: "tablist", "aria-label": words.show, onkeydown: on.tabKey }, p.tabs);
  p.bar = h("div", { class: "bar", part: "header" }, p.back, p.title, h("slot", { name: "header" }), p.readAll, p.settings,
    bell ? p.close : null);
  p.panel = h("div", { class: "panel", part: "panel", role: bell ? "dialog" : "region", "aria-labelledby": "title", tabindex: "-1",
    lang: locale, hidden: bell, onkeydown: on.key, onfocusout: on.left },
    p.bar, p.tablist, p.notice, p.paused, p.body, p.toast);
  if (bell) p.panel.popover = "manual";
  p.live = h("div", { class: "unseen", role: "status", "aria-live": "polite", lang: locale });
  p.root = bell ? [p.bell, p.panel, p.live] : [p.panel, p.live];
  return p;
}
