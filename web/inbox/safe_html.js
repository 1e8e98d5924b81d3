/** Text and addresses from outside, made safe: messages are rebuilt from text and four tags. */

import { h } from "../shared/dom.js";

const ALLOWED = new Set(["P", "STRONG", "EM", "BR"]);
const SILENT = new Set(["SCRIPT", "STYLE", "TEMPLATE", "IFRAME", "OBJECT", "TEXTAREA", "TITLE", "NOSCRIPT", "SVG", "MATH"]);

/** Return nodes for a notification's message: text and four tags, rebuilt whatever the markup holds. */
export function messageOf({ message, message_formatted: formatted }) {
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
export function trusted() {
  const rules = { createHTML: (text) => text, createScriptURL: ofThisPage };
  return (policy ??= globalThis.trustedTypes?.createPolicy("tocsin-inbox", rules) ?? rules);
}

/** A worker is a script of the page's own, whatever the attribute says. */
function ofThisPage(url) {
  if (urlOf(url)?.origin !== location.origin) throw new TypeError("A worker must be of the page's origin.");
  return url;
}

/** Return the address that a link leads to, if it may: http, https, or within this page's own site. */
export function linkOf(link) {
  const url = urlOf(link);
  return url && /^https?:$/.test(url.protocol) ? url.href : null;
}

export const pictureOf = (picture) => {
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
