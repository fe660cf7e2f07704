// A picture to erase from with mouse, touch or pen, and buttons that hide whole parts of it without a
// pointer.
//
// Hidden pixels are transparent, and show the chequers that style.css puts behind them.

import { h } from "../lib/dom.js";
import { button } from "./controls.js";
import { paint } from "../lib/image.js";
import { VEIL_NAMES, veil } from "../lib/observation.js";

/**
 * `show(y, known, erasable)` shows the observed part of a picture.
 * @param {object} model an entry of GET /models, of pictures
 * @param {(known: number[][]) => void} onErase called with the mask, 1 where a pixel is observed
 */
export function eraser(model, onErase) {
  const [, height, width] = model.shape;
  const canvas = h("canvas", { class: "pixels eraser", role: "img", label: "eraser.label", height, width });
  const brush = h("input", { type: "range", min: 0.5, max: Math.max(3, width / 6), step: 0.5, value: width / 12, label: "eraser.brush" });
  const back = h("input", { type: "checkbox" });
  const veils = VEIL_NAMES.map((name) => button(`veil.${name}`, () => onErase(veil(name, model))));
  const tools = h("div", { class: "easel" },
    h("div", { class: "row slim" }, h("label", { class: "check" }, h("span", { say: "eraser.brush" }), brush), h("label", { class: "check" }, back, h("span", { say: "eraser.back" }))),
    h("div", { class: "veils", role: "group", label: "eraser.veils" }, ...veils),
  );
  let known = null;
  let last = null; // the last point of the current stroke

  function show(y, mask, erasable) {
    known = mask;
    tools.hidden = !erasable;
    canvas.classList.toggle("still", !erasable);
    paintSeen(canvas, y, erasable ? mask : null, model);
  }

  const placeOf = ({ clientX, clientY }) => {
    const { left, top, width: across, height: down } = canvas.getBoundingClientRect();
    return [((clientX - left) / across) * width, ((clientY - top) / down) * height];
  };

  /** Hide or bring back all pixels that the brush covers from `last` to a point. */
  function stroke([x, y]) {
    const [from, to] = [last ?? [x, y], [x, y]];
    last = to;
    const near = (i, j) => distance([j + 0.5, i + 0.5], from, to) <= Math.max(0.75, Number(brush.value));
    onErase(known.map((row, i) => row.map((seen, j) => (near(i, j) ? Number(back.checked) : seen))));
  }

  const listen = (event, act) => canvas.addEventListener(event, act);
  listen("pointerdown", (event) => {
    if (event.button !== 0 || tools.hidden) return;
    canvas.setPointerCapture(event.pointerId);
    stroke(placeOf(event));
  });
  listen("pointermove", (event) => last && stroke(placeOf(event)));
  listen("pointerup", () => (last = null));
  listen("pointercancel", () => (last = null));

  return { node: h("div", { class: "desk-top" }, canvas, tools), show };
}

/** The distance of a point from a line segment. */
function distance([x, y], [a, b], [c, d]) {
  const length = (c - a) ** 2 + (d - b) ** 2;
  const along = length && Math.min(1, Math.max(0, ((x - a) * (c - a) + (y - b) * (d - b)) / length));
  return Math.hypot(x - a - along * (c - a), y - b - along * (d - b));
}

/** A picture whose unobserved pixels are transparent; `known` is null if all are observed. */
export function paintSeen(canvas, y, known, { kind }) {
  paint(canvas, y, kind === "bits" ? 1 : 255);
  canvas.classList.add("seen");
  const pen = canvas.getContext("2d");
  known?.forEach((row, i) => row.forEach((seen, j) => seen || pen.clearRect(j, i, 1, 1)));
}
