/** The rows of the list: created once per notification, then updated. */

import { icon, iconButton, label, textButton } from "./icons.js";
import { messageOf, pictureOf } from "./safe_html.js";
import { h, put, reflect, set } from "../shared/dom.js";
import { timeOf } from "../shared/times.js";

/**
 * A row. It is created once and then only changed parts are updated, because there may be thousands. Content that the
 * page draws is a child of the element (`host`), so that the page's style applies to it.
 */
export function makeRow(note, words, times, does, host) {
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
  const element = h("li", { class: "row", part: "row", onfocusin: does.focus }, main, state,
    h("slot", { name: `item-${id}` }, avatar(note), h("div", { class: "said" }, from, text, h("div", { class: "below" }, time, fold))),
    h("div", { class: "actions" }, toggle, remove));
  /** @type {{ current?: boolean }} */
  let drawn = {};
  let open = false;
  let placed = null;
  const place = (node) => {
    if (node === placed) return;
    placed?.remove();
    placed = node;
    if (!node) return;
    node.slot = `item-${id}`;
    host.append(node);
  };
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
    place,
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
      if (changed("unread") || changed("message_formatted")) place(does.render({ ...note, message_formatted, read_at }));
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

/** An observer that detects truncated messages whenever their size changes. */
const fits = new WeakMap();
let fitter;

function fitted(text) {
  // In the next frame: sizes that change during the observation are reported as an error of the page.
  fitter ??= new ResizeObserver((entries) => requestAnimationFrame(() => entries.forEach(({ target }) => fits.get(target)?.())));
  fitter.unobserve(text);
  fitter.observe(text);
}

const namesOf = (person) => [person?.first_name, person?.last_name].filter((name) => typeof name === "string" && name.trim());

/** The author of a custom notification, so that users do not take it for a text of the service. */
function senderOf({ type, data }) {
  const user = type === "custom" && data?.user;
  return user ? namesOf(user).join(" ") || `#${user.id}` : null;
}

/** The person's picture if allowed, else their initials, else a bell. */
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

/** The first grapheme. */
const firstOf = (text) => (Intl.Segmenter ? [...new Intl.Segmenter().segment(text)][0].segment : [...text][0]);
