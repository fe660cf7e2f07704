// What samples look like, by the kind of model: pictures side by side, a raster of bits, points.
//
// A scene has `node`, `show(data)` (one datum a sample, null where there is none yet, a string where
// it is a base64 PNG) and `canvas()`, which promises all of it as one picture to save.

import { h } from "./elements.js";
import { paint, paintPng, paintRows, sheet } from "./pictures.js";
import { axes, toCanvas } from "./plots.js";

/** The scene for a model's data. */
export function sceneOf(model) {
  if (model.shape.length === 3) return gallery(model);
  return model.kind === "vector" && model.shape[0] === 2 ? plane() : raster(model);
}

function gallery({ kind, shape }) {
  const node = h("div", { class: "gallery" });
  const white = kind === "bits" ? 1 : 255;

  let shown = []; // a picture that is decoded late must not cover a later one

  function show(data) {
    shown = data;
    while (node.children.length > data.length) node.lastChild.remove();
    for (const [i, x] of data.entries()) {
      if (!node.children[i]) node.append(frame(i, shape));
      const canvas = node.children[i];
      canvas.classList.toggle("blank", x === null);
      if (typeof x === "string") paintPng(canvas, x, () => shown[i] === x);
      else if (x !== null) paint(canvas, x, white);
    }
  }

  return { node, show, canvas: async () => sheet([...node.children]) };
}

const frame = (i, [, height, width]) => h("canvas", { role: "img", class: "pixels", height, width, label: ["scene.sample", { n: i + 1 }] });

function raster({ shape }) {
  const canvas = h("canvas", { role: "img", class: "pixels raster", label: "scene.raster" });
  const node = h("div", { class: "raster-frame" }, canvas);
  const none = Array(shape[0]).fill(0.5);
  return {
    node,
    show: (data) => paintRows(canvas, data.map((x) => x ?? none)),
    canvas: async () => sheet([canvas], { scale: 12 }),
  };
}

/** Points of the plane. The axes reach as far as any points that have been shown. */
function plane() {
  const node = h("div", { class: "plane" });
  let plot = null;
  let extent = [];

  function show(data) {
    const points = data.filter((x) => x !== null);
    const seen = points.flatMap(([a, b]) => [Math.abs(a), Math.abs(b)]);
    const reach = 1.05 * Math.max(1e-9, ...extent, ...seen);
    if (!plot || reach > extent[0]) {
      extent = [reach];
      const range = [-reach, reach];
      plot = axes({ x: { range }, y: { range }, label: ["scene.plane", { n: data.length }], width: 560, height: 560 });
      node.replaceChildren(plot.node);
    }
    plot.clear();
    plot.dots(points);
  }

  return { node, show, canvas: () => toCanvas(plot.node) };
}
