// The page's frame: tabs, the list of models, language, theme, and the service's status line.
//
// A view is a module of views/ that exports one object:
//
//   export const view = {
//     id,                      its name in the link; words/ has its tab's title under `${id}.tab`
//     kinds,                   of models that it is for; others do not show its tab
//     mount(root, context),    called once, with an empty element; returns { show(state), hide() }
//   };
//
//   show(state)   called when the tab opens, another model is chosen, or the history moves: show what
//                 the link says. `state` has the link's fields, all strings; `state.model` names a
//                 served model. Repeat the request of a link that has a seed.
//   hide()        called when another tab opens. Running work may go on.
//
//   context.model()         the chosen model's entry of GET /models
//   context.visit(fields)   puts the view's fields into the link, as a new history entry
//   context.announce(text)  tells a screen reader; text is a key of words/, or [key, values]
//
// Views need not handle a change of language or theme: texts given by key follow it (dom.js), and
// plots are SVG, coloured by style.css (lib/plot.js).
//
// To add a view, write views/NAME.js and its texts in words/en.js and words/ko.js, and add it to VIEWS.

import { button, choice, keyDialog, notice } from "./components/controls.js";
import { modelCard } from "./components/model-card.js";
import { h, svg } from "./lib/dom.js";
import * as link from "./lib/url.js";
import { get, onKeyWanted, onUnreachable, Problem } from "./lib/api.js";
import { view as likelihood } from "./views/likelihood.js";
import { view as repair } from "./views/posterior.js";
import { view as sample } from "./views/sample.js";
import { view as table } from "./views/table.js";
import { preferred, speak, tell } from "./lib/i18n.js";

const VIEWS = [sample, likelihood, repair, table];
const KINDS = ["image", "vector", "bits", "table"];
const [OFTEN, SELDOM] = [3, 20]; // seconds between status checks if the service did not answer, and if it did

const mounted = {}; // view's id -> { show, hide }
const visited = {}; // view's id -> the fields of its link
let models = [];
let open = null; // the id of the current view
let model = null; // the chosen model's entry
let preset = null; // the name of the operator's default
let timer = null; // of the next status check
let lost = false; // whether the last status check failed

// ---------------------------------------------------------------------------------------- the frame

const tabs = h("div", { role: "tablist", class: "tabs", label: "shell.views", inert: true, on: { keydown: moveTab } }); // until there are models
const panels = h("main", { id: "main" });
const picker = h("select", { id: "model", on: { change: () => go(open, { model: picker.value }) } });
const facts = h("p", { class: "facts" });
const status = h("p", { class: "status", say: "status.looking" });
const spoken = h("p", { class: "unseen", "aria-live": "polite" });
const trouble = notice();

const themes = choice("theme", [["auto", "theme.auto"], ["light", "theme.light"], ["dark", "theme.dark"]]);
const languages = h("select", { name: "language", lang: "mul" }, h("option", { value: "en", lang: "en" }, "English"), h("option", { value: "ko", lang: "ko" }, "한국어"));
tell(themes, "theme.label", "aria-label");
tell(languages, "language.label", "aria-label");

const card = modelCard();
const bar = h("section", { class: "model-bar", label: "shell.chosen", hidden: true }, h("label", { for: "model", say: "shell.model" }), picker, facts, card.handle, card.node);

/** A choice with an icon beside it; narrow screens show only the icon. */
function pick(control, ...shapes) {
  const sign = svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, ...shapes.map((d) => svg("path", { d })));
  return h("div", { class: "pick" }, sign, control);
}

const globe = ["M10 2a8 8 0 1 0 .01 0Z", "M2 10h16", "M10 2c-5 4-5 12 0 16", "M10 2c5 4 5 12 0 16"];
const half = ["M10 2a8 8 0 1 0 .01 0Z", "M10 2a8 8 0 0 1 0 16ZM11 5h4M11 8h6M11 11h6M11 14h4"];

document.body.append(
  h("a", { class: "skip", href: "#main", say: "shell.skip" }),
  h("header", {}, h("h1", {}, h("a", { href: "." }, h("img", { src: "static/icon.svg", alt: "" }), h("span", {}, "noneq"))), tabs, h("div", { class: "looks" }, pick(languages, ...globe), pick(themes, ...half))),
  bar,
  trouble.node,
  panels,
  h("footer", {}, status, h("a", { href: "docs", say: "shell.api" })),
  spoken,
);

for (const view of VIEWS) {
  const { id } = view;
  const attributes = { role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, tabindex: -1 };
  tabs.append(button(`${id}.tab`, () => go(id), attributes));
  panels.append(h("section", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, hidden: true }));
}

/** Move among the tabs with arrows, Home and End (WAI-ARIA). */
function moveTab(event) {
  const all = [...tabs.children].filter((tab) => !tab.hidden);
  const at = all.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  all.at(to % all.length).focus();
  all.at(to % all.length).click();
}

// --------------------------------------------------------------------------------- where the page is

const context = {
  model: () => model,
  visit(fields) {
    visited[open] = { view: open, model: model.name, ...fields };
    link.write(visited[open]);
  },
  announce: (text) => tell(spoken, text),
};

