/**
 * The part of the inbox that browsers wake for a push: it shows notifications, closes what was read, and opens links.
 * A page's own service worker takes it in with one line: importScripts("https://notify.example.com/inbox-worker.js").
 */
(() => {
  "use strict";

  self.addEventListener("push", (event) => event.waitUntil(show(payloadOf(event.data))));

  self.addEventListener("notificationclick", (event) => {
    const told = event.notification.data?.tocsin;
    if (!told) return; // a notification of the page's own
    event.notification.close();
    event.waitUntil(open(told));
  });

  function payloadOf(data) {
    try {
      return data.json() ?? {};
    } catch {
      return {}; // none of ours
    }
  }

  async function show({ title, body, tag, badge, clear, notification }) {
    if (typeof title !== "string" && !Array.isArray(clear)) return;
    const gone = new Set(clear);
    for (const shown of await self.registration.getNotifications()) {
      if (shown.data?.tocsin && gone.has(shown.tag)) shown.close();
    }
    if (typeof title === "string") {
      const told = { id: notification?.id ?? tag, link: notification?.link ?? null };
      await self.registration.showNotification(title, { body, tag, dir: "auto", data: { tocsin: told } });
    }
    await setBadge(badge);
  }

  async function setBadge(count) {
    if (!Number.isInteger(count) || !self.navigator.setAppBadge) return;
    try {
      await self.navigator.setAppBadge(count);
    } catch {
      // the page is not installed as an app
    }
  }

  /** Bring forward the window that shows the link, else any of this page's to go there, else a new one. */
  async function open({ id, link }) {
    const windows = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
    for (const window of windows) window.postMessage({ tocsin: { opened: id } });
    const url = addressOf(link);
    const there = windows.find((window) => !url || window.url === url.href);
    if (there) return there.focus();
    const ours = url?.origin === self.location.origin && windows[0];
    if (ours) {
      try {
        await ours.focus();
        return await ours.navigate(url.href);
      } catch {
        // a window that this worker does not control can't be sent anywhere
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
