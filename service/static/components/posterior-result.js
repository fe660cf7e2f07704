// One method's result: its completions, their mean and spread, diagnostics, and cost.

import { h } from "../lib/dom.js";
import { agreement } from "../lib/observation.js";
import { isPicture } from "../lib/encode.js";
import { paint, paintRows } from "../lib/image.js";
import { axes, rangeOf, toCanvas } from "../lib/plot.js";
import { saver, tableOf } from "./download.js";
import { sceneOf } from "./gallery.js";
import { number, tell } from "../lib/i18n.js";

const MOST_READ = 3; // labels to show
const LEAST_READ = 0.001; // least probability of a shown label after the first

/** Whether a model's data are points in the plane. */
export const isPlane = ({ kind, shape }) => kind === "vector" && shape.length === 1 && shape[0] === 2;

/**
 * A column: `wait()` until its request runs, `preview(estimates)`, then `show(found, request)` or `stop()`.
 * @param {string} method the method's name in a request
 * @param {object} model an entry of GET /models
 * @param {{y: Array, look: object, prior: Array|null}} seen the observation (observation.js), and prior
 *     points to show behind the posterior's
 */
export function column(method, model, seen) {
  const view = isPlane(model) ? cloud(seen) : sceneOf(model);
  const state = h("p", { class: "told", say: "repair.waiting" });
  const out = h("div", { class: "found" });
  const files = saver();
  const title = h("h2", { say: `method.${method}` });
  const node = h("article", { class: "completions" }, h("div", {}, title, h("small", { say: `method.${method}.why` })), view.node, state, out, files.node);

  function show({ answer, seconds }, request) {
    const [found] = answer.results;
    state.hidden = true;
    view.show(found.samples);
    files.offer({ name: `${model.name}-${method}-seed-${answer.seed}`, request, canvas: () => view.canvas(), ...tableOf(found.samples, model) });
    out.replaceChildren(...[
      answer.method !== method && h("p", { class: "told", say: `repair.chosen.${answer.method}` }),
      summary(found, model, seen),
      agreed(found.samples, model, seen),
      trust(answer, found),
      h("p", { class: "told", say: ["repair.cost", { cost: answer.network_evaluations, steps: answer.sampler.steps, seconds: number(seconds, { maximumFractionDigits: 1 }) }] }),
    ].filter(Boolean));
  }

  return {
    node,
    wait: (count) => view.show(Array(count).fill(null)),
    preview: (estimates, count) => view.show([...estimates, ...Array(count - estimates.length).fill(null)]),
    show,
    stop: () => tell(state, "repair.stopped"),
  };
}

// ------------------------------------------------------------------------------ mean and deviation

function summary({ mean, std }, model, seen) {
  if (isPicture(model)) return pictures(mean, std, model);
  if (model.kind === "bits") return rows(mean, seen);
  return table(mean, std, seen);
}

function pictures(mean, std, { kind }) {
  const white = kind === "bits" ? 1 : 255;
  const shown = [figure("repair.mean", mean, white)];
  const most = std && Math.max(...std.flat(2));
  if (std) shown.push(figure(["repair.std", { n: number(most, { maximumSignificantDigits: 3 }) }], std, most || 1));
  return h("div", { class: "summary" }, ...shown);
}

function figure(text, x, white) {
  const canvas = h("canvas", { class: "pixels", role: "img", label: text });
  paint(canvas, x, white);
  return h("figure", {}, canvas, h("figcaption", { "aria-hidden": "true", say: text }));
}

/** The probabilities of bits, as a row of greys above numbers. */
function rows(mean, { look }) {
  const canvas = h("canvas", { class: "pixels raster", "aria-hidden": "true" });
  paintRows(canvas, [mean]);
  const cells = mean.map((p, i) => h("span", { class: look.known[i] ? "known" : null }, number(p, { maximumFractionDigits: 2 })));
  return h("figure", {}, canvas, h("p", { class: "chances" }, ...cells), h("figcaption", { say: "repair.chances" }));
}

/** A table of the mean and standard deviation of each number. */
function table(mean, std, { y, look }) {
  const head = ["cells.column", "repair.column.seen", "repair.column.mean", "repair.column.std"].map((text) => h("th", { scope: "col", say: text }));
  const lines = mean.map((value, i) => {
    const cells = [look.known[i] ? number(y[i]) : "?", number(value), std ? number(std[i]) : "–"].map((text) => h("td", {}, text));
    return h("tr", {}, h("th", { scope: "row", say: ["cells.name", { n: i + 1 }] }), ...cells);
  });
  return h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...lines));
}

