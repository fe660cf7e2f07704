// The result of each example: bits/dim, its place among held-out data, the parts of the bound.

import { h } from "../lib/dom.js";
import { perDim } from "./loglik-plots.js";
import { badge, letter, thumb } from "./thumbnail.js";
import { number } from "../lib/i18n.js";

const PARTS = ["prior", "steps", "last", "gain"];
const ODD = 0.02; // the share of held-out data that would be called untypical
const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const digits = (value, count) => number(value, { maximumFractionDigits: count, minimumFractionDigits: count, signDisplay: "negative" }).replace("-", "−");

/** The number of decimals to show, up to the error's second significant digit. */
const known = (error) => Math.min(4, Math.max(0, 1 - Math.floor(Math.log10(error))));

/**
 * A card for each example.
 * @param {Array} data
 * @param {object} model an entry of GET /models
 * @param {object[]} results the results of POST /loglik
 * @param {object|null} held the evaluation of held-out data, with its percentiles
 */
export function verdicts(data, model, results, held) {
  const cards = results.map((result, i) => card(data[i], model, result, held, i));
  const note = results.some(placed) ? null : h("p", { class: "told", say: "verdict.unplaced" });
  return h("div", { class: "part" }, h("ol", { class: "verdicts", label: "verdict.label" }, ...cards), note);
}

function card(x, model, result, held, i) {
  const head = h("div", { class: "verdict-head" }, thumb(x, model), badge(i));
  const { bound, bits_per_dim: bits } = result;
  if (bound === null) {
    const why = result.reason ? h("small", { lang: "en" }, result.reason) : h("p", { say: "verdict.impossible" });
    return h("li", { class: "verdict" }, head, h("p", { class: "score" }, "∞"), why);
  }
  return h("li", { class: "verdict" }, head, figure(bits, errorOf(result, model)), place(result, held), typical(result), partsOf(result));
}

/** The standard error in bits/dim. */
const errorOf = ({ standard_error: nats }, { shape }) => (nats === null ? null : perDim(-nats, shape.reduce((a, b) => a * b)));

function figure(bits, error) {
  const count = error ? known(error) : 3;
  const plus = error === null ? null : h("span", { class: "error" }, ` ± ${digits(error, count)}`);
  return h("p", { class: "score" }, h("strong", {}, digits(bits, count)), plus, h("span", { class: "unit" }, " "), h("span", { class: "unit", say: "verdict.unit" }));
}

/** Whether an example's place among held-out data is known. */
const placed = ({ rarer_than: share }) => share !== null && share !== undefined;

const percent = (value) => `${number(100 * value, { maximumFractionDigits: 1 })}%`;

/** "Rarer than 99.7% of held-out data". */
function place({ rarer_than: share }, held) {
  if (!placed({ rarer_than: share })) return null;
  const values = { share: percent(Math.max(share, 1 - share)), split: held?.split ?? "" };
  const said = share >= 1 ? "verdict.rarest" : share <= 0 ? "verdict.likeliest" : share >= 0.5 ? "verdict.rarer" : "verdict.likelier";
  return h("p", { class: "place", say: [said, values] });
}

/** Whether an example is typical of held-out data, which its likelihood alone does not show. */
function typical({ typicality: share }) {
  if (share === null || share === undefined) return null;
  const odd = share < ODD;
  return h("p", { class: odd ? "unusual" : "", say: [odd ? "verdict.odd" : "verdict.typical", { share: percent(share) }], hint: "verdict.typical.why" });
}

function partsOf(result) {
  const shown = PARTS.filter((name) => name !== "gain" || result.parts.gain);
  const row = (said, nats, error = null) => {
    const count = error ? known(error) : Math.abs(nats) < 100 ? 2 : 1;
    const text = digits(nats, count) + (error === null ? "" : ` ± ${digits(error, count)}`);
    return [h("dt", { say: said, hint: `${said}.why` }), h("dd", {}, text)];
  };
  return h("dl", { class: "parts" },
    ...row("verdict.bound", result.bound, result.standard_error),
    ...shown.filter((name) => result.parts[name] !== null).flatMap((name) => row(`verdict.${name}`, result.parts[name])),
    ...row("verdict.gained", result.relative_to_prior),
  );
}

/**
 * How much likelier the likeliest example is than the least likely, if that exceeds the errors.
 * @param {object[]} results the results of POST /loglik
 * @returns {[string, object]|null} a text and its values; null for fewer than two examples
 */
export function comparison(results) {
  const ranked = results.map((result, i) => ({ ...result, name: letter(i) })).filter(({ bound }) => bound !== null).sort((a, b) => b.bound - a.bound);
  if (ranked.length < 2) return null;
  const [first, last] = [ranked[0], ranked.at(-1)];
  const more = first.bound - last.bound;
  const error = Math.hypot(first.standard_error, last.standard_error);
  const values = { first: first.name, last: last.name, nats: digits(more, known(error)), error: digits(error, known(error)), times: power(more / Math.LN10) };
  return [more < 2 * error ? "verdict.level" : "verdict.ratio", values];
}

/** A power of ten, written short: "35", "10¹⁰⁴". */
function power(tens) {
  if (tens < 3) return number(10 ** tens, { maximumSignificantDigits: 2 });
  return `10${[...String(Math.round(tens))].map((digit) => RAISED[digit]).join("")}`;
}

/** The letters of the lines. */
export const legend = (results) => h("p", { class: "legend", "aria-hidden": "true" }, ...results.map((_, i) => badge(i)));

/** The answer as a table with one example per row, and its bounds in nats, for files (download.js). */
export function scores(results) {
  const flat = results.map(({ parts, ...result }, i) => ({ name: letter(i), ...result, ...parts }));
  const names = Object.keys(flat[0]).filter((name) => flat.every((row) => row[name] === null || typeof row[name] !== "object"));
  const rows = [names, ...flat.map((row) => names.map((name) => row[name]))];
  return { rows, array: { values: results.map(({ bound }) => bound), shape: [results.length], kind: "f8" } };
}
