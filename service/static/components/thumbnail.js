// An example as a small picture, by kind of model, and the letter that names it.

import { h } from "../lib/dom.js";
import { paint, paintRows } from "../lib/image.js";
import { number } from "../lib/i18n.js";

const SHOWN = 4; // numbers of a vector

/** The name of example `i`: A, B, C, ... */
export const letter = (i) => String.fromCharCode(65 + i);

/** The class of an example's colour. Six are enough, because letters identify the data. */
export const hue = (i) => `hue-${i % 6}`;

/** An example's letter as an element. */
export const badge = (i) => h("b", { class: `badge ${hue(i)}` }, letter(i));

/** An example as a picture. Its container has the accessible name. */
export function thumb(x, { kind, shape }) {
  if (kind === "vector" && shape.length === 1) return h("span", { class: "numbers", "aria-hidden": "true" }, told(x));
  const canvas = h("canvas", { class: shape.length === 3 ? "pixels thumb" : "pixels strip", "aria-hidden": "true" });
  if (shape.length === 3) paint(canvas, x, kind === "bits" ? 1 : 255);
  else paintRows(canvas, [x]);
  return canvas;
}

const told = (x) => `(${x.slice(0, SHOWN).map((value) => number(value)).join(", ")}${x.length > SHOWN ? ", …" : ""})`;
