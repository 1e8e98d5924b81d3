/* Small parts of the console's views. */

import { h } from "../shared/dom.js";
import { timeOf } from "../shared/times.js";

/**
 * Return a table with a caption; `columns` are names, `rows` lists of cells, `nothing` the text for no rows. Narrow
 * windows show each row as a list of names and values. The roles are explicit because `display` removes implicit ones.
 */
export function table(caption, columns, rows, nothing) {
  if (!rows.length) return h("p", { class: "nothing" }, nothing);
  const named = (nth) => (typeof columns[nth] === "string" ? columns[nth] : null);
  return h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    h("table", { role: "table", class: "rows" },
      h("caption", { class: "unseen" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
        columns.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
      h("tbody", { role: "rowgroup" }, rows.map((cells) => h("tr", { role: "row" },
        cells.map((cell, nth) => h("td", { role: "cell", "data-name": named(nth) }, cell)))))));
}

/** Return a list of names and values, without those that are null. */
export function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value != null).map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Return a time of the API (UTC), with the browser's local time as its title. */
export function moment(text) {
  if (!text) return h("span", { class: "faint" }, "never");
  const at = timeOf(text);
  return h("time", { datetime: at.toISOString(), title: `${at.toLocaleString()} local time` }, text);
}

/** Return a state as a word with a sign and a colour. */
export function state(word) {
  return h("span", { class: `state ${KIND_OF_STATE[word] ?? "plain"}` }, word);
}

const KIND_OF_STATE = {
  delivered: "good", working: "good",
  stopped: "bad", failing: "bad", failed: "bad", dead: "bad", refused: "bad", unserved: "bad", "not delivered": "bad",
  later: "odd", gone: "odd", held: "odd", queued: "odd", delivering: "odd",
};

/** Return a link to a view of the console. */
export function link(view, text) {
  return h("a", { href: `#${view}` }, text);
}

/** Return a link to an event, with a short form of its ID. */
export function eventLink(id, user) {
  const view = user ? `event/${id}/${user}` : `event/${id}`;
  return h("a", { href: `#${view}`, class: "id", title: id }, `…${id.slice(-12)}`);
}

/** Ask for confirmation; resolve to whether the user confirmed. */
export function ask(question, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question" },
      h("p", { id: "question" }, question),
      h("div", { class: "row" },
        h("button", { type: "button", class: "main", onclick: () => dialog.close("yes") }, yes),
        h("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel")));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Return the time of day in UTC. */
export function clock(milliseconds) {
  return new Date(milliseconds).toISOString().slice(11, 19);
}
