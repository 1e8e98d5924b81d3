/** The entry module: it defines `<tocsin-inbox>` in a browser. Importing it does not access the DOM. */

import { TocsinInbox } from "./element.js";

export { Refusal } from "./client.js";
export { EventParser } from "./sse.js";
export { TocsinInbox };

if (globalThis.customElements && !customElements.get("tocsin-inbox")) customElements.define("tocsin-inbox", TocsinInbox);
