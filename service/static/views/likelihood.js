// The Likelihood tab: draw, choose or drop data; see their bounds on log p(x_0), how those compare with
// held-out data, and the contribution of each step.

import { editorOf } from "../components/data-editor.js";
import { openDesk } from "../components/request-panel.js";
import { h } from "../lib/dom.js";
import { intake } from "../components/file-input.js";
import * as link from "../lib/url.js";
import { button, choice, field, fill, follower, notice, numberInput, offer, read } from "../components/controls.js";
import { pack, unpack } from "../lib/encode.js";
import { stacked } from "../lib/plot.js";
import { bodyOf, told } from "../components/loglik-request.js";
import { saver } from "../components/download.js";
import { get, Problem } from "../lib/api.js";
import { snippets } from "../components/snippets.js";
import { kernel, evaluationOf, histogram } from "../components/loglik-plots.js";
import { tray, twistButtons } from "../components/data-tray.js";
import { comparison, legend, scores, verdicts } from "../components/loglik-result.js";

const KEPT = 8; // answers kept for going back in the history
const LEFT_OUT = "-"; // stands in a link for data that would not fit
const WAYS = ["terms", "all", "target_error", "trajectories"];
const STRATA = ["even", "importance"];
const CONVENTIONS = [["", "convention.own"], ["paper", "convention.paper"]];

export const view = { id: "likelihood", kinds: ["image", "vector", "bits"], mount };

/** The default request of a model: all terms, or a hundred for pictures. */
const usual = ({ shape, steps: T }) => ({
  by: shape.length === 3 && T > 100 ? "terms" : "all", terms: Math.min(100, T), target_error: 10, trajectories: 16, strata: "even", convention: "", seed: 7,
});

