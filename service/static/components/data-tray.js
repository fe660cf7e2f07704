// The data to be scored, side by side; one of them is current, the one that the editor changes.

import { h } from "../lib/dom.js";
import { button } from "./controls.js";
import { badge, letter, thumb } from "./thumbnail.js";

export const MOST = 12;

/**
 * `put(x)` replaces the current example, or adds one if none is current (null removes it); `add(xs)`
 * adds examples and makes the last current; `fill(xs)` replaces all; `leave()` deselects.
 * @param {(x: any) => void} onHand called with the current example, or null, when it changes
 * @param {() => void} onChange called on every change of the data
 */
export function tray(onHand, onChange) {
  const list = h("ul", { class: "tray", label: "tray.label" });
  const empty = h("p", { class: "told", say: "tray.empty" });
  const full = h("p", { class: "told", say: ["tray.full", { n: MOST }], hidden: true });
  const node = h("div", { class: "tray-frame" }, empty, list, full);
  let model = null;
  let data = [];
  let hand = -1;

  function render() {
    list.replaceChildren(...data.map(item));
    list.hidden = !data.length;
    empty.hidden = data.length > 0;
  }

  function item(x, i) {
    const pick = h("button", { type: "button", class: "tile", label: ["tray.pick", { name: letter(i) }], "aria-pressed": String(i === hand), on: { click: () => take(i) } }, thumb(x, model), badge(i));
    const drop = h("button", { type: "button", class: "drop", label: ["tray.drop", { name: letter(i) }], on: { click: () => remove(i) } }, "×");
    return h("li", {}, pick, drop);
  }

  function changed() {
    full.hidden = data.length < MOST;
    render();
    onChange();
  }

  function take(i) {
    hand = i;
    onHand(data[i]);
    render();
    list.children[i].firstChild.focus();
  }

  function remove(i) {
    data.splice(i, 1);
    if (hand === i) onHand(null);
    hand = hand === i ? -1 : hand > i ? hand - 1 : hand;
    changed();
    (list.children[Math.min(i, data.length - 1)]?.firstChild ?? empty).focus?.();
  }

  return {
    node,
    data: () => data,
    atHand: () => data[hand] ?? null,
    put(x) {
      if (x === null) return hand >= 0 && (data.splice(hand, 1), (hand = -1), changed());
      if (hand < 0 && data.length === MOST) return;
      if (hand < 0) hand = data.length;
      data[hand] = x;
      changed();
    },
    add(xs) {
      data.push(...xs.slice(0, MOST - data.length));
      hand = data.length - 1;
      onHand(data[hand] ?? null);
      changed();
    },
    fill(xs, of) {
      [model, data, hand] = [of, xs.slice(0, MOST), Math.min(xs.length, MOST) - 1];
      onHand(data[hand] ?? null);
      full.hidden = true;
      render();
    },
    leave() {
      hand = -1;
      onHand(null);
      render();
    },
  };
}

/** Variants of an example, to be compared with it. */
export function twists({ kind, shape }) {
  const [white, picture] = [kind === "bits" ? 1 : 255, shape.length === 3];
  const back = (row) => [...row].reverse();
  if (picture) {
    return [
      ["twist.turned", (x) => x.map((plane) => back(plane.map(back)))],
      ["twist.mirrored", (x) => x.map((plane) => plane.map(back))],
      ["twist.negative", (x) => x.map((plane) => plane.map((row) => row.map((value) => white - value)))],
    ];
  }
  if (kind !== "bits") return [];
  return [
    ["twist.reversed", back],
    ["twist.complement", (x) => x.map((bit) => 1 - bit)],
  ];
}

/** The buttons for the variants. */
export const twistButtons = (model, add) => twists(model).map(([name, turn]) => button(name, () => add(turn)));
