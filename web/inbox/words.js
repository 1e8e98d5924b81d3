/** The element's own words: which language they are in, and a page's own in their places. */

import da from "./words/da.js";
import de from "./words/de.js";
import en from "./words/en.js";

export const WORDS = { en, da, de };

export const problemOf = ({ problem }, { status }) => (status === 401 ? problem.signedOut : status ? problem.failed : problem.unreachable);

/** Words with a page's own in their places; in a text of the page's, {} stands for the number or the time. */
export function wordsWith(words, own) {
  return Object.fromEntries(Object.entries(words).map(([name, word]) => {
    const given = own[name] ?? word;
    if (typeof word === "object" && !Array.isArray(word)) return [name, wordsWith(word, given)];
    return [name, typeof word === "function" && typeof given === "string" ? (value) => given.replaceAll("{}", value) : given];
  }));
}

/** The language of the words, and the locale of dates: the element's own, that around it, or the browser's. */
export function languageOf(element) {
  const [wanted] = [element.getAttribute("lang") || langAround(element), ...navigator.languages, "en"].filter(Boolean);
  const language = wanted.slice(0, 2).toLowerCase();
  const known = Object.hasOwn(WORDS, language);
  if (!known && !element.words) return { language: "en", locale: "en" };
  try {
    return { language: known ? language : "en", locale: Intl.getCanonicalLocales(wanted)[0] };
  } catch {
    return { language: known ? language : "en", locale: language };
  }
}

function langAround(element) {
  for (let at = element; at; at = at.getRootNode().host) {
    const found = at.closest("[lang]")?.getAttribute("lang");
    if (found) return found;
  }
  return null;
}
