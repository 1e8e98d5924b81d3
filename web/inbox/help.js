/** The pane with the keyboard shortcuts. */

import { h } from "../shared/dom.js";

export function help(words) {
  const keys = [["j", "↓"], ["k", "↑"], ["Home", "End"], ["Enter"], ["u"], ["e"], ["Ctrl Z"], ["?"], ["Esc"]];
  return h("dl", { class: "keys" }, keys.flatMap((names, i) => [
    h("dt", {}, names.map((name) => h("kbd", {}, name))), h("dd", {}, words.keys[i]),
  ]));
}
