// A plane for models of two numbers: a click adds a point; held-out data and, on request, a map of the
// density lie below.

import { h, svg } from "../lib/dom.js";
import { field, numberInput } from "./controls.js";
import { axes } from "../lib/plot.js";
import { hue, letter } from "./thumbnail.js";

const SIDE = 420; // side of the plot, in its own units
const REACH = 3.2; // least range, in standard deviations to each side
const SHADED = 0.25; // share of the map's cells that are shaded: the densest, in proportion

/**
 * `show(points)` draws the points as letters, `cells(n)` returns the centres of n x n cells of the
 * plane, `lay(values)` maps them, `mapped()` returns whether there is a map. The plane grows to hold
 * its points, which removes the map.
 * @param {{shift: number|number[], scale: number|number[]}} space the data's own mean and spread
 * @param {number[][]} held held-out data
 * @param {(point: number[]) => void} onPoint called with a new point
 */
export function chart({ shift, scale }, held, onPoint) {
  const frame = h("div", { class: "chart", on: { click: (event) => onPoint(placeOf(event)) } });
  const inputs = ["x", "y"].map((name) => numberInput(name, { step: "any" }));
  const form = h("form", { class: "point", on: { submit: put } }, field("chart.x", inputs[0]), field("chart.y", inputs[1]), h("button", { say: "chart.put" }));
  const node = h("div", { class: "easel" }, frame, form, h("small", { say: "chart.how" }));
  let ranges = [0, 1].map((d) => reachOf(at(shift, d), at(scale, d), held.map((x) => x[d])));
  let plot = stand();
  let surveyed = null; // the ranges of the requested cells

  /** Draw an empty plane. */
  function stand() {
    const made = axes({ x: { range: ranges[0] }, y: { range: ranges[1] }, label: "chart.label", width: SIDE, square: true });
    frame.replaceChildren(made.node);
    return made;
  }

  function put(event) {
    event.preventDefault();
    onPoint(inputs.map((input) => Number(input.value)));
    inputs[0].focus();
  }

  /** The coordinates of a click, to a thousandth of the plane. */
  function placeOf({ clientX, clientY }) {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(plot.node.getScreenCTM().inverse());
    const back = (place, value, [low, high]) => low + ((value - place(low)) / (place(high) - place(low))) * (high - low);
    const round = (value, [low, high]) => Number(value.toFixed(Math.max(0, 3 - Math.floor(Math.log10(high - low)))));
    return [round(back(plot.X, x, ranges[0]), ranges[0]), round(back(plot.Y, y, ranges[1]), ranges[1])];
  }

  function show(points) {
    const wider = ranges.map((range, d) => wide(range, points.map((x) => x[d])));
    if (wider.flat().some((edge, i) => edge !== ranges.flat()[i])) {
      ranges = wider;
      plot = stand();
    }
    plot.clear();
    if (held.length) plot.dots(held, "soft");
    for (const [i, [x, y]] of points.entries()) {
      plot.dots([[x, y]], `big ${hue(i)}`);
      plot.node.lastChild.append(svg("text", { class: `mark ${hue(i)}`, x: plot.X(x) + 8, y: plot.Y(y) - 7 }, letter(i)));
    }
  }

  /** The centres of n x n cells, from the upper left. */
  function cells(n) {
    surveyed = ranges;
    const middle = ([low, high], i) => low + ((i + 0.5) / n) * (high - low);
    return Array.from({ length: n * n }, (_, k) => [middle(ranges[0], k % n), middle(ranges[1], n - 1 - Math.floor(k / n))]);
  }

  /** Draw a map of n x n log-densities, nats, ordered like `cells`; return the nats it spans, or null if the plane has grown since. */
  function lay(values) {
    if (surveyed !== ranges) return null;
    plot.node.querySelector(".map")?.remove();
    const n = Math.sqrt(values.length);
    const [left, right] = ranges[0].map(plot.X);
    const [bottom, top] = ranges[1].map(plot.Y);
    const box = { x: left, y: top, width: right - left, height: bottom - top };
    const span = spanOf(values);
    const image = svg("image", { href: shaded(values, n, span).toDataURL(), preserveAspectRatio: "none", ...box });
    plot.node.prepend(svg("g", { class: "map" }, svg("mask", { id: "density" }, image), svg("rect", { mask: "url(#density)", ...box })));
    return span;
  }

  show([]);
  const mapped = () => plot.node.querySelector(".map") !== null;
  return { node, show, cells, lay, mapped };
}

const at = (value, d) => (Array.isArray(value) ? value[d] : value);

function reachOf(shift, scale, seen) {
  return [Math.min(shift - REACH * scale, ...seen), Math.max(shift + REACH * scale, ...seen)];
}

/** Extend a range, with a margin, if it does not hold some values. */
function wide([low, high], values) {
  const room = 0.08 * (Math.max(high, ...values) - Math.min(low, ...values));
  return [values.some((value) => value < low) ? Math.min(...values) - room : low, values.some((value) => value > high) ? Math.max(...values) + room : high];
}

/** Nats from the densest cell down to the least dense that is shaded. */
function spanOf(values) {
  const ranked = values.map((value) => value ?? -Infinity).sort((a, b) => b - a);
  const last = ranked.slice(0, Math.ceil(SHADED * ranked.length)).findLast(Number.isFinite);
  return Math.max(1, ranked[0] - last);
}

/** A mask of the cells, whiter where denser, by the logarithm of the nats below the densest; black from `span` on. */
function shaded(values, n, span) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: n, height: n });
  const pen = canvas.getContext("2d");
  const most = Math.max(...values.filter((value) => value !== null));
  pen.fillStyle = "#fff";
  for (const [k, value] of values.entries()) {
    pen.globalAlpha = value === null ? 0 : Math.max(0, 1 - Math.log1p(most - value) / Math.log1p(span));
    pen.fillRect(k % n, Math.floor(k / n), 1, 1);
  }
  return canvas;
}
