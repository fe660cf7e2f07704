// The editor of one cell of a table's row: a number or a label, or empty.

import { h } from "../lib/dom.js";

/**
 * A line of the sheet: the column's name, its cell, and a place for what was found of it.
 * @param {object} column of a model's `table`
 * @param {() => void} onChange
 * @returns its `name`, `column`, `node`, `found`; `value()`, null for a gap; and `put(value)`
 */
export function cellEditor(column, onChange) {
  const { name, labels, step, low, high } = column;
  const said = { label: ["table.cell", { name }], on: { change: onChange, input: onChange } };
  const control = labels
    ? h("select", said, h("option", { value: "", say: "table.gap" }), ...labels.map((label) => h("option", { value: label }, label)))
    : h("input", { type: "number", step: step === 1 ? 1 : "any", min: low, max: high, placeholder: "table.gap", inputmode: "decimal", ...said });
  const found = h("td", { class: "found" });
  const node = h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, control), found);
  return {
    name,
    column,
    node,
    found,
    value: () => (control.value === "" ? null : labels ? control.value : Number(control.value)),
    put(value) {
      control.value = value ?? "";
    },
  };
}
