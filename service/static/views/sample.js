// The Sample tab: draw from p(x_0), watch the chains run, and replay the trajectory.

import { openDesk } from "../components/request-panel.js";
import { h } from "../lib/dom.js";
import { choice, field, fill, follower, numberInput, offer, read, segments } from "../components/controls.js";
import { player } from "../components/frame-player.js";
import { saver, tableOf } from "../components/download.js";
import { sceneOf } from "../components/gallery.js";
import { curl, python, snippets } from "../components/snippets.js";
import { known, tell } from "../lib/i18n.js";

const PREVIEWS = 64; // rows, the service's limit
const FRAMES = 40; // most frames of a trajectory
const NUMBERS = 400_000; // most numbers in a trajectory: a few megabytes of text
const KEPT = 8; // answers kept for going back in the history

export const view = { id: "sample", kinds: ["image", "vector", "bits"], mount };

/** The default request of a model: seconds on a CPU. */
function usual({ kind, shape, steps: T, network }) {
  const pictures = shape.length === 3;
  const own = network === "rbf" ? T : Math.min(T, 50);
  return { num_samples: pictures ? 8 : kind === "bits" ? 24 : 400, sampler: "ancestral", steps: own, eta: 0 };
}

/** How many intermediate states to request: fewer if each is large; none if it would be only a few. */
function framesOf({ shape }, count, steps) {
  const numbers = 2 * count * shape.reduce((a, b) => a * b); // in a state and its estimate
  const frames = Math.min(FRAMES, steps, Math.floor(NUMBERS / numbers) - 1);
  return frames < 4 && frames < steps ? 0 : frames;
}

/** An option for a sampler, with its name from words/ if it has one. */
const optionOf = (value) => {
  const key = `sampler.${value}`;
  return known(key) ? h("option", { value, say: key }) : h("option", { value }, value);
};

const draw = () => String(crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000);

