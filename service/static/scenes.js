// What samples look like, by the kind of model: pictures side by side, a raster of bits, points.
//
// A scene has `node`, `show(data)` (one datum a sample, null where there is none yet, a string where
// it is a base64 PNG), `canvas()` (all of it as one picture to save) and `draw()` (anew, as it was).

import { h } from "./elements.js";
import { paint, paintPng, paintRows, sheet } from "./pictures.js";

/** The scene for a model's data. */
export function sceneOf(model) {
  if (model.shape.length === 3) return gallery(model);
  return raster(model);
}

function gallery({ kind, shape }) {
  const node = h("div", { class: "gallery" });
  const white = kind === "bits" ? 1 : 255;

  function show(data) {
    while (node.children.length > data.length) node.lastChild.remove();
    for (const [i, x] of data.entries()) {
      if (!node.children[i]) node.append(frame(i, shape));
      const canvas = node.children[i];
      canvas.classList.toggle("blank", x === null);
      if (typeof x === "string") paintPng(canvas, x);
      else if (x !== null) paint(canvas, x, white);
    }
  }

  return { node, show, canvas: () => sheet([...node.children]), draw() {} };
}

const frame = (i, [, height, width]) => h("canvas", { role: "img", class: "pixels", height, width, label: ["scene.sample", { n: i + 1 }] });

function raster({ shape }) {
  const canvas = h("canvas", { role: "img", class: "pixels raster", label: "scene.raster" });
  const node = h("div", { class: "raster-frame" }, canvas);
  const none = Array(shape[0]).fill(0.5);
  return {
    node,
    show: (data) => paintRows(canvas, data.map((x) => x ?? none)),
    canvas: () => sheet([canvas], { scale: 12 }),
    draw() {},
  };
}