/** The posterior's points over the prior's, with the observed coordinates. */
function cloud({ y, look, prior }) {
  const spans = [0, 1].map((axis) => rangeOf([...prior.map((point) => point[axis]), ...(look.known[axis] ? [y[axis]] : [])]));
  const half = Math.max(...spans.map(([low, high]) => (high - low) / 2));
  const ranges = spans.map(([low, high]) => [(low + high) / 2 - half, (low + high) / 2 + half]); // one scale
  const plot = axes({ x: { range: ranges[0] }, y: { range: ranges[1] }, label: "repair.plane", width: 420, count: 5, square: true });
  plot.node.classList.add("cut");
  const node = h("figure", {}, plot.node, h("figcaption", { say: "repair.plane.told" }));

  function show(data) {
    plot.clear();
    plot.dots(prior, "soft");
    for (const axis of [0, 1]) {
      if (!look.known[axis]) continue;
      for (const shift of look.noise ? [-look.noise, 0, look.noise] : [0]) {
        const ends = ranges[1 - axis].map((end) => (axis === 0 ? [y[0] + shift, end] : [end, y[1] + shift]));
        plot.line(ends, shift ? "warn dashed" : "warn");
      }
    }
    plot.dots(data.filter((x) => x !== null));
  }

  show([]);
  return { node, show, canvas: () => toCanvas(plot.node) };
}

// ----------------------------------------------------------------------------------- how far to trust

/** How well the completions reproduce the observation. */
function agreed(samples, model, { y, look }) {
  const { count, changed, off } = agreement(model, samples, y, look);
  if (look.block === 1 && !look.noise) {
    const kept = changed === 0;
    return h("p", { class: kept ? "kept" : "told", say: [kept ? "repair.kept" : "repair.changed", { n: count, changed }] });
  }
  if (model.kind === "bits") return h("p", { class: "told", say: ["repair.flipped", { share: number(off ** 2, { maximumFractionDigits: 3 }), noise: look.noise }] });
  return h("p", { class: "told", say: ["repair.off", { off: number(off, { maximumSignificantDigits: 3 }), noise: look.noise }] });
}

function trust(answer, found) {
  const { diagnostics: told, labels } = found;
  const facts = [];
  const fact = (text, value, why) => facts.push(h("div", {}, h("dt", { say: text }), h("dd", {}, value), h("dd", { class: "why", say: why })));
  const weighed = told.log_evidence !== null;
  if (weighed) {
    fact("trust.ess", share(told.ess, told.particles), "trust.ess.why");
    fact("trust.ancestors", share(told.ancestors, told.particles), "trust.ancestors.why");
    fact("trust.evidence", nats(told.log_evidence, told.log_evidence_error), ["trust.evidence.why", { n: told.systems }]);
  }
  if (told.start !== null) fact("trust.start", h("span", { say: ["trust.start.at", { t: told.start, noise: number(told.start_noise, { maximumSignificantDigits: 3 }) }] }), "trust.start.why");
  if (told.calibration) fact("trust.calibration", h("span", { lang: "en" }, told.calibration), "trust.calibration.why");
  if (labels) fact("trust.labels", readings(labels), "trust.labels.why");
  return h("div", { class: "trust" },
    answer.biased && !weighed ? h("p", { class: "told", say: "trust.none" }) : null,
    facts.length ? h("dl", {}, ...facts) : null,
    caution(told),
  );
}

/** The service's warning, if any, in the page's language and in its own words. */
function caution({ warning, particles }) {
  if (!warning) return null;
  const texts = particles > 1 ? ["trust.disagree", "trust.fix"] : ["trust.unsure"];
  return h("div", { class: "caution" }, ...texts.map((say) => h("p", { say })), h("small", { lang: "en" }, warning));
}

const share = (some, all) => h("span", { say: ["trust.share", { some: number(some, { maximumFractionDigits: 1 }), all }] });

const nats = (value, error) => {
  const digits = { maximumFractionDigits: 2, minimumFractionDigits: 2 };
  const told = error === null ? number(value, digits) : `${number(value, digits)} ± ${number(error, digits)}`;
  return h("span", { say: ["trust.nats", { n: told }] });
};

function readings(labels) {
  const ranked = Object.entries(labels).sort(([, a], [, b]) => b - a).slice(0, MOST_READ);
  const told = ranked.filter(([, p], i) => i === 0 || p >= LEAST_READ);
  return told.map(([label, p]) => `${label} (${number(100 * p, { maximumFractionDigits: 1 })}%)`).join(", ");
}
