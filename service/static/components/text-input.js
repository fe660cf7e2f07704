// A text box for vectors, one per line, if the model has no graphical editor.

import { h } from "../lib/dom.js";
import { button } from "./controls.js";
import { rowsOf } from "../lib/encode.js";

/**
 * `show()` does nothing: the typed text is read once, and stays.
 * @param {object} model an entry of GET /models: its shape is [D]
 * @param {(data: number[][]) => void} onData
 * @param {() => void} onOther called if the text is not data of the model
 */
export function lines(model, onData, onOther) {
  const text = h("textarea", { rows: 4, label: ["lines.label", { n: model.shape[0] }], spellcheck: "false" });
  const read = () => {
    const data = rowsOf(text.value, model);
    if (data) onData(data);
    else onOther();
  };
  const node = h("div", { class: "easel" }, text, h("div", { class: "row" }, button("lines.add", read)), h("small", { say: ["lines.how", { n: model.shape[0] }] }));
  return { node, show() {} };
}
