// An observation of an example: some of its elements, or averages of blocks, exact or with noise.
//
//   y = A x_0 + noise n,   n ~ N(0, 1);      each observed bit is flipped with probability `noise`
//
// The page adds noise to a picture; a list of numbers or bits is taken as the observation itself. A look
// is { known, block, noise }: `known` is [H][W] for pictures and [D] for lists, 1 where an element is
// observed; `block` is the side of the averaged blocks, 1 for none.

import { isPicture } from "./encode.js";

/** A deterministic pseudo-random number in 0..1 from a counter: a 32-bit finaliser (Steele et al. 2014). */
function uniform(counter) {
  let z = (Math.imul(counter, 0x9e3779b9) + 0x85ebca6b) | 0;
  z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
  return (((z ^ (z >>> 15)) >>> 0) + 0.5) / 2 ** 32;
}

/** A standard normal number from a counter (Box and Muller 1958). */
const normal = (counter) => Math.sqrt(-2 * Math.log(uniform(2 * counter))) * Math.cos(2 * Math.PI * uniform(2 * counter + 1));

/** Apply `act(value, flat index)` to every number of nested lists. */
function each(x, act, counter = { n: 0 }) {
  return Array.isArray(x) ? x.map((part) => each(part, act, counter)) : act(x, counter.n++);
}

/** The means of the blocks of a picture [C, H, W]: [C, H / block, W / block]. */
export function pool(x, block) {
  if (block === 1) return x;
  const sides = (rows) => Array.from({ length: rows.length / block }, (_, i) => rows.slice(i * block, (i + 1) * block));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  return x.map((channel) => sides(channel).map((rows) =>
    sides(rows[0]).map((_, j) => mean(rows.flatMap((row) => row.slice(j * block, (j + 1) * block))))));
}

/** Whether element `flat` of an example (the index includes channels) is observed. */
const isKnown = (known, { shape }) => {
  const flat = known.flat();
  const size = shape.slice(-2).reduce((a, b) => a * b);
  return (index) => flat[isPicture({ shape }) ? index % size : index] === 1;
};

/** y in the shape of the observation, 0 where nothing is observed. */
export function observe(model, x, { known, block, noise }) {
  const seen = block > 1 ? () => true : isKnown(known, model);
  const tell = (value, i) => (seen(i) ? value : 0);
  if (!isPicture(model)) return each(x, tell);
  if (model.kind === "bits") return each(x, (bit, i) => tell(uniform(i) < noise ? 1 - bit : bit, i));
  return each(pool(x, block), (value, i) => tell(Number((value + noise * normal(i)).toFixed(2)), i));
}

/** The fields of POST /posterior for an observation. */
export function fieldsOf(model, y, { known, block, noise }) {
  const hidden = block === 1 && known.flat().includes(0);
  const name = model.kind === "bits" ? "flip_probability" : "noise_std";
  return {
    observed: [y],
    ...(hidden && { known }),
    ...(block > 1 && { operator: { kind: "average-pooling", size: block } }),
    ...(noise > 0 && { [name]: noise }),
  };
}

/** Whether there is nothing to repair: everything is observed exactly. */
export const isWhole = ({ known, block, noise }) => block === 1 && noise === 0 && !known.flat().includes(0);

/** Whether nothing is observed. */
export const isBlank = ({ known, block }) => block === 1 && !known.flat().includes(1);

/**
 * How well samples agree with the observation: the `count` of observed numbers, how many of them are
 * `changed` over all samples, and the root mean square difference `off`.
 */
export function agreement(model, samples, y, { known, block }) {
  const seen = block > 1 ? () => true : isKnown(known, model);
  const wanted = y.flat(2);
  let [count, changed, squares] = [0, 0, 0];
  for (const sample of samples) {
    for (const [i, value] of pool(sample, block).flat(2).entries()) {
      if (!seen(i)) continue;
      count++;
      changed += Math.fround(value) !== Math.fround(wanted[i]);
      squares += (value - wanted[i]) ** 2;
    }
  }
  return { count: count / samples.length, changed, off: Math.sqrt(squares / count) };
}

// ------------------------------------------------------------------------------------------ to hide

/** The parts that a button can hide, by name: whether element (i, j) of [H, W] stays observed. */
const VEILS = {
  nothing: () => true,
  left: (i, j, H, W) => j >= W / 2,
  right: (i, j, H, W) => j < W / 2,
  top: (i, j, H) => i >= H / 2,
  bottom: (i, j, H) => i < H / 2,
  centre: (i, j, H, W) => !inBox(i, j, H, W),
  around: inBox,
  most: (i, j, H, W) => uniform(i * W + j) < 0.1,
};

function inBox(i, j, H, W) {
  const within = (at, size) => at >= Math.floor(size / 4) && at < size - Math.floor(size / 4);
  return within(i, H) && within(j, W);
}

export const VEIL_NAMES = Object.keys(VEILS);

/** The mask that a veil leaves: [H][W] for pictures, [D] for lists (only `right`). */
export function veil(name, { shape }) {
  const [height, width] = shape.length === 3 ? shape.slice(1) : [1, shape[0]];
  const rows = Array.from({ length: height }, (_, i) => Array.from({ length: width }, (_, j) => Number(VEILS[name](i, j, height, width))));
  return shape.length === 3 ? rows : rows[0];
}
