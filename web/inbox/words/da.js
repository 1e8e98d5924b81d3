/** The words of the element in Danish. */

export default {
  title: "Notifikationer", all: "Alle", unread: "Ulæste", show: "Hvad der vises", back: "Tilbage", close: "Luk",
  readAll: "Markér alle som læst", preferences: "Indstillinger", more: "Vis flere", loading: "Henter…", retry: "Prøv igen", undo: "Fortryd",
  remove: "Slet", markRead: "Markér som læst", markUnread: "Markér som ulæst", isUnread: "Ulæst.", saved: "Gemt",
  markedRead: "Markeret som læst", markedUnread: "Markeret som ulæst", allRead: "Alle er markeret som læst", restored: "Gendannet", kept: "Gemt på enheden. Det sendes, når du er online.", sender: "Fra", unfold: "Læs mere", fold: "Vis mindre",
  unreadCount: (n) => `${n} ulæste`, fresh: (n) => (n === 1 ? "1 ny" : `${n} nye`), arrived: (n) => (n === 1 ? "1 ny notifikation" : `${n} nye notifikationer`),
  deleted: (n) => (n === 1 ? "Notifikationen er slettet" : `${n} notifikationer er slettet`),
  empty: { all: ["Ingen notifikationer endnu", "Nye notifikationer vises her."], unread: ["Du er helt ajour", "Der er intet ulæst."] },
  connection: { offline: "Du er offline. Her er det, der blev hentet.", reconnecting: "Opretter forbindelse igen…" },
  failed: { remove: "Det kunne ikke slettes.", load: "Der kunne ikke hentes flere.", save: "Det kunne ikke gemmes." },
  problem: { signedOut: "Du er logget ud. Log ind igen for at se dine notifikationer.", failed: "Dine notifikationer kunne ikke hentes.",
    unreachable: "Der er ingen forbindelse til notifikationstjenesten." },
  help: "Tastaturgenveje",
  keys: ["Næste", "Forrige", "Første, sidste", "Åbn", "Markér som læst eller ulæst", "Slet", "Fortryd", "Vis eller skjul denne hjælp", "Tilbage, luk"],
  pushHere: "Giv mig besked i denne browser", pushHint: "Også når siden ikke er åben.",
  pushDenied: "Din browser blokerer notifikationer fra dette websted. Tillad dem i browserens indstillinger.", pushFailed: "Din browser kunne ikke sættes op.",
  pause: "Pause", pauseHint: "Indtil da sendes intet til din telefon og browser. Indbakken har det hele.", pauseHour: "I 1 time",
  pauseTomorrow: (clock) => `Indtil i morgen kl. ${clock}`, pausedUntil: (moment) => `På pause indtil ${moment}.`, resume: "Genoptag nu",
  quiet: "Stilletid", quietHint: "Det, der kommer i disse timer, sendes, når de er slut.", addQuiet: "Tilføj stilletid", removeQuiet: "Fjern denne stilletid", oneDay: "Vælg mindst én dag, eller fjern denne stilletid.",
  from: "Fra", to: "Til", zone: "Tidszone", channels: { push: "Telefon", web_push: "Browser" }, locked: "Bestemt af din organisation",
};
