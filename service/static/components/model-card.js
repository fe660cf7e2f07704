// A model's facts in a panel, read from GET /models/NAME when it is opened.

import { h } from "../lib/dom.js";
import { button, notice } from "./controls.js";
import { get, Problem } from "../lib/api.js";
import { number } from "../lib/i18n.js";

/** The panel `node`, the button `handle` that opens it, and `show(entry)` for an entry of GET /models. */
export function modelCard() {
  const body = h("div", { class: "card-body" });
  const box = notice();
  const node = h("div", { class: "card", id: "card", hidden: true }, box.node, body);
  const handle = button("card.title", toggle, { class: "plain", "aria-controls": "card", "aria-expanded": "false" });
  const known = new Map(); // name -> the service's answer
  let name = null;

  function toggle() {
    node.hidden = !node.hidden;
    handle.setAttribute("aria-expanded", !node.hidden);
    fill();
  }

  async function fill() {
    if (node.hidden) return;
    const mine = name;
    box.hide();
    try {
      if (!known.has(mine)) known.set(mine, await get(`/models/${encodeURIComponent(mine)}`));
      if (name === mine) body.replaceChildren(...contents(known.get(mine)));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (name === mine) box.show(error, fill);
    }
  }

  return {
    node,
    handle,
    show(entry) {
      if (entry.name === name) return;
      name = entry.name;
      body.replaceChildren();
      fill();
    },
  };
}

function contents({ name, artefact, card, evaluation, shape, steps, process }) {
  const title = /^# .*?: (.*)$/m.exec(card ?? "")?.[1]; // "# mnist: MNIST digits"
  const { training, prediction, variance } = artefact;
  const schedule = artefact.process.schedule?.kind;
  const facts = [
    ["card.process", [process, `T = ${number(steps)}`, schedule]],
    ["card.prediction", [prediction]],
    ["card.variance", [variance ?? "–"]],
    ["card.data", [training.data]],
    ["card.training", [training.steps ? number(training.steps) : "–"]],
  ];
  const rows = facts.flatMap(([said, parts]) => [h("dt", { say: said }), h("dd", { lang: "en" }, parts.filter(Boolean).join(" · "))]);
  const whole = evaluation.filter((found) => !found.steps && found.bits_per_dim !== undefined);
  return [
    title ? h("p", { lang: "en" }, title) : null,
    h("dl", {}, ...rows),
    whole.length ? table(whole, shape.reduce((a, b) => a * b)) : h("p", { say: "card.none" }),
    h("p", {}, h("a", { href: "docs#/models", say: ["card.docs", { name }] })),
  ].filter(Boolean);
}

/** The model's likelihoods, one per row; with the best possible if the data's entropy is known. */
function table(evaluations, dims) {
  const bits = (nats) => nats / (Math.LN2 * dims);
  const limited = evaluations.some(({ entropy }) => typeof entropy === "number");
  const names = ["card.convention", "card.split", "card.bits", ...(limited ? ["card.limit"] : [])];
  const row = ({ convention, split, count, bits_per_dim: found, standard_error: error, entropy }) => {
    const places = Math.min(5, Math.max(2, 1 - Math.floor(Math.log10(bits(error))))); // two of the error's digits
    const digits = (value) => number(value, { minimumFractionDigits: places, maximumFractionDigits: places });
    const shown = [`${digits(found)} ± ${digits(bits(error))}`];
    if (limited) shown.push(typeof entropy === "number" && convention !== "paper" ? digits(bits(entropy)) : "–");
    const cells = [h("td", { say: ["card.of", { split, n: count }] }), ...shown.map((text) => h("td", { class: "figure" }, text))];
    return h("tr", {}, h("th", { scope: "row", lang: "en" }, convention), ...cells);
  };
  const head = h("tr", {}, ...names.map((said) => h("th", { scope: "col", say: said })));
  return h("table", {}, h("caption", { say: "card.measured" }), h("thead", {}, head), h("tbody", {}, ...evaluations.map(row)));
}
