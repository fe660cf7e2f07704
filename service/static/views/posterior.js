// The Repair tab: hide part of an example, or add noise, and draw completions from p(x_0) r(x_0) with one
// method or several, side by side.

import { cells } from "../components/cell-inputs.js";
import { column, isPlane } from "../components/posterior-result.js";
import { h } from "../lib/dom.js";
import { openDesk } from "../components/request-panel.js";
import { eraser, paintSeen } from "../components/mask-canvas.js";
import { intake } from "../components/file-input.js";
import { fieldsOf, isBlank, isWhole, observe, veil } from "../lib/observation.js";
import { button, choice, field, fill, follower, notice, numberInput, offer, read } from "../components/controls.js";
import { isPicture, pack, unpack } from "../lib/encode.js";
import { get, Problem } from "../lib/api.js";
import { sketch } from "../components/draw-canvas.js";
import { curl, python, snippets } from "../components/snippets.js";
import { thumb } from "../components/thumbnail.js";
import { number } from "../lib/i18n.js";

const KEPT = 24; // answers kept for going back in the history
const PREVIEWS = 64; // rows, the service's limit
const METHODS = ["auto", "learned", "twisted", "product", "repaint"];
const SYSTEMS = ["independent", "weighted", "joint"];
const JUMPS = { name: "repaint", jump: 10, repeats: 4 }; // RePaint's ten repeats would cost ten chains
const PRIOR = 300; // prior points shown behind the posterior's

export const view = { id: "repair", kinds: ["image", "vector", "bits"], mount };

/** The default request of a model: seconds on a CPU. */
function usual({ kind, shape, steps: T, network }) {
  const pictures = shape.length === 3;
  const points = kind === "bits" ? { num_samples: 24, particles: 64 } : { num_samples: 200, particles: 200 };
  const count = pictures ? { num_samples: 4, particles: 8, systems: "independent" } : { ...points, systems: "joint" };
  return { methods: "auto", block: "1", noise: kind === "vector" ? 0.1 : 0, label: "", steps: network === "rbf" ? T : Math.min(T, 40), ...count };
}

const draw = () => String(crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000);

/** The space of an example's mask, for links: [1, H, W] for pictures, [D] for lists. */
const maskOf = ({ shape }) => ({ kind: "bits", shape: shape.length === 3 ? [1, ...shape.slice(1)] : shape });

