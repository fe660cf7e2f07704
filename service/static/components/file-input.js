// Reads data from files that are chosen, dropped or pasted. Pictures are scaled to the model's size;
// vectors and bits are text with one example per line.

import { h } from "../lib/dom.js";
import { fit } from "../lib/image-fit.js";
import { button } from "./controls.js";
import { isPicture, rowsOf } from "../lib/encode.js";
import { Problem } from "../lib/api.js";

/**
 * A button that opens a file chooser, hidden until its view has a model. Files dropped on `place`, or
 * pasted while it is shown, are read too.
 * @param {HTMLElement} place
 * @param {() => object} modelOf the model that the data are for
 * @param {(data: Array) => void} onData
 * @param {(problem: Problem) => void} onProblem
 */
export function intake(place, modelOf, onData, onProblem) {
  const chooser = h("input", { type: "file", multiple: true, hidden: true, on: { change: () => (accept(chooser.files), (chooser.value = "")) } });
  const node = h("span", { hidden: true }, chooser, button("intake.choose", () => {
    chooser.accept = isPicture(modelOf()) ? "image/*" : ".csv,.txt,text/*";
    chooser.click();
  }));

  async function accept(files, text = "") {
    const model = modelOf();
    if (!model) return;
    const parts = [...files].map((file) => (isPicture(model) ? pictured(file, model) : file.text().then((found) => rowsOf(found, model))));
    if (!files.length) parts.push(Promise.resolve(isPicture(model) ? null : rowsOf(text, model)));
    const data = await Promise.all(parts);
    if (modelOf() !== model) return; // another model was chosen meanwhile
    if (data.includes(null)) onProblem(new Problem({ type: `urn:noneq:page:${isPicture(model) ? "no-picture" : "no-rows"}`, expected: `shape [${model.shape.join(", ")}]` }));
    else onData(data.flat());
  }

  const over = (event) => (event.preventDefault(), place.classList.toggle("over", event.type === "dragover"));
  place.addEventListener("dragover", over);
  place.addEventListener("dragleave", over);
  place.addEventListener("drop", (event) => {
    over(event);
    accept(event.dataTransfer.files, event.dataTransfer.getData("text/plain"));
  });
  document.addEventListener("paste", (event) => {
    const typed = event.target.closest?.("input, textarea, select");
    if (typed || !place.checkVisibility()) return;
    accept(event.clipboardData.files, event.clipboardData.getData("text/plain"));
  });
  return node;
}

/** One picture as a list of one example; null if it is not a picture. */
async function pictured(file, model) {
  const picture = await createImageBitmap(file).catch(() => null);
  return picture && [fit(picture, model)];
}
