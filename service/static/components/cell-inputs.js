// Inputs for an observed list: each bit is 0, 1 or hidden, and each number is typed or hidden.

import { h } from "../lib/dom.js";
import { tell } from "../lib/i18n.js";

/**
 * `show(x, known)` shows an example [D] and which elements are observed.
 * @param {object} model an entry of GET /models, of lists
 * @param {(x: number[], known: number[]) => void} onChange
 */
export const cells = (model, onChange) => (model.kind === "bits" ? bits(model, onChange) : numbers(model, onChange));

/** A click switches from 0 to 1 to hidden. */
function bits({ shape: [count] }, onChange) {
  let [x, known] = [Array(count).fill(0), Array(count).fill(0)]; // until there is an example
  const keys = Array.from({ length: count }, (_, i) => h("button", { type: "button", class: "bit", on: { click: () => turn(i) } }));
  const node = h("div", { class: "easel" },
    h("div", { class: "bits", role: "group", label: "cells.bits" }, ...keys),
    h("small", { say: "cells.bits.how" }),
  );

  function turn(i) {
    const now = known[i] ? x[i] + 1 : 0; // 2 is hidden
    onChange(now === 2 ? x : x.with(i, now), known.with(i, Number(now < 2)));
  }

  function show(example, mask) {
    [x, known] = [example, mask];
    for (const [i, key] of keys.entries()) {
      key.textContent = known[i] ? x[i] : "?";
      key.classList.toggle("hidden", !known[i]);
      tell(key, known[i] ? ["cells.bit", { n: i + 1, bit: x[i] }] : ["cells.bit.hidden", { n: i + 1 }], "aria-label");
    }
  }

  show(x, known);
  return { node, show };
}

function numbers({ shape: [count] }, onChange) {
  let [x, known] = [Array(count).fill(0), Array(count).fill(0)]; // until there is an example
  const rows = Array.from({ length: count }, (_, i) => {
    const seen = h("input", { type: "checkbox", label: ["cells.seen", { n: i + 1 }], on: { change: () => onChange(x, known.with(i, Number(seen.checked))) } });
    const value = h("input", { type: "number", step: "any", label: ["cells.number", { n: i + 1 }], on: { change: () => Number.isFinite(value.valueAsNumber) && onChange(x.with(i, value.valueAsNumber), known) } });
    return { seen, value, node: h("div", { class: "coordinate" }, seen, h("span", { "aria-hidden": "true", say: ["cells.name", { n: i + 1 }] }), value) };
  });
  const node = h("div", { class: "easel" },
    h("div", { class: "coordinates", role: "group", label: "cells.numbers" }, ...rows.map((row) => row.node)),
    h("small", { say: "cells.numbers.how" }),
  );

  function show(example, mask) {
    [x, known] = [example, mask];
    for (const [i, { seen, value }] of rows.entries()) {
      seen.checked = known[i] === 1;
      value.disabled = !seen.checked;
      value.value = Number(x[i].toFixed(4));
    }
  }

  show(x, known);
  return { node, show };
}
