// The Table tab: edit a row of a table, empty a cell, and see what may stand there, how typical the row
// is, and because of which column.

import { cellEditor } from "../components/row-editor.js";
import { verdictOf, whatMayStand, whyRare } from "../components/row-result.js";
import { openDesk } from "../components/request-panel.js";
import { h } from "../lib/dom.js";
import { button, follower, notice } from "../components/controls.js";
import { curl, python, snippets } from "../components/snippets.js";
import { get, Problem } from "../lib/api.js";

const SHOWN = 6; // held-out rows to start from
const DRAWS = 200;
const TERMS = 100;
const QUANTILES = [0.05, 0.5, 0.95];
const KEPT = 24; // answers kept for going back in the history

export const view = { id: "table", kinds: ["table"], mount };

const draw = () => String(crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000);
const written = (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : value);
const isGap = (value) => value === null || value === undefined || value === "";

function mount(root, context) {
  const answers = new Map(); // request as text -> answer
  let model = null; // the rows' model
  let editors = []; // of the columns
  let asked = null; // the row and seed whose answer is shown or pending, as text
  let moves = 0; // counts changes of the request, so that slow work can check whether it is still wanted
  let follow = () => {}; // scrolls to the result if a person requested it

  const trouble = notice();
  const held = h("div", { class: "held" });
  const lines = h("tbody");
  const start = h("button", { class: "primary", form: "row", say: "table.run" });
  const sheet = h("table", { class: "row-sheet" },
    h("thead", {}, h("tr", {}, ...["table.column", "table.value", "table.found"].map((text) => h("th", { scope: "col", say: text })))), lines);
  const form = h("form", { id: "row", on: { submit: run } }, sheet);
  const desk = openDesk(context.announce, () => repeat(read()));
  const drawing = openDesk(context.announce, () => drawOne());
  const stale = h("p", { class: "told", say: "table.stale", hidden: true });
  const verdict = h("div", { class: "row-verdict" });
  const code = snippets();
  const tools = h("div", { class: "row" }, start, button("table.draw", () => drawOne()), button("table.clear", () => put({})));
  const found = h("div", { class: "wide" }, tools, desk.node, drawing.node, trouble.node, stale, verdict, form, code.node);

  root.append(h("div", { class: "wide" }, h("p", { class: "lead", say: "table.lead" }), held), found);

  // ------------------------------------------------------------------------------------- the row

  const row = () => Object.fromEntries(editors.map(({ name, value }) => [name, value()]));
  const given = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => !isGap(value)));

  function put(values) {
    for (const editor of editors) editor.put(values[editor.name] ?? null);
    settle();
  }

  function settle() {
    start.disabled = !Object.keys(given(row())).length;
    const old = asked !== null && asked !== JSON.stringify(row());
    stale.hidden = !old;
    for (const part of [verdict, ...editors.map(({ found }) => found)]) part.classList.toggle("stale", old);
  }

  function clear() {
    desk.cancel();
    asked = null;
    verdict.replaceChildren();
    for (const editor of editors) editor.found.replaceChildren();
    code.hide();
    settle();
  }

  // ------------------------------------------------------------------------------------ the link

  async function show(state) {
    const turn = ++moves;
    const wanted = context.model();
    trouble.hide();
    follow = () => {};
    try {
      if (wanted !== model) await stand(wanted, () => turn === moves);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      return turn === moves && trouble.show(error, () => show(state));
    }
    if (turn !== moves || state.row === undefined) return;
    const values = parsed(state.row);
    if (!values) return trouble.show(new Problem({ type: "urn:noneq:page:no-data" }));
    put(values);
    if (state.seed !== undefined) repeat({ values: row(), seed: Number(state.seed) });
  }

  function parsed(text) {
    try {
      const values = JSON.parse(text);
      return values && typeof values === "object" && !Array.isArray(values) ? values : null;
    } catch {
      return null; // cut off or mistyped
    }
  }

  /** Set up a model, with its first held-out row. */
  async function stand(wanted, still) {
    const { data } = await get(`/models/${encodeURIComponent(wanted.name)}/examples?count=${SHOWN}`);
    if (!still()) return;
    model = wanted;
    editors = model.table.map((column) => cellEditor(column, settle));
    lines.replaceChildren(...editors.map(({ node }) => node));
    held.replaceChildren(...(data.length ? [heldOut(data)] : []));
    clear();
    put(data[0] ?? {});
  }

  /** The held-out rows, each with a button that starts from it. */
  function heldOut(data) {
    const names = model.columns.map((name) => h("th", { scope: "col" }, name));
    const body = data.map((values, i) =>
      h("tr", {}, h("td", {}, button("table.take", () => put(values), { label: ["table.take.row", { n: i + 1 }] })), ...model.columns.map((name) => h("td", { class: isGap(values[name]) ? "gap" : null }, isGap(values[name]) ? "–" : written(values[name])))));
    return h("div", { class: "scroll", tabindex: 0, role: "region", label: "table.held" },
      h("table", {}, h("caption", { say: "table.held" }), h("thead", {}, h("tr", {}, h("td"), ...names)), h("tbody", {}, ...body)));
  }

  /** Draw a row of the model. */
  async function drawOne() {
    const turn = ++moves;
    const answer = await drawing.ask("/sample", { model: model.name, num_samples: 1, seed: Number(draw()) });
    if (answer && turn === moves) put(Object.fromEntries(Object.entries(answer.samples[0]).map(([name, value]) => [name, written(value)])));
  }

  // --------------------------------------------------------------------------------- the answers

  const read = () => ({ values: row(), seed: Number(draw()) });

  function run(event) {
    event.preventDefault();
    const request = read();
    context.visit({ row: JSON.stringify(given(request.values)), seed: String(request.seed) });
    follow = follower(found);
    repeat(request);
  }

  const fill = (values, seed) => ({
    model: model.name, observed: [given(values)], num_samples: DRAWS, quantiles: QUANTILES,
    method: { name: "auto", particles: DRAWS, systems: "joint" }, seed,
  });
  const rate = (values, seed) => ({ model: model.name, data: [given(values)], terms: Math.min(model.steps, TERMS), seed });

  /** Show what may stand in the row's gaps, and how typical it is, from the cache or new answers. */
  async function repeat({ values, seed }) {
    const [turn, of] = [++moves, model];
    clear();
    asked = JSON.stringify(values);
    const bodies = { fill: fill(values, seed), rate: rate(values, seed) };
    const gaps = editors.filter(({ name }) => isGap(values[name]));
    setTimeout(follow); // once the bar is shown
    const completed = gaps.length ? await find("/inpaint", bodies.fill) : null;
    if (turn !== moves || (gaps.length && !completed)) return;
    for (const { name, column, found: place } of gaps) place.replaceChildren(...whatMayStand(column, name, completed.results[0]));
    const scored = await find("/loglik", bodies.rate);
    if (turn !== moves || !scored) return;
    const { columns } = scored.results[0];
    for (const { name, found: place } of editors.filter((editor) => !gaps.includes(editor))) {
      place.replaceChildren(...whyRare(columns.find((part) => part.name === name), columns));
    }
    verdict.replaceChildren(...verdictOf(scored, completed));
    settle();
    const calls = [...(gaps.length ? [["/inpaint", bodies.fill]] : []), ["/loglik", bodies.rate]];
    const rows = [given(values)];
    const scripts = [...(gaps.length ? [python("impute", [rows], { draws: DRAWS, model: of.name, seed }, "gaps()")] : []), python("score", [rows], { model: of.name, terms: bodies.rate.terms, seed }, "lines()")];
    code.show(calls.map(([path, body]) => curl(path, body)).join("\n\n"), scripts.join("\n\n"));
  }

  async function find(path, body) {
    const mine = JSON.stringify([path, body]);
    if (!answers.has(mine)) {
      const answer = await desk.ask(path, body);
      if (!answer) return null;
      answers.set(mine, answer);
      if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    }
    return answers.get(mine);
  }

  return { show, hide() {} };
}
