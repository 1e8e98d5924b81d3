/** `<tocsin-inbox>`: the inbox of Tocsin, for any page. Importing it touches no DOM. */

import { TocsinInbox } from "./element.js";

export { Refusal } from "./client.js";
export { EventParser } from "./sse.js";
export { TocsinInbox };

if (globalThis.customElements && !customElements.get("tocsin-inbox")) customElements.define("tocsin-inbox", TocsinInbox);
