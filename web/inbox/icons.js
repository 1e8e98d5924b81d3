/** Icons and buttons. */

import { h } from "../shared/dom.js";

export function iconButton(name, text, onclick) {
  return label(h("button", { class: "icon-button", part: "button", type: "button", onclick }, icon(name)), text);
}

export function textButton(style, text, onclick) {
  return h("button", { class: style, type: "button", onclick }, text);
}

export function label(element, text) {
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

export function icon(name) {
  return h("svg", { viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true" }, h("path", { d: ICONS[name] }));
}
