// Plots in SVG, which follow the theme and scale to any size: axes, and marks on them.
//
//   const plot = axes({ x: { range: [1, 1000], name: "plot.t" }, y: { range: [0, 3], name: "plot.nats" },
//                       label: "likelihood.steps.label" });
//   plot.line(points); plot.bars(edges, heights); plot.dots(points); plot.arrows(from, to);
//   plot.rule(x, "likelihood.here"); document.body.append(plot.node);
//
// Every mark returns its element and takes a class, which style.css colours: "accent", "soft", "warn".

import { svg } from "./dom.js";
import { number } from "./i18n.js";

const MARGIN = { left: 40, right: 14, top: 12, bottom: 26 };
const NAME = 17; // extra margin for an axis' name
const LINE = 48; // height of a heading on a canvas with several plots, pixels
const EDGE = 16; // the margin that style.css leaves beside a plot on the narrowest screens

/** Round numbers that divide a range into about `count` parts: 1, 2 or 5 times a power of ten apart. */
export function ticks([low, high], count = 5) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** The least range that holds some numbers, with a margin; a default width for none or one. */
export function rangeOf(values, margin = 0.05) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  const room = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * margin;
  return [low - room, high + room];
}

/**
 * Axes to draw marks on.
 * @param {object} x, y: `range` [low, high], `name` the key of the axis' name in words/ (or none)
 * @param {string|[string, object]} label the plot's accessible description
 * @param {{width?: number, height?: number, count?: number}} size in the plot's own units; on a narrow
 *     screen the plot gets narrower, so that its letters stay as large
 * @param {boolean} square whether the axes are equally long, so that equal ranges have one scale
 */
export function axes({ x, y, label, width = 640, height = 360, count = 6, square = false }) {
  const shrunk = Math.min(1, (window.innerWidth - 2 * EDGE) / width);
  const margin = { ...MARGIN, left: MARGIN.left + (y.name ? NAME : 0), bottom: MARGIN.bottom + (x.name ? NAME : 0) };
  width *= shrunk;
  height = square ? width - margin.left - margin.right + margin.top + margin.bottom : height * Math.sqrt(shrunk);
  count = Math.max(3, Math.round(count * shrunk));
  const [left, right, top, bottom] = [margin.left, width - margin.right, margin.top, height - margin.bottom];
  const place = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
  const [X, Y] = [place(x.range, left, right), place(y.range, bottom, top)];
  const ground = svg("g", { class: "axes", "aria-hidden": "true" });
  for (const value of ticks(x.range, count)) {
    ground.append(svg("path", { d: `M${X(value)} ${top}V${bottom}` }), text(X(value), bottom + 18, number(value), "middle"));
  }
  for (const value of ticks(y.range, count)) {
    ground.append(svg("path", { d: `M${left} ${Y(value)}H${right}` }), text(left - 8, Y(value) + 4, number(value), "end"));
  }
  if (x.name) ground.append(name((left + right) / 2, height - 6, x.name));
  if (y.name) ground.append(name(14, (top + bottom) / 2, y.name, `rotate(-90 14 ${(top + bottom) / 2})`));
  const marks = svg("g");
  const node = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", label }, ground, marks);
  const put = (mark) => (marks.append(mark), mark);
  const at = ([a, b]) => `${X(a).toFixed(2)} ${Y(b).toFixed(2)}`;

  return {
    node,
    X,
    Y,
    clear: () => marks.replaceChildren(),
    /** Points joined in order; null is a gap. */
    line: (points, kind = "accent") => put(svg("path", { class: `line ${kind}`, d: joined(points, at) })),
    /** A histogram: n + 1 edges, n heights. */
    bars: (edges, heights, kind = "soft") =>
      put(svg("path", { class: `bars ${kind}`, d: heights.map((to, i) => `M${at([edges[i], 0])}L${at([edges[i], to])}L${at([edges[i + 1], to])}L${at([edges[i + 1], 0])}Z`).join("") })),
    dots: (points, kind = "accent") => put(svg("path", { class: `dots ${kind}`, d: points.map((point) => `M${at(point)}h0`).join("") })),
    arrows: (from, to, kind = "soft") => put(svg("path", { class: `arrows ${kind}`, d: from.map((point, i) => arrow(X, Y, point, to[i])).join("") })),
    /** A vertical line with its name. */
    rule(value, named, kind = "warn") {
      const flip = X(value) > (left + right) / 2;
      const word = svg("text", { x: X(value) + (flip ? -6 : 6), y: top + 14, "text-anchor": flip ? "end" : "start", say: named });
      return put(svg("g", { class: `rule ${kind}` }, svg("path", { d: `M${X(value)} ${top}V${bottom}` }), word));
    },
  };
}