function mount(root, context) {
  const answers = new Map(); // request as text -> answer
  const facts = new Map(); // model's name -> its facts
  let model = null; // the editor's model
  let editor = null;
  let asked = null; // the request whose answer is shown or pending, as text
  let moved = 0; // counts the links shown, so that slow work can check whether it is still wanted
  let linked = null; // the current link, as text
  let asking = null; // the last request, and its data
  let follow = () => {}; // scrolls to the result if a person requested it

  const bench = h("div", { class: "bench" });
  const trouble = notice();
  const held = tray((x) => editor?.show(x), changed);
  const files = intake(root, () => model, (data) => (trouble.hide(), held.add(data)), trouble.show);
  const others = h("div", { class: "row" });
  const fresh = button("likelihood.new", () => held.leave());
  const none = button("likelihood.none", () => (held.fill([], model), changed()));
  const form = h("form", { class: "form", on: { submit: run, change: settle } },
    h("button", { class: "primary", say: "likelihood.run" }),
    h("details", { class: "options" }, h("summary", { say: "likelihood.options" }),
      field("likelihood.by", choice("by", WAYS.map((way) => [way, `likelihood.by.${way}`])), "likelihood.by.why"),
      field("likelihood.terms", numberInput("terms", { min: 4 })),
      field("likelihood.target_error", numberInput("target_error", { min: 0, step: "any" })),
      field("likelihood.trajectories", numberInput("trajectories", { min: 2 }), "likelihood.trajectories.why"),
      field("likelihood.strata", choice("strata", STRATA.map((kind) => [kind, `strata.${kind}`])), "likelihood.strata.why"),
      field("likelihood.convention", choice("convention", CONVENTIONS)),
      field("likelihood.seed", numberInput("seed", { min: 0, max: Number.MAX_SAFE_INTEGER })),
    ),
  );
  form.addEventListener("invalid", () => (form.querySelector("details").open = true), true); // so that the invalid field is visible
  const desk = openDesk(context.announce, () => asking && ask(...asking));
  const out = h("div", { class: "answer" });
  const stale = h("p", { class: "told", say: "likelihood.stale", hidden: true });
  const saved = saver();
  const code = snippets();
  const found = h("div", { class: "wide" }, desk.node, stale, out, saved.node, code.node);

  const tools = h("div", { class: "row" }, fresh, files, others, none);

  root.classList.add("split");
  root.append(
    h("div", { class: "side" }, h("p", { class: "lead", say: "likelihood.lead" }), bench),
    h("div", { class: "wide" }, tools, trouble.node, held.node, form, found),
  );

  /** Enable the controls only for the chosen model. */
  function unlock() {
    for (const part of [bench, tools, held.node, form]) part.inert = model !== context.model();
  }

  /** Show only the fields that apply. */
  function settle() {
    const { by, terms, target_error, trajectories, strata } = form.elements;
    offer(terms, by.value === "terms");
    offer(target_error, by.value === "target_error");
    offer(trajectories, by.value === "trajectories");
    offer(strata, by.value === "terms" || by.value === "target_error");
    if (model) terms.max = model.steps + 7; // the last step has eight draws
  }

  async function show(state) {
    if (JSON.stringify(state) === linked) return; // back from another tab: keep unfinished work
    linked = JSON.stringify(state);
    const turn = ++moved;
    const wanted = context.model();
    follow = () => {};
    trouble.hide();
    if (wanted !== model) leave();
    unlock();
    try {
      if (wanted !== model) await stand(wanted, () => turn === moved);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      linked = null;
      return turn === moved && trouble.show(error, () => show(state));
    }
    const data = state.data && state.data !== LEFT_OUT ? await unpack(state.data, wanted) : null;
    if (turn !== moved) return;
    fill(form, { ...usual(wanted), ...state });
    settle();
    if (data && JSON.stringify(data) !== JSON.stringify(held.data())) held.fill(data, wanted);
    changed();
    if (state.map) editor.map?.();
    if (state.seed === undefined) return;
    if (state.data === LEFT_OUT) out.replaceChildren(h("p", { class: "empty", say: "likelihood.left-out" }));
    if (state.data && !data && state.data !== LEFT_OUT) trouble.show(new Problem({ type: "urn:noneq:page:no-data" }));
    if (!data) return;
    repeat();
  }

  function hide() {}

  /** Clear everything of the last model while the next one loads. */
  function leave() {
    if (!model) return;
    clear();
    held.fill([], model);
    bench.replaceChildren();
    others.replaceChildren();
    [model, editor] = [null, null];
    changed();
  }

  /** Open a model's editor, empty. */
  async function stand(wanted, still) {
    if (!facts.has(wanted.name)) facts.set(wanted.name, await learn(wanted));
    if (!still()) return;
    model = wanted;
    unlock();
    clear();
    held.fill([], model);
    editor = editorOf(model, facts.get(model.name), held, context, trouble.show, mapAsked);
    bench.replaceChildren(editor.node);
    files.hidden = false;
    root.classList.toggle("roomy", Boolean(editor.mark));
    fresh.hidden = Boolean(editor.mark); // in such an editor a click adds an example
    others.replaceChildren(...twistButtons(model, (turn) => held.atHand() && held.add([turn(held.atHand())])));
    changed();
  }

  /** Get a model's facts (GET /models/NAME) and held-out data to start from. */
  async function learn({ name }) {
    const path = `/models/${encodeURIComponent(name)}`;
    const [found, { data }] = await Promise.all([get(path), get(`${path}/examples?count=16`)]);
    return { ...found, examples: data };
  }

  function changed() {
    const data = held.data();
    for (const control of [fresh, ...others.children]) control.disabled = held.atHand() === null;
    none.disabled = form.querySelector(".primary").disabled = !data.length;
    editor?.mark?.(data);
    const old = asked !== null && asked !== named();
    stale.hidden = !old || !out.hasChildNodes();
    out.classList.toggle("stale", old);
  }

  const request = () => bodyOf(model, held.data(), read(form));
  const named = () => JSON.stringify(request());

  async function run(event) {
    event.preventDefault();
    const [turn, fields, data] = [++moved, read(form), (await pack(held.data(), model)) ?? LEFT_OUT];
    if (turn !== moved) return;
    visit({ ...fields, data, ...(editor.mapped?.() && { map: "1" }) });
    follow = follower(found);
    repeat();
  }

  function visit(fields) {
    linked = JSON.stringify({ view: view.id, model: model.name, ...fields });
    context.visit(fields);
  }

  /** Record in the link that the density map was requested. */
  function mapAsked() {
    const { view: _, model: __, ...fields } = link.read();
    visit({ ...fields, map: "1" });
  }

  /** Show the answer to the current request, from the cache or a new one. */
  async function repeat() {
    const [body, data, of] = [request(), [...held.data()], model];
    const mine = JSON.stringify(body);
    if (asked === mine && (desk.busy() || out.hasChildNodes())) return;
    asked = mine;
    await ask(mine, body, data, of);
  }

  async function ask(mine, body, data, of) {
    asking = [mine, body, data, of];
    let answer = answers.get(mine);
    if (!answer) {
      setTimeout(follow); // once the bar is shown
      answer = await desk.ask("/loglik", body);
      if (!answer || asked !== mine) return;
      answers.set(mine, answer);
      if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    } else desk.cancel();
    present(answer, body, data, of);
  }

  async function present(answer, body, data, of) {
    const known = facts.get(of.name);
    const evaluation = evaluationOf(known, answer);
    const { results } = answer;
    const bounds = results.map(({ bound }) => bound);
    const dims = of.shape.reduce((a, b) => a * b);
    const ratio = comparison(results);
    const parts = [
      verdicts(data, of, results, evaluation),
      ratio && h("p", { say: ratio }),
      evaluation && part("standing.title", histogram(evaluation.quantiles, bounds, dims), ["standing.told", { n: evaluation.quantiles_count ?? evaluation.count, split: evaluation.split }]),
      part("kernel.title", kernel(results.map(({ per_step: terms }) => terms), of.steps), "kernel.told", legend(results)),
      h("p", { class: "told", say: ["likelihood.told", { cost: answer.network_evaluations, convention: answer.convention, seed: String(answer.seed) }] }),
    ];
    out.replaceChildren(...parts.filter(Boolean));
    saved.offer({ name: `${of.name}-likelihood-seed-${answer.seed}`, request: body, canvas: () => stacked(out), ...scores(results) });
    changed();
    follow();
    code.show(...(await told(of, data, body)));
  }

  const part = (title, plot, text, ...more) => h("section", { class: "part" }, h("h2", { say: title }), ...more, plot, h("small", { say: text }));

  function clear() {
    desk.cancel();
    asked = null;
    out.replaceChildren();
    stale.hidden = true;
    saved.hide();
    code.hide();
  }

  return { show, hide };
}
