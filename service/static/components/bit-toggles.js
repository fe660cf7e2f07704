// A button for each bit. Arrows move between bits, Space switches, 0 and 1 set a bit and move on.

import { h } from "../lib/dom.js";
import { tell } from "../lib/i18n.js";

/**
 * `show(x)` sets the bits (null: all zeros); `onChange(x)` is called with the new bits.
 * @param {object} model an entry of GET /models: its shape is [D]
 * @param {(x: number[]) => void} onChange
 */
export function toggles({ shape: [count] }, onChange) {
  let bits = Array(count).fill(0);
  const keys = bits.map((_, i) => h("button", { type: "button", class: "bit", on: { click: () => set(i, 1 - bits[i]), focus: () => reach(i) } }));
  const node = h("div", { class: "easel" },
    h("div", { class: "bits", role: "group", label: "toggles.label", on: { keydown: press } }, ...keys),
    h("small", { say: "toggles.how" }),
  );

  function show(x) {
    bits = x ? [...x] : Array(count).fill(0);
    keys.forEach(write);
    reach(0);
  }

  function write(key, i) {
    key.textContent = bits[i];
    key.setAttribute("aria-pressed", bits[i] === 1);
    tell(key, ["toggles.bit", { n: i + 1 }], "aria-label");
  }

  function set(i, bit) {
    bits[i] = bit;
    write(keys[i], i);
    onChange([...bits]);
  }

  /** Put only one bit into the Tab order (WAI-ARIA). */
  const reach = (i) => keys.forEach((key, j) => (key.tabIndex = i === j ? 0 : -1));

  function press(event) {
    const at = keys.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: count - 1, 0: at + 1, 1: at + 1 }[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (event.key === "0" || event.key === "1") set(at, Number(event.key));
    keys[Math.min(count - 1, Math.max(0, to))].focus();
  }

  show(null);
  return { node, show };
}
