/* Small parts of pages. Whatever comes from outside becomes text and nothing else: no markup is ever parsed. */

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line"]);

/** Make an element: `class`, attributes, `on...` functions, then children; strings are text, null is left out. */
export function el(tag, properties = {}, ...children) {
  const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(3).filter((child) => child != null).map((child) => child instanceof Node ? child : String(child)));
  return made;
}

/**
 * A table with a caption; `columns` are names, `rows` lists of cells. In narrow windows each row is a list of names and
 * values, which is why the roles are written out: another display would take them away.
 */
export function table(caption, columns, rows, nothing) {
  if (!rows.length) return el("p", { class: "nothing" }, nothing);
  const named = (nth) => (typeof columns[nth] === "string" ? columns[nth] : null);
  return el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    el("table", { role: "table", class: "rows" },
      el("caption", { class: "unseen" }, caption),
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" },
        columns.map((name) => el("th", { scope: "col", role: "columnheader" }, name)))),
      el("tbody", { role: "rowgroup" }, rows.map((cells) => el("tr", { role: "row" },
        cells.map((cell, nth) => el("td", { role: "cell", "data-name": named(nth) }, cell)))))));
}

/** Names and values beside each other. */
export function facts(pairs) {
  return el("dl", {}, pairs.filter(([, value]) => value != null).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** A moment of the API (UTC), with the time here as its title. */
export function moment(text) {
  if (!text) return el("span", { class: "faint" }, "never");
  const iso = `${text.replace(" ", "T")}Z`;
  return el("time", { datetime: iso, title: `${new Date(iso).toLocaleString()} here` }, text);
}

/** The state of something, marked by its sign and its colour, and said in a word. */
export function state(word) {
  return el("span", { class: `state ${KIND_OF_STATE[word] ?? "plain"}` }, word);
}

const KIND_OF_STATE = {
  delivered: "good", works: "good",
  stopped: "bad", failing: "bad", failed: "bad", dead: "bad", refused: "bad", unserved: "bad", "did not come": "bad",
  later: "odd", gone: "odd", held: "odd", queued: "odd", delivering: "odd",
};

/** A link to a view of the console. */
export function link(view, text) {
  return el("a", { href: `#${view}` }, text);
}

/** The short form of an id, which leads to its event. */
export function eventLink(id, user) {
  const view = user ? `event/${id}/${user}` : `event/${id}`;
  return el("a", { href: `#${view}`, class: "id", title: id }, `…${id.slice(-12)}`);
}

/** Ask before something that cannot be taken back; true where the answer is yes. */
export function ask(question, yes) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": "question" },
      el("p", { id: "question" }, question),
      el("div", { class: "row" },
        el("button", { type: "button", class: "main", onclick: () => dialog.close("yes") }, yes),
        el("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel")));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** The time of day in UTC. */
export function clock(milliseconds) {
  return new Date(milliseconds).toISOString().slice(11, 19);
}

/** A moment as the API takes it. */
export function utc(milliseconds) {
  return new Date(milliseconds).toISOString().slice(0, 19).replace("T", " ");
}
