/** The words of the element in English. */

export default {
  title: "Notifications", all: "All", unread: "Unread", show: "Which to show", back: "Back", close: "Close",
  readAll: "Mark all as read", preferences: "Preferences", more: "Show more", loading: "Loading…", retry: "Try again", undo: "Undo",
  remove: "Delete", markRead: "Mark as read", markUnread: "Mark as unread", isUnread: "Unread.", saved: "Saved",
  markedRead: "Marked as read", markedUnread: "Marked as unread", allRead: "All marked as read", restored: "Restored", kept: "Saved on this device. It is sent when you are online.", sender: "From", unfold: "Read more", fold: "Show less",
  unreadCount: "{} unread", fresh: "{} new", arrived: { one: "1 new notification", other: "{} new notifications" },
  deleted: { one: "Notification deleted", other: "{} notifications deleted" },
  empty: { all: ["No notifications yet", "New notifications will appear here."], unread: ["You’re all caught up", "There is nothing unread."] },
  connection: { offline: "You are offline. This is what was loaded.", reconnecting: "Reconnecting…" },
  failed: { remove: "That could not be deleted.", load: "More could not be loaded.", save: "That could not be saved." },
  problem: { signedOut: "You are signed out. Sign in again to see your notifications.", failed: "Your notifications could not be loaded.",
    unreachable: "The notification service can’t be reached." },
  help: "Keyboard shortcuts",
  keys: ["Next", "Previous", "First, last", "Open", "Mark as read or unread", "Delete", "Undo", "Show or hide this help", "Back, close"],
  pushHere: "Notify me in this browser", pushHint: "Also when this page is not open.",
  pushDenied: "Your browser blocks notifications of this site. Allow them in its settings.", pushFailed: "Your browser could not be set up.",
  pause: "Pause", pauseHint: "Nothing is sent to your phone and browser until then. Your inbox has everything.", pauseHour: "For 1 hour",
  pauseTomorrow: "Until tomorrow, {}", pausedUntil: "Paused until {}.", resume: "Resume now",
  quiet: "Quiet hours", quietHint: "Pushes are held during these hours and sent when they end.", addQuiet: "Add quiet hours", removeQuiet: "Remove these quiet hours", oneDay: "Choose at least one day, or remove these quiet hours.",
  from: "From", to: "To", zone: "Time zone", channels: { push: "Phone", web_push: "Browser" }, locked: "Set by your organisation",
};