const text = (x, y, content, anchor) => svg("text", { x, y, "text-anchor": anchor }, content);
const name = (x, y, said, transform = null) => svg("text", { x, y, "text-anchor": "middle", class: "name", transform, say: said });

function joined(points, at) {
  let pen = "M";
  const parts = points.map((point) => {
    if (point === null) return (pen = "M"), "";
    const part = pen + at(point);
    pen = "L";
    return part;
  });
  return parts.join("");
}

/** An arrow, with barbs at most a third of its length; empty if its length is zero. */
function arrow(X, Y, [x, y], [u, v]) {
  const [a, b, c, d] = [X(x), Y(y), X(u), Y(v)];
  const length = Math.hypot(c - a, d - b);
  if (length < 1) return "";
  const barb = Math.min(4, length / 3) / length;
  const [p, q] = [(a - c) * barb, (b - d) * barb];
  const turn = (s) => `${(c + p - s * q).toFixed(1)} ${(d + q + s * p).toFixed(1)}`;
  return `M${a.toFixed(1)} ${b.toFixed(1)}L${c.toFixed(1)} ${d.toFixed(1)}M${turn(0.6)}L${c.toFixed(1)} ${d.toFixed(1)}L${turn(-0.6)}`;
}

const COPIED = ["fill", "stroke", "stroke-width", "stroke-linecap", "opacity", "font-family", "font-size", "font-weight"];

/** Draw a plot on a canvas, `scale` times its own units, on the page's colour. */
export async function toCanvas(plot, scale = 2) {
  const copy = plot.cloneNode(true);
  const [nodes, copies] = [plot.querySelectorAll("*"), copy.querySelectorAll("*")];
  for (const [i, node] of nodes.entries()) {
    const style = getComputedStyle(node); // an image does not use the page's style sheet
    for (const property of COPIED) copies[i].setAttribute(property, style.getPropertyValue(property));
  }
  const { width, height } = plot.viewBox.baseVal;
  copy.setAttribute("width", width * scale);
  copy.setAttribute("height", height * scale);
  const source = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = source;
  await image.decode();
  URL.revokeObjectURL(source);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return canvas;
}

/** Draw all plots within an element on one canvas, one below the other, each under its heading. */
export async function stacked(root) {
  const plots = [...root.querySelectorAll(".plot")];
  const canvases = await Promise.all(plots.map((plot) => toCanvas(plot)));
  const titles = plots.map((plot) => plot.closest(".part")?.querySelector("h2")?.textContent ?? "");
  const figures = [...root.querySelectorAll(".verdict")].map((card) => `${card.querySelector(".badge")?.textContent}: ${card.querySelector(".score")?.textContent}`);
  const style = getComputedStyle(document.body);
  const lines = [...figures.map((text) => [text, null]), ...canvases.map((canvas, i) => [titles[i], canvas])];
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(...canvases.map(({ width }) => width));
  canvas.height = LINE + lines.reduce((sum, [, picture]) => sum + LINE + (picture?.height ?? 0), 0);
  const pen = canvas.getContext("2d");
  Object.assign(pen, { fillStyle: style.backgroundColor, font: `${LINE / 2}px ${style.fontFamily}` });
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = style.color;
  let y = LINE / 2;
  for (const [text, picture] of lines) {
    pen.fillText(text, LINE / 2, y + 0.6 * LINE);
    y += LINE;
    if (picture) pen.drawImage(picture, 0, y);
    y += picture?.height ?? 0;
  }
  return canvas;
}
