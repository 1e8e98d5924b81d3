/** The element's own words. English is part of the script; other languages come from the service, as data. */

import en from "./words/en.js";

const LANGUAGES = ["en", "da", "de"];
const LIMIT_MS = 5_000;

const loaded = { en };
const loading = {};

/** Whether the words of a language are here already. */
export const hasWords = (language) => Object.hasOwn(loaded, language);

/** Load the words of a language from the service. Never fails: what cannot be loaded stays English. */
export function loadWords(src, language) {
  const request = async () => {
    const url = `${src.replace(/\/+$/, "")}/inbox-words-${language}.json`;
    const answer = await fetch(url, { credentials: "omit", signal: AbortSignal.timeout(LIMIT_MS) });
    if (answer.ok) loaded[language] = await answer.json();
  };
  return (loading[language] ??= request().catch(() => {}).finally(() => { delete loading[language]; }));
}

export const problemOf = ({ problem }, { status }) => (status === 401 ? problem.signedOut : status ? problem.failed : problem.unreachable);

/** The words of a language, with a page's own in their places. What has a number or a time in it is a function of that. */
export const wordsOf = (language, locale, own) => merged(en, locale, [own, loaded[language]]);

function merged(words, locale, others) {
  return Object.fromEntries(Object.entries(words).map(([name, word]) => {
    const given = others.map((other) => other?.[name]);
    const text = given.find((found) => found !== undefined && found !== null) ?? word;
    if (isCounted(word)) return [name, typeof text === "function" ? text : counted(text, locale)];
    return [name, typeof word === "object" && !Array.isArray(word) ? merged(word, locale, given) : text];
  }));
}

const isCounted = (word) => typeof word === "string" ? word.includes("{}") : Boolean(word.other);

/** A text with {} in the place of the value, or such texts by their plural category (`one`, `other`, ...). */
function counted(text, locale) {
  const rules = new Intl.PluralRules(locale);
  return (value) => (text[rules.select(Number(value))] ?? text.other ?? String(text)).replaceAll("{}", value);
}

/** The language of the words, and the locale of dates: the element's own, that around it, or the browser's. */
export function languageOf(element) {
  const [wanted] = [element.getAttribute("lang") || langAround(element), ...navigator.languages, "en"].filter(Boolean);
  const language = wanted.slice(0, 2).toLowerCase();
  const known = LANGUAGES.includes(language);
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
