// Where a datum is made, by the kind of model: a drawing, bits to switch, a point of the plane, or
// numbers typed; and held-out data to begin with.
//
// An editor has `node`, `show(x)` for the datum at hand (null: none), and where it shows all of them
// `mark(data)`; where it can map the density, `map()`, and `mapped()`: whether it has or is about to.

import { chart } from "./chart.js";
import { h } from "./elements.js";
import { openDesk } from "./errand.js";
import { lines } from "./lines.js";
import { button } from "./panels.js";
import { isPicture } from "./parcel.js";
import { Problem } from "./service.js";
import { sketch } from "./sketch.js";
import { thumb } from "./thumbs.js";
import { toggles } from "./toggles.js";

const plain = (value) => Number(value.toPrecision(6)); // held-out data are float32, longer in a link than they are exact
const MAP = 24; // cells of a density's map, each way
const CHAIN = 5; // steps of the chain by which it is scored: a rough bound, at 12 evaluations a cell

/**
 * The editor of a model.
 * @param {object} model an entry of GET /models
 * @param {object} facts GET /models/NAME, with `examples`
 * @param {object} held the tray that takes what is made
 * @param {object} context of the view
 * @param {(problem: Problem) => void} onProblem
 * @param {() => void} onMap a person asked for the density's map
 */
export function editorOf(model, facts, held, context, onProblem, onMap) {
  const plane = model.kind === "vector" && model.shape.length === 1 && model.shape[0] === 2;
  if (plane) return atlas(model, facts, held, context, onMap);
  const refuse = () => onProblem(new Problem({ type: "urn:noneq:page:no-rows" }));
  const own = isPicture(model) ? sketch(model, held.put) : model.kind === "bits" ? toggles(model, held.put) : lines(model, held.add, refuse);
  return { ...own, node: h("div", { class: "bench" }, own.node, begin(model, facts.examples, held)) };
}

/** Held-out data, each a button. */
function begin(model, examples, held) {
  if (!examples.length) return h("p", { class: "told", say: "examples.none" });
  const picks = examples.map((x, i) => h("button", { type: "button", class: "tile", label: ["examples.one", { n: i + 1 }], on: { click: () => held.add([x]) } }, thumb(x, model)));
  return h("section", { class: "examples" }, h("h2", { say: "examples.title" }), h("div", { class: "tiles" }, ...picks));
}

/** The plane, with a map of the density for the asking. */
function atlas(model, { artefact, examples }, held, context, onMap) {
  const own = chart(artefact.space, examples, (point) => held.add([point]));
  const desk = openDesk(context.announce);

  async function map() {
    if (mapped()) return;
    const body = { model: model.name, data: own.cells(MAP), steps: Math.min(model.steps, CHAIN), seed: 1 };
    const answer = await desk.ask("/loglik", body);
    if (!answer) return;
    own.lay(answer.results.map(({ bound }) => bound));
    how.hidden = false;
  }

  const mapped = () => desk.busy() || own.mapped();
  const next = button("examples.next", () => held.add([examples[at++ % examples.length].map(plain)]));
  let at = 0;
  const how = h("small", { say: "chart.map.how", hidden: true });
  const row = h("div", { class: "row" }, button("chart.map", () => (map(), onMap())), examples.length ? next : null);
  return { node: h("div", { class: "bench" }, own.node, row, how, desk.node), show() {}, mark: own.show, map, mapped };
}
