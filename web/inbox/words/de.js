/** The words of the element in German. */

export default {
  title: "Benachrichtigungen", all: "Alle", unread: "Ungelesen", show: "Was angezeigt wird", back: "Zurück", close: "Schließen",
  readAll: "Alle als gelesen markieren", preferences: "Einstellungen", more: "Mehr anzeigen", loading: "Wird geladen…", retry: "Erneut versuchen", undo: "Rückgängig",
  remove: "Löschen", markRead: "Als gelesen markieren", markUnread: "Als ungelesen markieren", isUnread: "Ungelesen.", saved: "Gespeichert",
  markedRead: "Als gelesen markiert", markedUnread: "Als ungelesen markiert", allRead: "Alle als gelesen markiert", restored: "Wiederhergestellt", kept: "Auf dem Gerät gespeichert. Es wird gesendet, sobald Sie online sind.", sender: "Von", unfold: "Mehr lesen", fold: "Weniger anzeigen",
  unreadCount: (n) => `${n} ungelesen`, fresh: (n) => `${n} neu`, arrived: (n) => (n === 1 ? "1 neue Benachrichtigung" : `${n} neue Benachrichtigungen`),
  deleted: (n) => (n === 1 ? "Benachrichtigung gelöscht" : `${n} Benachrichtigungen gelöscht`),
  empty: { all: ["Noch keine Benachrichtigungen", "Neue Benachrichtigungen erscheinen hier."], unread: ["Alles gelesen", "Es gibt nichts Ungelesenes."] },
  connection: { offline: "Sie sind offline. Angezeigt wird, was geladen wurde.", reconnecting: "Verbindung wird wiederhergestellt…" },
  failed: { remove: "Das konnte nicht gelöscht werden.", load: "Mehr konnte nicht geladen werden.", save: "Das konnte nicht gespeichert werden." },
  problem: { signedOut: "Sie sind abgemeldet. Melden Sie sich wieder an, um Ihre Benachrichtigungen zu sehen.",
    failed: "Ihre Benachrichtigungen konnten nicht geladen werden.", unreachable: "Der Benachrichtigungsdienst ist nicht erreichbar." },
  help: "Tastenkürzel",
  keys: ["Nächste", "Vorige", "Erste, letzte", "Öffnen", "Als gelesen oder ungelesen markieren", "Löschen", "Rückgängig machen", "Diese Hilfe zeigen oder verbergen", "Zurück, schließen"],
  pushHere: "In diesem Browser benachrichtigen", pushHint: "Auch wenn diese Seite nicht geöffnet ist.",
  pushDenied: "Ihr Browser blockiert Benachrichtigungen dieser Website. Erlauben Sie sie in seinen Einstellungen.", pushFailed: "Ihr Browser konnte nicht eingerichtet werden.",
  pause: "Pause", pauseHint: "Bis dahin wird nichts an Telefon und Browser gesendet. Im Posteingang ist alles.", pauseHour: "Für 1 Stunde",
  pauseTomorrow: (clock) => `Bis morgen, ${clock}`, pausedUntil: (moment) => `Pausiert bis ${moment}.`, resume: "Jetzt fortsetzen",
  quiet: "Ruhezeiten", quietHint: "Was in diesen Stunden kommt, wird gesendet, wenn sie enden.", addQuiet: "Ruhezeit hinzufügen", removeQuiet: "Diese Ruhezeit entfernen", oneDay: "Wählen Sie mindestens einen Tag, oder entfernen Sie diese Ruhezeit.",
  from: "Von", to: "Bis", zone: "Zeitzone", channels: { push: "Telefon", web_push: "Browser" }, locked: "Von Ihrer Organisation festgelegt",
};