function mount(root, context) {
  const answers = new Map(); // link's fields as text -> answer
  let scene = null;
  let asked = null; // the fields whose answer is shown or pending, as text

  const form = h("form", { class: "form", on: { submit: run, change: settle } },
    field("sample.number", numberInput("num_samples", { min: 1, max: 4096 })),
    field("sample.sampler", choice("sampler", [])),
    field("sample.steps", numberInput("steps", { min: 1 }), ["sample.steps.why", { T: 1 }]),
    field("sample.eta", numberInput("eta", { min: 0, max: 1, step: "any" }), "sample.eta.why"),
    field("sample.seed", numberInput("seed", { min: 0, max: Number.MAX_SAFE_INTEGER })),
    h("label", { class: "check" }, h("input", { type: "checkbox", name: "keep" }), h("span", { say: "sample.keep" })),
    h("button", { class: "primary", say: "sample.run" }),
  );
  form.elements.seed.addEventListener("input", () => (form.elements.keep.checked = true)); // a typed seed is kept
  const desk = openDesk(context.announce, () => {
    fill(form, JSON.parse(asked)[1]);
    settle();
    follow = follower(results);
    repeat();
  });
  const empty = h("p", { class: "empty", say: "sample.empty" });
  const stage = h("div", { class: "stage" });
  const told = h("p", { class: "told" });
  const playback = player(turn, (index) => ["player.at", { t: trajectory.t[index] }]);
  const which = segments("sample.which", [["x", "sample.x"], ["x_0", "sample.x_0"]], playback.refresh);
  playback.node.append(which.node);
  const files = saver();
  const tools = h("div", { class: "row tools", hidden: true }, told, files.node);
  const partial = h("p", { class: "partial", say: "sample.partial", hidden: true });
  const code = snippets();
  let follow = () => {}; // scrolls to the result if a person requested it
  let trajectory = null; // the current answer's, whose last state is the samples

  const results = h("div", { class: "wide" }, desk.node, partial, stage, playback.node, tools, code.node);
  root.classList.add("split");
  root.append(
    h("div", { class: "side" }, h("p", { class: "lead", say: "sample.lead" }), form),
    results,
  );

  /** Show only the fields that apply. */
  function settle() {
    const model = context.model();
    const { sampler, steps, seed } = form.elements;
    steps.max = model.steps;
    tell(steps.closest(".field").querySelector("small"), ["sample.steps.why", { T: model.steps }]);
    seed.disabled = false;
    offer(form.elements.eta, sampler.value === "ddim");
  }

  function show(state) {
    const model = context.model();
    const fields = { ...usual(model), ...state };
    if (!model.samplers.includes(fields.sampler)) fields.sampler = "ancestral";
    form.elements.sampler.replaceChildren(...model.samplers.map(optionOf));
    fill(form, { seed: draw(), ...fields });
    settle();
    follow = () => {};
    if (state.seed === undefined) clear();
    else if (!desk.busy() || asked !== named()) repeat();
  }

  function hide() {
    playback.hide();
  }

  /** The request's fields, as in the link. */
  const fieldsNow = () => {
    const { keep, ...fields } = read(form);
    return fields;
  };
  const named = () => JSON.stringify([context.model().name, fieldsNow()]);

  function run(event) {
    event.preventDefault();
    if (!form.elements.keep.checked) form.elements.seed.value = draw();
    context.visit(fieldsNow());
    follow = follower(results);
    repeat();
  }

  /** Show the answer to the form's request, from the cache or a new one. */
  async function repeat() {
    asked = named();
    const [mine, model, body] = [asked, context.model(), request()];
    stand(model);
    let answer = answers.get(mine);
    if (!answer) {
      scene.show(Array(body.num_samples).fill(null));
      setTimeout(follow); // once the bar is shown
      let seen = false;
      const onPreview = ({ estimates }) => {
        if (asked === mine) scene.show(pad(estimates, body.num_samples));
        seen = true;
      };
      answer = await desk.ask("/sample", body, { previews: Math.min(PREVIEWS, body.num_samples), onPreview });
      if (asked !== mine) return;
      if (!answer) return seen ? (partial.hidden = false) : stage.replaceChildren(empty);
      remember(mine, answer);
    } else desk.cancel();
    present(answer, body);
  }

  const pad = (found, count) => [...found, ...Array(count - found.length).fill(null)];

  function request() {
    const { num_samples, sampler, steps, eta, seed } = fieldsNow();
    const plan = { name: sampler, steps: Number(steps), ...(eta !== undefined && { eta: Number(eta) }) };
    const model = context.model();
    const frames = framesOf(model, Number(num_samples), plan.steps);
    return { model: model.name, num_samples: Number(num_samples), seed: Number(seed), sampler: plan, ...(frames && { frames }) };
  }

  function remember(name, answer) {
    answers.set(name, answer);
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  }

  /** Show an empty scene for a model. */
  function stand(model) {
    scene = sceneOf(model);
    stage.replaceChildren(scene.node);
    trajectory = null;
    playback.hide();
    tools.hidden = partial.hidden = true;
    code.hide();
  }

  function present(answer, { num_samples, ...named }) {
    const [shown, model] = [scene, context.model()];
    scene.show(answer.samples);
    tools.hidden = false;
    const { name, steps } = answer.sampler;
    tell(told, ["sample.told", { n: num_samples, sampler: name, steps: steps ?? model.steps, cost: answer.network_evaluations, seed: String(answer.seed) }]);
    files.offer({ name: `${model.name}-seed-${answer.seed}`, request: { num_samples, ...named }, canvas: () => shown.canvas(), ...tableOf(answer.samples, model) });
    follow();
    code.show(curl("/sample", { num_samples, ...named }), python("sample", [num_samples], named, 'save("samples.png")'));
    if (answer.trajectory) {
      const { t, x, x_0 } = answer.trajectory;
      trajectory = { t, x: x.with(-1, answer.samples), x_0: x_0.with(-1, answer.samples) };
      scene.reach(x.flat()); // only states: estimates from pure noise may lie far away
      playback.load(t.length);
    }
  }

  function turn(index) {
    const [x, x_0] = [trajectory.x[index], trajectory.x_0[index]];
    if (which.value() === "x_0") scene.show(x_0);
    else scene.show(x, index < trajectory.t.length - 1 ? x_0 : null);
  }

  function clear() {
    desk.cancel();
    asked = null;
    scene = null;
    stage.replaceChildren(empty);
    playback.hide();
    tools.hidden = partial.hidden = true;
    code.hide();
  }

  return { show, hide };
}
