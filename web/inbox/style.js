/** The style sheet of the element. */

import STYLE from "./inbox.css";

let made;

/** One constructed sheet for all elements, which the strictest Content Security Policy allows. */
export function sheet() {
  if (!made) {
    made = new CSSStyleSheet();
    made.replaceSync(STYLE);
  }
  return made;
}