/** Open a view on a user action, keeping the view's earlier fields where they still fit. */
function go(wanted, { model: name = model.name } = {}) {
  const id = fitting(wanted, models.find((entry) => entry.name === name));
  const before = visited[id]?.model === name ? visited[id] : {};
  const state = { ...before, view: id, model: name };
  link.write(state);
  enter(state);
}

/** The view of this id if it is for such a model, else the first that is. */
function fitting(id, { kind }) {
  const all = VIEWS.filter(({ kinds }) => kinds.includes(kind));
  return (all.find((view) => view.id === id) ?? all[0]).id;
}

/** Show the view and model that a link names. */
function enter(state) {
  const linked = models.find((entry) => entry.name === state.model);
  trouble.hide();
  if (state.model && !linked) {
    trouble.show(new Problem({ type: "urn:noneq:page:link-model", received: state.model, expected: models.map(({ name }) => name) }));
    state = {}; // the other fields were meant for that model
  }
  model = linked ?? model ?? models.find(({ name }) => name === (preset ?? pleasing()));
  const id = fitting(state.view, model);
  picker.value = model.name;
  document.title = `${model.name} · noneq`;
  tell(facts, [`facts.${model.kind}`, { shape: model.shape.join(" × "), T: model.steps, n: model.parameters }]);
  card.show(model);
  if (open && open !== id) mounted[open]?.hide();
  open = id;
  for (const view of VIEWS) {
    const [tab, panel] = [document.getElementById(`tab-${view.id}`), document.getElementById(`panel-${view.id}`)];
    tab.setAttribute("aria-selected", view.id === id);
    tab.tabIndex = view.id === id ? 0 : -1;
    tab.hidden = !view.kinds.includes(model.kind);
    panel.hidden = view.id !== id;
    if (view.id === id) mounted[id] ??= view.mount(panel, context);
  }
  visited[id] = { ...state, view: id, model: model.name };
  mounted[id].show(visited[id]);
}

// ------------------------------------------------------------------------------------------ the look

function choose(name, control, use) {
  control.addEventListener("change", () => {
    localStorage.setItem(name, control.value);
    use(control.value);
  });
  use(control.value);
}

const paint = (theme) => (document.documentElement.dataset.theme = theme);

themes.value = localStorage.getItem("theme") ?? "auto";
languages.value = preferred();
choose("theme", themes, paint);
choose("language", languages, speak);

// --------------------------------------------------------------------------------------- the service

onKeyWanted(keyDialog);

/** Wait for the service, then show what the link says. */
async function begin() {
  for (;;) {
    try {
      await get("/health/ready");
      const answer = await get("/models");
      trouble.hide();
      return settle(answer);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const seconds = error.retryAfter ?? 5;
      if (error.status === 401) {
        tell(status, "status.locked");
        return trouble.show(error, begin);
      }
      tell(status, error.slug === "not-ready" ? ["status.starting", { n: seconds }] : "status.down");
      if (error.slug !== "not-ready") trouble.show(error);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    }
  }
}

function settle(answer) {
  offer(answer);
  onUnreachable(() => {
    lost = true;
    tell(status, "status.down");
    later(OFTEN);
  });
  later(SELDOM);
  if (!models.length) {
    trouble.show(new Problem({ type: "urn:noneq:page:no-models" }));
    return;
  }
  bar.hidden = tabs.inert = false;
  const state = link.read();
  enter({ ...state, model: state.model ?? preset ?? pleasing() });
  link.onMove(enter);
}

/** Fill the list of models. */
function offer(answer) {
  models = answer.models;
  preset = answer.default ?? null;
  tell(status, ["status.ready", { n: models.length }]);
  picker.replaceChildren();
  for (const kind of KINDS) {
    const names = models.filter((entry) => entry.kind === kind).map(({ name }) => h("option", { value: name }, name));
    if (names.length) picker.append(h("optgroup", {}, ...names));
    if (names.length) tell(picker.lastChild, `kind.${kind}`, "label");
  }
  if (model) picker.value = model.name;
}

/** Check the service after some seconds, and repeatedly from then on; show its status in the footer. */
function later(seconds) {
  clearTimeout(timer);
  timer = setTimeout(look, 1000 * seconds);
}

async function look() {
  if (document.hidden) return later(SELDOM);
  try {
    await get("/health/ready");
    if (lost) offer(await get("/models")); // another may have been started
    lost = false;
    tell(status, ["status.ready", { n: models.length }]);
    later(SELDOM);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    lost = error.status !== 401; // do not ask for a missing key again
    const told = { "not-ready": ["status.starting", { n: OFTEN }], draining: "status.stopping" };
    tell(status, lost ? (told[error.slug] ?? "status.down") : "status.locked");
    later(lost ? OFTEN : SELDOM);
  }
}

/** The first model if the operator set no default: preferably images. */
const pleasing = () => (models.find(({ name }) => name === "mnist") ?? models.find(({ kind }) => kind === "image") ?? models[0]).name;

begin();
