// Shows samples, by kind of model: pictures side by side, a raster of bits, points.
//
// A scene has `node`, `show(data, toward)` (one entry per sample: an example, a base64 PNG, or null
// for none yet; points get arrows to those of `toward`, if given), `reach(data)` (makes room for later
// data), and `canvas()`, a promise of one picture of everything, to save.

import { h } from "../lib/dom.js";
import { paint, paintPng, paintRows, sheet } from "../lib/image.js";
import { axes, rangeOf, toCanvas } from "../lib/plot.js";

const STRIDE = 0.5; // an arrow's share of the way

/** The scene for a model's data. */
export function sceneOf(model) {
  if (model.shape.length === 3) return gallery(model);
  if (model.kind === "bits") return raster(model);
  return model.shape.length === 1 && model.shape[0] === 2 ? plane() : profile();
}

function gallery({ kind, shape }) {
  const node = h("div", { class: "gallery" });
  const white = kind === "bits" ? 1 : 255;

  let shown = []; // so that a picture decoded late does not cover a later one

  function show(data) {
    shown = data;
    node.style.setProperty("--columns", columns(data.length));
    while (node.children.length > data.length) node.lastChild.remove();
    for (const [i, x] of data.entries()) {
      if (!node.children[i]) node.append(frame(i, shape));
      const canvas = node.children[i];
      canvas.classList.toggle("blank", x === null);
      if (typeof x === "string") paintPng(canvas, x, () => shown[i] === x);
      else if (x !== null) paint(canvas, x, white);
    }
  }

  return { node, show, reach() {}, canvas: async () => sheet([...node.children]) };
}

/** Show a few pictures large, and arrange many in even rows. */
const columns = (count) => (count <= 4 ? count : count <= 8 ? 4 : count <= 12 ? 6 : 8);

const frame = (i, [, height, width]) => h("canvas", { role: "img", class: "pixels", height, width, label: ["scene.sample", { n: i + 1 }] });

function raster({ shape }) {
  const canvas = h("canvas", { role: "img", class: "pixels raster", label: "scene.raster" });
  const node = h("figure", { class: "raster-frame" }, canvas, h("figcaption", { say: "scene.raster" }));
  const none = Array(shape[0]).fill(0.5);

  function show(data) {
    const cell = Math.min(24, 480 / shape[0], 560 / data.length); // of the screen's pixels
    canvas.style.width = `${Math.max(1, Math.floor(cell)) * shape[0]}px`;
    paintRows(canvas, data.map((x) => x ?? none));
  }

  return {
    node,
    show,
    reach() {},
    canvas: async () => sheet([canvas], { scale: 12 }),
  };
}

/** Points in the plane, with one scale for both axes, which include every point shown so far. */
function plane() {
  const node = h("div", { class: "plane" });
  const low = [Infinity, Infinity];
  const high = [-Infinity, -Infinity];
  let plot = null;

  /** Draw axes of equal length around all points so far, with a margin. */
  function reach(points) {
    const inside = ([a, b]) => a >= low[0] && a <= high[0] && b >= low[1] && b <= high[1];
    if (plot && points.every(inside)) return;
    for (const point of points) {
      for (const i of [0, 1]) [low[i], high[i]] = [Math.min(low[i], point[i]), Math.max(high[i], point[i])];
    }
    const half = 0.525 * Math.max(high[0] - low[0], high[1] - low[1], 1e-9);
    const around = (i) => ({ range: [(low[i] + high[i]) / 2 - half, (low[i] + high[i]) / 2 + half] });
    plot = axes({ x: around(0), y: around(1), label: "scene.plane", width: 600, square: true });
    node.replaceChildren(plot.node);
  }

  function show(data, toward = null) {
    const points = data.filter((x) => x !== null);
    if (points.length) reach(points);
    plot?.clear();
    if (toward) plot.arrows(points, points.map((x, i) => x.map((from, j) => from + STRIDE * (toward[i][j] - from))));
    plot?.dots(points);
  }

  return { node, show, reach, canvas: () => toCanvas(plot.node) };
}

/** Vectors whose length is not two, each as a line through its numbers. */
function profile() {
  const node = h("div", { class: "plane" });
  let range = [Infinity, -Infinity];
  let plot = null;

  function show(data) {
    const found = data.filter((x) => x !== null).map((x) => x.flat(Infinity));
    if (!found.length) return;
    const [low, high] = rangeOf(found.flat());
    range = [Math.min(low, range[0]), Math.max(high, range[1])];
    const places = found[0].map((_, i) => i + 1);
    plot = axes({ x: { range: rangeOf(places), name: "scene.place" }, y: { range }, label: "scene.profile" });
    for (const x of found) plot.line(x.map((value, i) => [places[i], value]), "accent thin");
    plot.dots(found.flatMap((x) => x.map((value, i) => [places[i], value])));
    node.replaceChildren(plot.node);
  }

  return { node, show, reach() {}, canvas: () => toCanvas(plot.node) };
}
