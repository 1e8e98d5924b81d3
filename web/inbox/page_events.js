/** What happens to a page around an inbox: hidden, frozen, shown again, off the network and on it. */

/** The events to listen to, with their targets. */
export const pageEvents = () => /** @type {[EventTarget, string, boolean?][]} */ (globalThis.document ? [
  [document, "visibilitychange"], [document, "freeze"], [document, "resume"],
  [window, "online"], [window, "offline"], [window, "pagehide"], [window, "pageshow"],
] : []); // on a server there is no page

/** Do for an inbox what such an event asks for. */
export function onPageEvent(inbox, { type, persisted }) {
  switch (type) {
    case "pagehide": inbox?.commit(); inbox?.feed?.stop(); break;
    case "freeze": inbox?.feed?.stop(); break; // another tab streams from now on, if there is one
    case "pageshow": case "resume": if (persisted !== false) inbox?.feed?.start(); break;
    default: inbox?.wake(type);
  }
}
