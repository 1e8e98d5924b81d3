/** The element's style. */

import STYLE from "./inbox.css";

let made;

/** One sheet for all, which the strictest policy allows. */
export function sheet() {
  if (!made) {
    made = new CSSStyleSheet();
    made.replaceSync(STYLE);
  }
  return made;
}
