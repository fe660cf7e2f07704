// Creates elements. Text is given by its key in words/, so that it follows the language.
//
//   h("button", { type: "button", say: "sample.run", on: { click: run } })
//   h("p", { say: ["scene.sample", { n: 8 }] })

import { tell } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} tag
 * @param {object} attributes `say` sets the text, `label` aria-label, `hint` title, and `placeholder`
 *     itself, each by a key or [key, values]; `on` has the listeners by event; false, null and
 *     undefined attributes are left out. An element with `say` has no children.
 * @param {...(Node|string)} children
 */
export function h(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** An SVG element, with the same attributes. */
export function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

const SAID = { say: "textContent", label: "aria-label", hint: "title", placeholder: "placeholder" };

function furnish(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name in SAID) tell(node, value, SAID[name]);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
