// What the service found of a row: the distribution of what may stand in a gap, how rare a cell is beside
// the others, and how typical the row is.

import { axes } from "../lib/plot.js";
import { h } from "../lib/dom.js";
import { number } from "../lib/i18n.js";

const BINS = 24;
const MOST = 12; // labels that are shown
const ODD = 0.02; // the share of held-out rows that would be called untypical
const RARE = 0.98; // the share of held-out rows beyond which a cell is called rare

const percent = (share) => number(share, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });
const written = (value) => number(value, { maximumSignificantDigits: 5 });

/**
 * What may stand in a gap, as elements.
 * @param {object} column of a model's `table`
 * @param {string} name
 * @param {object} result of /inpaint, with three quantiles
 */
export function whatMayStand(column, name, result) {
  if (column.labels) return [chances(name, result.probabilities[name])];
  const values = result.samples.map((row) => row[name]);
  const [low, middle, high] = result.quantiles.map((row) => written(row[name]));
  return [histogram(values, name, column.step), h("p", { say: ["table.interval", { low, middle, high }] })];
}

/** The probabilities of labels, the likeliest first. */
function chances(name, shares) {
  const sorted = Object.entries(shares).sort(([, a], [, b]) => b - a).slice(0, MOST);
  return h("ul", { class: "chances", label: ["table.chances", { name }] },
    ...sorted.map(([label, p]) => h("li", {}, h("span", {}, label), h("meter", { min: 0, max: 1, value: p, "aria-label": label }), h("span", {}, percent(p)))));
}

function histogram(values, name, step) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const steps = step ? Math.round((high - low) / step) + 1 : Infinity;
  const wide = steps <= BINS ? step : (high - low) / BINS || 1;
  const first = steps <= BINS ? low - step / 2 : low;
  const count = steps <= BINS ? steps : BINS;
  const heights = Array(count).fill(0);
  for (const value of values) heights[Math.min(count - 1, Math.floor((value - first) / wide))] += 1 / values.length;
  const edges = Array.from({ length: count + 1 }, (_, i) => first + i * wide);
  const plot = axes({
    x: { range: [edges[0], edges.at(-1)] }, y: { range: [0, Math.max(...heights)] },
    label: ["table.histogram", { name }], width: 340, height: 130, count: 3,
  });
  plot.bars(edges, heights, "accent");
  return plot.node;
}

/**
 * How rare a cell is given the others, as elements.
 * @param {object} part of the bound, this column's
 * @param {object[]} parts of all columns
 */
export function whyRare(part, parts) {
  const nats = number(part.nats, { maximumFractionDigits: 2, minimumFractionDigits: 2 });
  if (part.rarer_than === null) return [h("p", { class: "soft", say: ["table.part", { nats }] })];
  const most = Math.max(...parts.map((one) => one.rarer_than ?? 0));
  const least = Math.min(...parts.filter((one) => one.rarer_than === most).map((one) => one.nats));
  const rare = part.rarer_than >= RARE && part.rarer_than === most && part.nats === least;
  const share = percent(part.rarer_than);
  return [h("p", { class: rare ? "unusual" : "soft", say: [rare ? "table.rare" : "table.usual", { share, nats }] })];
}

/** How typical a row is, and how far the completions can be trusted, as elements. */
export function verdictOf(scored, completed) {
  const [{ typicality, bound, standard_error: error }] = scored.results;
  const share = typicality === null ? null : percent(typicality);
  const odd = typicality !== null && typicality <= ODD;
  const first = typicality === null
    ? h("p", { class: "told", say: scored.uncompared?.includes("same gaps") ? "table.gaps" : "table.unplaced" })
    : h("p", { class: odd ? "unusual" : "kept", say: [odd ? "verdict.odd" : "verdict.typical", { share }] });
  const digits = { maximumFractionDigits: 2, minimumFractionDigits: 2 };
  const told = h("p", { class: "told", say: ["table.bound", { bound: number(bound, digits), error: number(error, digits) }] });
  const { warning, calibration } = completed?.results[0].diagnostics ?? {};
  return [
    first,
    told,
    warning ? h("p", { class: "caution", lang: "en" }, warning) : null,
    calibration ? h("p", { class: "told", lang: "en" }, calibration) : null,
  ].filter(Boolean);
}
