// The page's texts, by key, in the chosen language, and elements that follow it.
//
// A text is a string with {names} for values, or its plural forms { one, other } chosen by `n`.

import en from "../words/en.js";
import ko from "../words/ko.js";

export const BOOKS = { en, ko };

const bound = new WeakMap(); // element -> its texts, by attribute
const MARK = "data-said";

let language = "en";

/** The language in use: "en" or "ko". */
export const current = () => language;

/** The initial language: the earlier choice, else the browser's first known one. */
export function preferred() {
  const wanted = [localStorage.getItem("language"), ...navigator.languages];
  return wanted.map((tag) => tag?.slice(0, 2)).find((tag) => tag in BOOKS) ?? "en";
}

/** Set the language, and update every element that `tell` has filled. */
export function speak(wanted) {
  language = wanted;
  document.documentElement.lang = wanted;
  for (const node of document.querySelectorAll(`[${MARK}]`)) {
    for (const [place, [key, values]] of Object.entries(bound.get(node))) write(node, place, key, values);
  }
}

/** The text of a key. Numbers among the values are formatted for the language. */
export function say(key, values = {}) {
  let text = BOOKS[language][key];
  if (text === undefined) throw new Error(`words/${language}.js has no "${key}"`);
  if (typeof text === "object") text = text[new Intl.PluralRules(language).select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : String(value);
  });
}

/** Whether there is a text of that key. */
export const known = (key) => key in BOOKS[language];

/** A number formatted for the language. */
export function number(value, options = { maximumFractionDigits: Math.abs(value) < 1 ? 4 : 2 }) {
  return new Intl.NumberFormat(language, options).format(value);
}

/**
 * Show a text in an element, in the current language and any that is chosen later.
 * @param {Element} node
 * @param {string|[string, object]} text its key, or key and values
 * @param {string} place "textContent", or the attribute that holds it
 */
export function tell(node, text, place = "textContent") {
  const [key, values] = Array.isArray(text) ? text : [text, {}];
  if (!bound.has(node)) bound.set(node, {});
  bound.get(node)[place] = [key, values];
  node.setAttribute(MARK, "");
  write(node, place, key, values);
}

function write(node, place, key, values) {
  const text = say(key, values);
  if (place === "textContent") node.textContent = text;
  else node.setAttribute(place, text);
}
