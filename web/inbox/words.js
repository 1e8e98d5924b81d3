/** The texts of the element. English is part of the script; other languages are loaded from the service. */

import en from "./words/en.js";

const LANGUAGES = ["en", "da", "de"];
const LIMIT_MS = 5_000;

const loaded = { en };
const loading = {};

/** Whether the texts of a language are loaded. */
export const hasWords = (language) => Object.hasOwn(loaded, language);

/** Load the texts of a language from the service. Never rejects: on a failure, the texts stay English. */
export function loadWords(src, language) {
  const request = async () => {
    const url = `${src.replace(/\/+$/, "")}/inbox-words-${language}.json`;
    const answer = await fetch(url, { credentials: "omit", signal: AbortSignal.timeout(LIMIT_MS) });
    if (answer.ok) loaded[language] = await answer.json();
  };
  return (loading[language] ??= request().catch(() => {}).finally(() => { delete loading[language]; }));
}

export const problemOf = ({ problem }, { status }) => (status === 401 ? problem.signedOut : status ? problem.failed : problem.unreachable);

/** The texts of a language, with replacements of the page. Texts with a number or a time are functions of it. */
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

/** A function that puts a value in place of {}, in a text or in texts by plural category (`one`, `other`, ...). */
function counted(text, locale) {
  const rules = new Intl.PluralRules(locale);
  return (value) => (text[rules.select(Number(value))] ?? text.other ?? String(text)).replaceAll("{}", value);
}

/** The language of texts and the locale of dates: of the element, of its ancestors, or of the browser. */
export function languageOf(element) {
  const wanted = [langAround(element), ...navigator.languages, "en"].find(Boolean);
  let locale = wanted.slice(0, 2).toLowerCase();
  const known = LANGUAGES.includes(locale);
  const language = known ? locale : "en";
  if (!known && !element.words) return { language, locale: language };
  try {
    [locale] = Intl.getCanonicalLocales(wanted);
  } catch {
    // not the name of a locale
  }
  return { language, locale };
}

function langAround(element) {
  for (let at = element; at; at = at.getRootNode().host) {
    const found = at.closest("[lang]")?.getAttribute("lang");
    if (found) return found;
  }
  return null;
}
