// A canvas to draw an example on, with mouse, touch, pen or keyboard.
//
// A drawing consists of strokes on an example (or on black); the last one can be undone. A drawing of
// the size of MNIST's digits can be centred like them.

import { h } from "../lib/dom.js";
import { FINE, centred, lay, readSheet, sheetOf } from "../lib/image-fit.js";
import { button } from "./controls.js";

const STEP = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * `show(x)` shows an example (null clears); `onChange(x)` is called with the drawing (null: empty).
 * @param {object} model an entry of GET /models, of pictures
 * @param {(x: number[][][]|null) => void} onChange
 */
export function sketch(model, onChange) {
  const [channels, height, width] = model.shape;
  const paper = sheetOf(model);
  const canvas = h("canvas", { class: "sketch", tabindex: 0, role: "application", label: "sketch.label", width: paper.width, height: paper.height });
  const brush = h("input", { type: "range", min: 1, max: Math.max(6, width / 4), step: "any", value: width / 12 });
  const colour = h("input", { type: "color", value: "#ffffff" });
  const eraser = button("sketch.erase", () => eraser.setAttribute("aria-pressed", eraser.getAttribute("aria-pressed") !== "true"), { "aria-pressed": "false" });
  const undo = button("sketch.undo", () => strokes.length && (strokes.pop(), settle()));
  const clear = button("sketch.clear", () => (show(null), onChange(null)));
  const centre = h("input", { type: "checkbox", checked: true, on: { change: () => strokes.length && settle() } });
  const digits = channels === 1 && height === 28 && width === 28;
  const node = h("div", { class: "easel" },
    canvas,
    h("div", { class: "row" }, undo, clear, eraser, channels === 3 ? h("label", { class: "check" }, colour, h("span", { say: "sketch.colour" })) : null),
    h("label", { class: "check" }, h("span", { say: "sketch.brush" }), brush),
    digits ? h("label", { class: "check" }, centre, h("span", { say: "sketch.centre" })) : null,
    h("small", { say: "sketch.how" }),
  );

  let base = null; // the example below the strokes
  let strokes = []; // { colour, width, points: [[x, y]] }, in pixels of the sheet
  let stroke = null; // the stroke being drawn
  let cursor = null; // the keyboard's position, in pixels of the model

  function show(x) {
    [base, strokes, stroke] = [x, [], null];
    render();
  }

  function render() {
    const pen = paper.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, paper.width, paper.height);
    if (base) lay(paper, base, model);
    strokes.forEach(trace);
    const shown = canvas.getContext("2d");
    shown.drawImage(paper, 0, 0);
    if (cursor) ring(shown);
  }

  function trace({ colour: ink, width: wide, points }) {
    const pen = paper.getContext("2d");
    Object.assign(pen, { strokeStyle: ink, lineWidth: wide, lineCap: "round", lineJoin: "round" });
    pen.beginPath();
    pen.moveTo(...points[0]);
    points.forEach((point) => pen.lineTo(...point));
    pen.stroke();
  }

  /** Mark the keyboard's pen in black and white, which shows on any background. */
  function ring(pen) {
    const [x, y] = cursor.map((value) => (value + 0.5) * FINE);
    for (const [ink, wide] of [["#000", 4], ["#fff", 2]]) {
      Object.assign(pen, { strokeStyle: ink, lineWidth: wide });
      pen.beginPath();
      pen.arc(x, y, Math.max(FINE, (brush.value * FINE) / 2 + 3), 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  /** Report the changed drawing. */
  function settle() {
    render();
    const drawn = strokes.length && digits && centre.checked ? centred(paper, model) : paper;
    onChange(strokes.length ? readSheet(drawn, model) : base);
  }

  function begin(point) {
    const ink = eraser.getAttribute("aria-pressed") === "true" ? "#000" : channels === 3 ? colour.value : "#fff";
    stroke = { colour: ink, width: brush.value * FINE, points: [point] };
    strokes.push(stroke);
    render();
  }

  function lift() {
    if (!stroke) return;
    stroke = null;
    settle();
  }

  function placeOf({ clientX, clientY }) {
    const { left, top, width: across, height: down } = canvas.getBoundingClientRect();
    return [((clientX - left) / across) * paper.width, ((clientY - top) / down) * paper.height];
  }

  const listen = (event, act) => canvas.addEventListener(event, act);
  listen("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    cursor = null;
    begin(placeOf(event));
  });
  listen("pointermove", (event) => {
    if (!stroke || !canvas.hasPointerCapture(event.pointerId)) return;
    stroke.points.push(...(event.getCoalescedEvents?.() ?? [event]).map(placeOf));
    render();
  });
  listen("pointerup", lift);
  listen("pointercancel", lift);
  listen("blur", () => {
    lift();
    cursor = null;
    render();
  });
  listen("keydown", (event) => {
    const { key } = event;
    if (key === "z" && (event.ctrlKey || event.metaKey)) undo.click();
    else if (key === " ") pointAt(() => (stroke ? lift() : begin(middle())));
    else if (key in STEP) pointAt(() => move(STEP[key], event.shiftKey ? 4 : 1));
    else return;
    event.preventDefault();
  });

  const middle = () => cursor.map((value) => (value + 0.5) * FINE);

  function pointAt(act) {
    cursor ??= [Math.floor(width / 2), Math.floor(height / 2)];
    act();
    render();
  }

  function move([right, down], by) {
    const within = (value, size) => Math.min(size - 1, Math.max(0, value));
    cursor = [within(cursor[0] + by * right, width), within(cursor[1] + by * down, height)];
    stroke?.points.push(middle());
  }

  render();
  return { node, show };
}
