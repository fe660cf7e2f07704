// Plots where data stand among held-out data, given the 101 percentiles of their bounds, and the terms
// of the bounds, step by step.

import { svg } from "../lib/dom.js";
import { axes, rangeOf } from "../lib/plot.js";
import { hue, letter } from "./thumbnail.js";

const BARS = 24;
const [LEFT, RIGHT] = ["← ", " →"]; // mark an example beyond the plot
const HEIGHT = 250; // of the plots
const BEYOND = 0.6; // the axis' extension for data beyond, as a share of the held-out data's width

/** Nats as bits/dim: lower is likelier. */
export const perDim = (nats, dims) => -nats / Math.LN2 / dims;

/** The evaluation whose percentiles an answer can be compared with, or null. */
export function evaluationOf(facts, { convention, trajectories, steps }) {
  const whole = (found) => found.quantiles && found.convention === convention && (found.steps ?? facts.steps) === steps && found.trajectories === (trajectories ?? null);
  return facts.evaluation?.find(whole) ?? null;
}

/**
 * The share of held-out data with a larger bound, by linear interpolation.
 * @param {number[]} quantiles ascending, nats
 * @param {number} nats
 */
export function shareAbove(quantiles, nats) {
  const last = quantiles.length - 1;
  if (nats <= quantiles[0]) return 1;
  if (nats >= quantiles[last]) return 0;
  const i = quantiles.findIndex((value) => value > nats) - 1;
  return 1 - (i + (nats - quantiles[i]) / (quantiles[i + 1] - quantiles[i])) / last;
}

/** The histogram of held-out data, in bits/dim, with the data marked: likelier to the left. */
export function histogram(quantiles, bounds, dims) {
  const [low, high] = [perDim(quantiles.at(-1), dims), perDim(quantiles[0], dims)];
  const room = (high - low || Math.abs(low) || 1) * BEYOND;
  const places = bounds.map((nats) => (nats === null ? Infinity : perDim(nats, dims)));
  const near = places.map((place) => Math.min(high + room, Math.max(low - room, place)));
  const range = rangeOf([low, high, ...near], 0.06);
  const edges = Array.from({ length: BARS + 1 }, (_, i) => low + (i / BARS) * (high - low));
  const below = edges.map((edge) => shareAbove(quantiles, -edge * Math.LN2 * dims)); // share of likelier data
  const heights = below.slice(1).map((share, i) => 100 * (share - below[i]));
  const top = 1.25 * Math.max(...heights);
  const plot = axes({ x: { range, name: "standing.x" }, y: { range: [0, top], name: "standing.y" }, label: "standing.label", height: HEIGHT });
  plot.bars(edges, heights);
  const rows = stacked(near.map(plot.X));
  for (const [i, place] of places.entries()) {
    const arrow = place > near[i] ? RIGHT : place < near[i] ? LEFT : "";
    flag(plot, near[i], rows[i], i, arrow);
  }
  return plot.node;
}

/** The row of each flag, such that neighbours do not cover each other. */
function stacked(xs) {
  const rows = [];
  return xs.map((x) => {
    let row = rows.findIndex((taken) => taken.every((other) => Math.abs(other - x) > 26));
    if (row < 0) row = rows.push([]) - 1;
    rows[row].push(x);
    return row;
  });
}

/** A pole with a letter, and an arrow if the example lies beyond the plot. */
function flag(plot, value, row, i, arrow) {
  const [x, top, bottom] = [plot.X(value), 14 + 16 * row, plot.Y(0)];
  const right = arrow === RIGHT;
  const word = svg("text", { x: x + (right ? -5 : 5), y: top + 9, "text-anchor": right ? "end" : "start" }, right ? letter(i) + arrow : arrow + letter(i));
  plot.node.append(svg("g", { class: `flag ${hue(i)}` }, svg("path", { d: `M${x} ${top}V${bottom}` }), word));
}

/**
 * The terms KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), nats, against t, averaged for each t.
 * @param {{t: number, value: number}[][]} terms of each example
 * @param {number} T
 */
export function kernel(terms, T) {
  const lines = terms.map(averaged);
  const values = lines.flat().map(([, value]) => value);
  const y = { range: [0, 1.05 * Math.max(1e-9, ...values)], name: "kernel.y" };
  const plot = axes({ x: { range: [0, 1.02 * T], name: "kernel.x" }, y, label: "kernel.label", height: HEIGHT });
  lines.forEach((points, i) => plot.line(points, `${hue(i)} line-${Math.floor(i / 6)}`));
  return plot.node;
}

/** [t, nats lost] in order of t, without the last step's draws, which are not divergences. */
function averaged(terms) {
  const found = new Map();
  for (const { t, value } of terms) {
    if (t === 1) continue;
    const [sum, count] = found.get(t) ?? [0, 0];
    found.set(t, [sum - value, count + 1]);
  }
  return [...found].map(([t, [sum, count]]) => [t, Math.max(0, sum / count)]).sort(([a], [b]) => a - b);
}
