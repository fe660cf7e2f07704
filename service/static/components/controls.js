// Controls that the views share: form fields, the progress bar, the problem box.

import { h } from "../lib/dom.js";
import { known, number, say, tell } from "../lib/i18n.js";

/** A control with its name, and a line of help below. */
export function field(text, control, hint = null) {
  const below = hint && h("small", { say: hint });
  return h("label", { class: "field" }, h("span", { class: "name", say: text }), control, below);
}

/** A number input. */
export const numberInput = (name, { min, max, step = 1 } = {}) =>
  h("input", { type: "number", name, min, max, step, required: true, inputmode: step === 1 ? "numeric" : "decimal" });

/** A drop-down of values, each with the text of its key. */
export const choice = (name, options) =>
  h("select", { name }, ...options.map(([value, text]) => h("option", { value, say: text })));

/** A choice among a few visible values: `node`, `value()`; `change` is called when it changes. */
export function segments(text, options, change) {
  const one = ([value, key], i) =>
    h("label", {}, h("input", { type: "radio", name: text, value, checked: i === 0, on: { change } }), h("span", { say: key }));
  const node = h("fieldset", { class: "segments" }, h("legend", { class: "unseen", say: text }), ...options.map(one));
  return { node, value: () => node.querySelector(":checked").value };
}

/** A button. */
export const button = (text, click, attributes = {}) =>
  h("button", { type: "button", say: text, on: { click }, ...attributes });

/** The values of a form's enabled fields, as strings. */
export function read(form) {
  const fields = [...form.elements].filter((control) => control.name && !control.disabled);
  return Object.fromEntries(fields.map((control) => [control.name, valueOf(control)]));
}

const valueOf = (control) => (control.type === "checkbox" ? String(control.checked) : control.value);

/** Set the fields with these names. */
export function fill(form, values) {
  for (const [name, value] of Object.entries(values)) {
    const control = form.elements.namedItem(name);
    if (!control || value === undefined) continue;
    if (control.type === "checkbox") control.checked = value === "true";
    else control.value = value;
  }
}

/** Hide and disable a field that does not apply, so that it is not sent. */
export function offer(control, offered) {
  control.disabled = !offered;
  control.closest(".field").hidden = !offered;
}

/** A request's progress bar: `show(progress)`, `pause(seconds)`, `hide()`. */
export function meter(cancel) {
  const bar = h("progress", { label: "progress.label" });
  const text = h("p", { class: "progress-text" });
  const node = h("div", { class: "meter", hidden: true }, bar, text, button("progress.cancel", cancel));
  return {
    node,
    show({ state, step, total, seconds_left: left }) {
      node.hidden = false;
      bar.max = total ?? 1;
      if (step) bar.value = step;
      else bar.removeAttribute("value"); // indeterminate: the progress is unknown
      const [unit, n] = left < 120 ? ["", Math.ceil(left)] : [".minutes", Math.round(left / 60)];
      if (state === "running" && left !== null) tell(text, [`progress.left${unit}`, { n }]);
      else tell(text, left ? [`progress.queue${unit}`, { n }] : `progress.${state}`);
    },
    pause(seconds) {
      node.hidden = false;
      bar.removeAttribute("value");
      tell(text, ["progress.busy", { n: seconds }]);
    },
    hide() {
      node.hidden = true;
    },
  };
}

/** The box that explains a problem and what to do about it: `show(problem, again)`, `hide()`. */
export function notice() {
  const node = h("section", { class: "notice", role: "alert", hidden: true });
  return {
    node,
    show(problem, again = null) {
      node.replaceChildren(...lines(problem));
      if (again) node.append(h("div", { class: "row" }, button("problem.again", again)));
      node.hidden = false;
    },
    hide() {
      node.hidden = true;
    },
  };
}

function lines(problem) {
  const { document: told, slug } = problem;
  const title = `problem.${slug}`;
  const heading = known(title) ? h("h2", { say: title }) : h("h2", { lang: "en" }, told.title ?? problem.message);
  const fix = known(`${title}.fix`) ? h("p", { say: `${title}.fix` }) : null;
  const facts = ["received", "expected", "fix", "request_id"].filter((name) => told[name] !== undefined);
  const rows = facts.flatMap((name) => [h("dt", { say: `problem.${name}` }), h("dd", { lang: "en" }, plain(told[name]))]);
  const detail = told.detail ? h("p", { lang: "en" }, told.detail) : null;
  const whose = detail && told.type?.startsWith("urn:noneq:problem") ? h("small", { say: "problem.words" }) : null;
  return [heading, fix, whose, detail, rows.length ? h("dl", {}, ...rows) : null].filter(Boolean);
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (typeof value === "number") return number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Ask for an API key in a dialog, which says if one was `refused`; return the key, or null. */
export function keyDialog(refused = false) {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", name: "key", autocomplete: "off", required: true });
    const cancel = button("key.cancel", () => dialog.close());
    const form = h(
      "form", { method: "dialog" }, h("h2", { say: "key.title" }), refused ? h("p", { class: "refused", role: "alert", say: "key.refused" }) : null, h("p", { say: "key.why" }), field("key.name", input),
      h("div", { class: "row" }, h("button", { class: "primary", value: "given", say: "key.use" }), cancel),
    );
    const dialog = h("dialog", { label: "key.title" }, form);
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "given" ? input.value.trim() : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Scroll to a node unless its top is in view; without motion if the system prefers reduced motion. */
export function reveal(node) {
  const { top } = node.getBoundingClientRect();
  if (top >= 0 && top < 0.5 * innerHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.scrollIntoView({ block: "start", behavior: calm ? "instant" : "smooth" });
}

let steered = 0; // how often a person scrolled or typed
for (const event of ["wheel", "touchmove", "keydown"]) addEventListener(event, () => steered++, { passive: true });

/** Return a function that reveals a node, until the person scrolls or types. */
export function follower(node) {
  const before = steered;
  return () => {
    if (steered === before) reveal(node);
  };
}

/** Change a button's text for a moment after its action. */
export function confirm(node, text) {
  const before = node.textContent;
  node.textContent = say(text);
  setTimeout(() => (node.textContent = before), 1500);
}
