/** Sanitize external text and URLs: messages are rebuilt from text and four tags. */

import { h } from "../shared/dom.js";

const ALLOWED = new Set(["P", "STRONG", "EM", "BR"]);
const SILENT = new Set(["SCRIPT", "STYLE", "TEMPLATE", "IFRAME", "OBJECT", "TEXTAREA", "TITLE", "NOSCRIPT", "SVG", "MATH"]);

/** Return new nodes for a message: only text and four tags, for any markup. */
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

/** Isolate names of the other writing direction, so that they do not reorder the text around them. */
function isolated(text) {
  const [, name, genitive = ""] = /^(.*?)(['’]s)?$/s.exec(text);
  return [h("bdi", {}, name), genitive];
}

/** Turn http and https URLs in a text into links, except those with a user name, such as "https://bank@evil". */
function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"\p{Bidi_C}]+)/iu).flatMap((part, at) => {
    let end = at % 2 ? part.length : 0;
    while (end && (".,:;!?'’”…»]}".includes(part[end - 1]) || (part[end - 1] === ")" && !part.includes("(")))) end -= 1; // punctuation of the sentence
    const url = urlOf(part.slice(0, end));
    if (!url?.host || url.username || url.password) return part;
    return [h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", dir: "ltr" }, part.slice(0, end)), part.slice(end)];
  });
}

/** Parse markup in an inert document; null if the page's policy does not allow it. */
function parse(markup) {
  try {
    return new DOMParser().parseFromString(trusted().createHTML(markup), "text/html");
  } catch {
    return null;
  }
}

let policy;

/** The Trusted Types policy, which a page that requires them allows by name. */
export function trusted() {
  const rules = { createHTML: (text) => text, createScriptURL: ofThisPage };
  return (policy ??= globalThis.trustedTypes?.createPolicy("tocsin-inbox", rules) ?? rules);
}

/** Only a worker of the page's own origin is allowed. */
function ofThisPage(url) {
  if (urlOf(url)?.origin !== location.origin) throw new TypeError("The worker must have the page's origin.");
  return url;
}

/** Return the URL of a link if it is http or https, which includes relative URLs of this site. */
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
