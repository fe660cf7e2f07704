// Editors of an example, by kind of model: a drawing, bits, a point in the plane, or typed numbers;
// with held-out data to start from.
//
// An editor has `node`, `show(x)` for the current example (null: none), `mark(data)` if it shows all
// examples, and, if it can map the density, `map()` and `mapped()` (whether a map exists or is coming).

import { chart } from "./point-canvas.js";
import { h } from "../lib/dom.js";
import { openDesk } from "./request-panel.js";
import { lines } from "./text-input.js";
import { button, reveal } from "./controls.js";
import { isPicture } from "../lib/encode.js";
import { Problem } from "../lib/api.js";
import { tell } from "../lib/i18n.js";
import { sketch } from "./draw-canvas.js";
import { thumb } from "./thumbnail.js";
import { toggles } from "./bit-toggles.js";

const plain = (value) => Number(value.toPrecision(6)); // float32 has no more digits, and links get shorter
const [COARSE, FINE] = [24, 40]; // cells of a density map along each side; the budget decides
const BUDGET = 80_000; // network evaluations of a map, about
const LAST = 8; // evaluations of the last step; the whole chain takes T + 7

/**
 * The editor of a model.
 * @param {object} model an entry of GET /models
 * @param {object} facts GET /models/NAME, with `examples`
 * @param {object} held the tray for the data
 * @param {object} context the view's context
 * @param {(problem: Problem) => void} onProblem
 * @param {() => void} onMap called when the density's map is requested
 */
export function editorOf(model, facts, held, context, onProblem, onMap) {
  const plane = model.kind === "vector" && model.shape.length === 1 && model.shape[0] === 2;
  if (plane) return atlas(model, facts, held, context, onMap);
  const refuse = () => onProblem(new Problem({ type: "urn:noneq:page:no-rows" }));
  const own = isPicture(model) ? sketch(model, held.put) : model.kind === "bits" ? toggles(model, held.put) : lines(model, held.add, refuse);
  return { ...own, node: h("div", { class: "bench" }, own.node, begin(model, facts.examples, held)) };
}

/** A button for each held-out example. */
function begin(model, examples, held) {
  if (!examples.length) return h("p", { class: "told", say: "examples.none" });
  const picks = examples.map((x, i) => h("button", { type: "button", class: "tile", label: ["examples.one", { n: i + 1 }], on: { click: () => held.add([x]) } }, thumb(x, model)));
  return h("section", { class: "examples" }, h("h2", { say: "examples.title" }), h("div", { class: "tiles" }, ...picks));
}

/** The plane, with a map of the density on request. */
function atlas(model, { artefact, examples }, held, context, onMap) {
  const own = chart(artefact.space, examples, (point) => held.add([point]));
  const desk = openDesk(context.announce, map);

  /** Uses every step of the chain, because a shorter chain's bound is loose where the data are. */
  async function map() {
    if (mapped()) return;
    const side = Math.min(FINE, Math.max(COARSE, Math.floor(Math.sqrt(BUDGET / (model.steps + LAST)))));
    const body = { model: model.name, data: own.cells(side), seed: 1 };
    const answer = await desk.ask("/loglik", body);
    if (!answer) return;
    const span = own.lay(answer.results.map(({ bound }) => bound));
    how.hidden = span === null;
    if (span !== null) tell(how, ["chart.map.how", { n: Number(span.toPrecision(2)) }]);
    reveal(own.node);
  }

  const mapped = () => desk.busy() || own.mapped();
  const next = button("examples.next", () => held.add([examples[at++ % examples.length].map(plain)]));
  let at = 0;
  const how = h("small", { hidden: true });
  const row = h("div", { class: "row" }, button("chart.map", () => (map(), onMap())), examples.length ? next : null);
  return { node: h("div", { class: "bench" }, own.node, row, how, desk.node), show() {}, mark: own.show, map, mapped };
}
