/**
 * The service worker of the inbox. On a push, it shows the notification and closes read ones; on a click, it opens the link.
 * To include it in your own service worker: importScripts("https://notify.example.com/inbox-worker.js").
 */
(() => {
  "use strict";

  self.addEventListener("push", (event) => event.waitUntil(show(payloadOf(event.data))));

  self.addEventListener("notificationclick", (event) => {
    const data = event.notification.data?.tocsin;
    if (!data) return; // a notification of the page itself
    event.notification.close();
    event.waitUntil(open(data));
  });

  function payloadOf(data) {
    try {
      return data.json() ?? {};
    } catch {
      return {}; // not a push of Tocsin
    }
  }

  async function show({ title, body, tag, badge, clear, notification }) {
    if (typeof title !== "string" && !Array.isArray(clear)) return;
    if (typeof title === "string") {
      const tocsin = { id: notification?.id ?? tag, link: notification?.link ?? null };
      await self.registration.showNotification(title, { body, tag, dir: "auto", data: { tocsin } });
    }
    await setBadge(badge);
    const gone = new Set(clear);
    // last, because Chromium does not answer each of these calls
    for (const shown of await self.registration.getNotifications()) {
      if (shown.data?.tocsin && gone.has(shown.tag) && shown.tag !== tag) shown.close();
    }
  }

  async function setBadge(count) {
    if (!Number.isInteger(count) || !self.navigator.setAppBadge) return;
    try {
      await self.navigator.setAppBadge(count);
    } catch {
      // the page is not installed as an app
    }
  }

  /** Focus a window that shows the link, else navigate another window of this origin, else open a new one. */
  async function open({ id, link }) {
    const windows = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
    for (const window of windows) window.postMessage({ tocsin: { opened: id } });
    const url = addressOf(link);
    const match = windows.find((window) => !url || window.url === url.href);
    if (match) return match.focus();
    const other = url?.origin === self.location.origin && windows[0];
    if (other) {
      try {
        await other.focus();
        return await other.navigate(url.href);
      } catch {
        // a service worker cannot navigate a window that it does not control
      }
    }
    return self.clients.openWindow(url ? url.href : self.registration.scope);
  }

  function addressOf(link) {
    try {
      const url = new URL(link, self.registration.scope);
      return link && /^https?:$/.test(url.protocol) ? url : null;
    } catch {
      return null;
    }
  }
})();