function mount(root, context) {
  const answers = new Map(); // request as text -> { answer, seconds }
  const priors = new Map(); // model's name -> points
  let model = null; // the example's model
  let bench = null; // the example's editor
  let [x, known] = [null, null]; // the example, and its mask of observed elements
  let asked = null; // the link's fields whose answer is shown or pending, as text
  let follow = () => {}; // scrolls to the result if a person requested it
  let moves = 0; // counts changes of the request, so that slow work can check whether it is still wanted

  const trouble = notice();
  const workbench = h("div", { class: "bench" });
  const picks = h("div", { class: "choices" });
  const held = h("section", { class: "examples" }, h("h2", { say: "repair.from" }), picks);
  const files = intake(root, () => model, (data) => data.length && put(data[0]), trouble.show);
  const drawing = openDesk(context.announce, () => drawOne()); // of a sample to begin with, beside its button
  const sources = h("div", { class: "row slim" }, button("repair.sample", () => drawOne()), files);
  const own = h("details", { class: "options" }, h("summary", { say: "repair.draw" }));
  const noiseText = h("output", { class: "caption" });
  const noise = h("input", { type: "range", name: "noise", min: 0 });
  const methods = METHODS.map((name) => h("input", { type: "checkbox", value: name, class: "method" }));
  const form = h("form", { class: "form", id: "repair", on: { submit: run, change: settle, input: settle } },
    field("repair.block", choice("block", [["1", "repair.block.none"]])),
    h("label", { class: "field" }, h("span", { class: "name" }, h("span", { say: "repair.noise" }), " ", noiseText), noise, h("small", { say: "repair.noise.why" })),
    field("repair.label", choice("label", [["", "repair.label.any"]]), "repair.label.why"),
    h("fieldset", { class: "methods" }, h("legend", { class: "name", say: "repair.methods" }),
      ...methods.map((box) => h("label", { class: "check" }, box, h("span", { say: `method.${box.value}` })))),
    h("details", { class: "options" }, h("summary", { say: "repair.options" }),
      field("repair.number", numberInput("num_samples", { min: 1, max: 1024 })),
      field("repair.particles", numberInput("particles", { min: 1, max: 256 }), "repair.particles.why"),
      field("repair.systems", choice("systems", SYSTEMS.map((name) => [name, `systems.${name}`])), "repair.systems.why"),
      field("repair.steps", numberInput("steps", { min: 1 })),
      field("repair.seed", numberInput("seed", { min: 0, max: Number.MAX_SAFE_INTEGER })),
      h("label", { class: "check" }, h("input", { type: "checkbox", name: "keep" }), h("span", { say: "repair.keep" })),
    ),
  );
  const start = h("button", { class: "primary", form: "repair", disabled: true, say: "repair.run" }); // beside what it completes
  form.addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true); // it has to be seen
  const desk = openDesk(context.announce, again);
  const stale = h("p", { class: "told", say: "repair.stale", hidden: true });
  const stage = h("div", { class: "stage" });
  const code = snippets();
  const results = h("div", { class: "wide" }, desk.node, stale, stage, code.node);

  const origins = h("div", { class: "side" }, h("p", { class: "lead", say: "repair.lead" }), held, sources, drawing.node, own);

  root.classList.add("split", "bench-above");
  root.append(
    origins,
    h("div", { class: "wide" }, workbench, h("div", { class: "row" }, start), trouble.node),
    h("div", { class: "side" }, form),
    results,
  );

  /** Enable the controls only for the chosen model, once its example is loaded. */
  function unlock() {
    const ready = model === context.model();
    for (const part of [origins, form, start]) part.inert = !ready;
    workbench.inert = !ready || !x;
  }

  // ---------------------------------------------------------------------------------------- the form

  const chosen = () => methods.filter((box) => box.checked && !box.disabled).map(({ value }) => value);
  const look = () => ({ known, block: Number(form.elements.block.value || 1), noise: Number(form.elements.noise.value) });

  /** Show only the fields that apply, and the example as they make it observed. */
  function settle({ target } = {}) {
    const { block, label, noise: slider, steps, systems, num_samples: count, particles } = form.elements;
    if (target === block && block.value !== "1" && slider.value === "0") slider.value = 8; // averages are rarely exact
    for (const box of methods) {
      const plain = ["learned", "product", "repaint"].includes(box.value); // they take no factors
      const told = box.value !== "learned" || (model?.conditional && block.value === "1"); // of elements only
      box.disabled = (plain && Boolean(label.value)) || !told;
      box.parentNode.hidden = box.value === "learned" && !model?.conditional;
    }
    if (!chosen().length) methods[0].checked = true;
    const weighed = chosen().some((name) => ["auto", "twisted"].includes(name));
    offer(particles, weighed);
    offer(systems, weighed);
    particles.min = weighed && systems.value === "joint" ? count.value : 1;
    if (model) steps.max = model.steps;
    noiseText.textContent = number(Number(slider.value));
    unlock();
    if (x) bench.show(isPicture(model) ? observe(model, x, look()) : x, known, look().block === 1);
    start.disabled = !x || isBlank(look()) || (isWhole(look()) && !label.value);
    age();
  }

  /** Whether the result shown belongs to the current form and example. */
  async function age() {
    const now = x && asked !== null ? JSON.stringify(await fieldsNow()) : asked;
    const old = asked !== null && now !== asked;
    stale.hidden = !old;
    stage.classList.toggle("stale", old);
  }

  /** Replace the example, keeping the mask. */
  function put(example, mask = known) {
    x = example;
    known = mask ?? veil(isPicture(model) ? "bottom" : "right", model);
    settle();
  }

  // ---------------------------------------------------------------------------------------- the link

  async function show(state) {
    const turn = ++moves;
    const wanted = context.model();
    follow = () => {};
    trouble.hide();
    if (wanted !== model) leave();
    unlock();
    try {
      if (wanted !== model) await stand(wanted, () => turn === moves);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      return turn === moves && trouble.show(error, () => show(state));
    }
    const [data, masks] = await Promise.all([state.x ? unpack(state.x, wanted) : null, state.seen ? unpack(state.seen, maskOf(wanted)) : null]);
    if (turn !== moves) return;
    const fields = { seed: draw(), ...usual(model), ...state };
    fill(form, fields);
    for (const box of methods) box.checked = fields.methods.split(",").includes(box.value);
    if (state.x && !data) trouble.show(new Problem({ type: "urn:noneq:page:no-data" }));
    if (data) put(data[0], masks && (isPicture(model) ? masks[0][0] : masks[0]));
    else if (!x) await drawOne();
    settle();
    if (state.seed === undefined || !data) return clear();
    if (asked !== JSON.stringify(await fieldsNow())) repeat();
  }

  /** Clear everything of the last model while the next one loads. */
  function leave() {
    if (!model) return;
    clear();
    workbench.replaceChildren();
    picks.replaceChildren();
    [model, bench, x, known] = [null, null, null, null];
    unlock();
  }

  /** Set up a model, with its first held-out example. */
  async function stand(wanted, still) {
    const { data } = await get(`/models/${encodeURIComponent(wanted.name)}/examples?count=${isPicture(wanted) ? 15 : 6}`);
    if (!still()) return;
    model = wanted;
    [x, known] = [null, null];
    clear();
    bench = isPicture(model) ? eraser(model, (mask) => put(x, mask)) : cells(model, put);
    workbench.replaceChildren(bench.node);
    files.hidden = false;
    picks.replaceChildren(...data.map((example, i) => h("button", { type: "button", class: "example", label: ["repair.example", { n: i + 1 }], on: { click: () => put(example) } }, thumb(example, model))));
    own.hidden = !isPicture(model);
    own.replaceChildren(own.firstChild, ...(own.hidden ? [] : [sketch(model, (drawn) => drawn && put(drawn)).node]));
    suit();
    if (data.length) put(data[0]);
    else settle();
  }

  /** Offer the choices that a model has. */
  function suit() {
    const { block, label } = form.elements;
    const [height, width] = model.shape.slice(-2);
    const sides = isPicture(model) && model.kind === "image" ? [2, 4, 7, 8].filter((side) => !(height % side || width % side)) : [];
    block.replaceChildren(block.options[0], ...sides.map((side) => h("option", { value: side, say: ["repair.block.size", { n: side }] })));
    const labels = model.classifiers[0]?.labels ?? [];
    label.replaceChildren(label.options[0], ...labels.map((name) => h("option", { value: name }, name)));
    offer(block, sides.length > 0);
    offer(label, labels.length > 0);
    const scale = { image: { type: "range", max: 128, step: 1 }, bits: { type: "range", max: 0.45, step: 0.01 }, vector: { type: "number", max: "", step: "any" } };
    Object.assign(noise, scale[model.kind]);
    noiseText.hidden = model.kind === "vector";
  }

  /** Draw a sample of the model as the example. */
  async function drawOne() {
    const turn = ++moves;
    const { steps } = usual(model);
    const answer = await drawing.ask("/sample", { model: model.name, num_samples: 1, seed: Number(draw()), sampler: { name: "ancestral", steps } });
    if (answer && turn === moves) put(model.kind === "image" ? rounded(answer.samples[0]) : answer.samples[0]);
  }

  const rounded = (image) => image.map((channel) => channel.map((row) => row.map((value) => Math.min(255, Math.max(0, Math.round(value))))));

  async function fieldsNow() {
    const { keep, ...fields } = read(form);
    const seen = known.flat().includes(0) ? await pack([isPicture(model) ? [known] : known], maskOf(model)) : "";
    return { ...fields, methods: chosen().join(","), x: await pack([x], model), seen };
  }

  async function run(event) {
    event.preventDefault();
    if (!form.elements.keep.checked) form.elements.seed.value = draw();
    const turn = ++moves;
    const fields = await fieldsNow();
    if (turn !== moves) return;
    context.visit(fields);
    follow = follower(results);
    repeat();
  }

  /** Repeat the failed requests, keeping the answers that came. */
  function again() {
    follow = follower(results);
    repeat();
  }

  // ------------------------------------------------------------------------------------- the answers

  function requestOf(method, y, seen) {
    const { num_samples, particles, systems, steps, seed, label } = read(form);
    const asked = { twisted: { particles: Number(particles), systems } };
    return {
      model: model.name,
      ...fieldsOf(model, y, seen),
      ...(label && { label }),
      ...(model.classifiers.length && { label_probabilities: true }),
      num_samples: Number(num_samples),
      method: { repaint: JUMPS, product: method, learned: method }[method] ?? { name: method, ...asked.twisted },
      sampler: { name: "ancestral", steps: Number(steps) },
      seed: Number(seed),
    };
  }

  /** Show the answers to the form's request, method by method, from the cache or new ones. */
  async function repeat() {
    const turn = ++moves;
    asked = JSON.stringify(await fieldsNow());
    age();
    const [of, seen] = [model, look()];
    const y = observe(of, x, seen);
    const names = chosen();
    const bodies = names.map((name) => requestOf(name, y, seen));
    desk.cancel();
    code.hide();
    stage.replaceChildren();
    const prior = isPlane(of) ? await priorOf(of) : null;
    if (turn !== moves || (isPlane(of) && !prior)) return;
    const columns = names.map((name) => column(name, of, { y, look: seen, prior }));
    stage.replaceChildren(...(isPicture(of) ? [pair(x, y, seen, of)] : []), h("div", { class: "columns" }, ...columns.map(({ node }) => node)));
    columns.forEach((each, i) => each.wait(bodies[i].num_samples));
    setTimeout(follow); // once the bar is shown
    for (const [i, body] of bodies.entries()) {
      const found = await find(body, columns[i]);
      if (turn !== moves) return;
      if (!found) return columns.slice(i).forEach((each) => each.stop());
      columns[i].show(found, body);
    }
    code.show(bodies.map((body) => curl("/posterior", body)).join("\n\n"), bodies.map((body) => script(body)).join("\n\n"));
  }

  async function find(body, shown) {
    const mine = JSON.stringify(body);
    if (answers.has(mine)) return answers.get(mine);
    const count = Math.min(PREVIEWS, body.num_samples);
    const began = performance.now();
    const answer = await desk.ask("/posterior", body, { previews: count, onPreview: ({ estimates }) => shown.preview(estimates, body.num_samples) });
    if (!answer) return null;
    const found = { answer, seconds: (performance.now() - began) / 1000 };
    answers.set(mine, found);
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    return found;
  }

  /** Points of the prior, requested once. */
  async function priorOf({ name, steps }) {
    if (!priors.has(name)) {
      const answer = await desk.ask("/sample", { model: name, num_samples: PRIOR, seed: 1, sampler: { name: "ancestral", steps: Math.min(steps, 50) } });
      if (answer) priors.set(name, answer.samples);
    }
    return priors.get(name) ?? null;
  }

  /** Show the original and its observation. */
  function pair(example, y, seen, of) {
    const [whole, part] = ["repair.truth", "repair.seen"].map((text) => h("canvas", { class: "pixels", role: "img", label: text }));
    paintSeen(whole, example, null, of);
    paintSeen(part, y, seen.block === 1 ? seen.known : null, of);
    const figures = [["repair.truth", whole], ["repair.seen", part]];
    return h("div", { class: "summary pair" }, ...figures.map(([text, canvas]) => h("figure", {}, canvas, h("figcaption", { "aria-hidden": "true", say: text }))));
  }

  function script({ observed, known: mask, sampler, ...named }) {
    const given = mask ? [observed, mask] : [observed];
    return python("posterior", given, { ...named, steps: sampler.steps }, `save("repaired.${isPicture(model) ? "png" : "csv"}")`);
  }

  function clear() {
    desk.cancel();
    asked = null;
    stage.replaceChildren(h("p", { class: "empty", say: "repair.empty" }));
    stage.classList.remove("stale");
    stale.hidden = true;
    code.hide();
  }

  return { show, hide() {} };
}
