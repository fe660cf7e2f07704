// The curl command and Python code of a request, to copy.

import { h } from "../lib/dom.js";
import { button, confirm } from "./controls.js";
import { keyed, locate } from "../lib/api.js";

const DEFAULT = "http://localhost:8000"; // the client's default
const KEY = "YOUR_API_KEY"; // never the real key, because snippets are shared

/** A name or expression among the values of a call, written verbatim. */
export class Code {
  constructor(text) {
    this.text = text;
  }
}

/** A request as a curl command, quoted for a POSIX shell. */
export function curl(path, body) {
  const text = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = keyed() ? ` \\\n  -H 'Authorization: Bearer ${KEY}'` : "";
  return `curl ${locate(path)}${key} \\\n  --json '${text}'`;
}

/**
 * A request as a call of the Python client.
 * @param {string} call "sample"
 * @param {Array} given the positional arguments
 * @param {object} named the keyword arguments; null is None
 * @param {string} then a call on the answer, such as "save(\"samples.png\")"
 * @param {{imports?: string, lines?: string}} before code that the arguments need, with line ends
 */
export function python(call, given, named, then, { imports = "", lines = "" } = {}) {
  const base = locate("").replace(/\/$/, "");
  const settings = [base !== DEFAULT && literal(base), keyed() && `api_key=${literal(KEY)}`].filter(Boolean);
  const client = `Client(${settings.join(", ")})`;
  const words = [...given.map(literal), ...Object.entries(named).map(([name, value]) => `${name}=${literal(value)}`)];
  const answer = `${client}.${call}(${words.join(", ")})`;
  return `${imports}from noneq import Client\n\n${lines}answer = ${answer}\nanswer.${then}`;
}

/** A JSON value as Python writes it. */
export function literal(value) {
  if (value === null) return "None";
  if (value instanceof Code) return value.text;
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item)}`).join(", ")}}`;
}

/** Copy a text to the clipboard, even if the page was loaded over plain HTTP from another computer. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const from = document.activeElement;
  const held = h("textarea", { class: "unseen", readonly: true });
  held.value = text;
  document.body.append(held);
  held.select();
  document.execCommand("copy"); // deprecated, but the only way over plain HTTP
  held.remove();
  from.focus();
}

/** The panel that shows both snippets: `show(curlText, pythonText)`, `hide()`. */
export function snippets() {
  const texts = { curl: h("code"), python: h("code") };
  const blocks = Object.entries(texts).map(([name, code]) => {
    const take = button("snippets.copy", () => copy(code.textContent).then(() => confirm(take, "snippets.copied")));
    const title = h("div", { class: "row" }, h("h2", {}, name === "curl" ? "curl" : "Python"), take);
    return h("div", { class: "snippet" }, title, h("pre", { tabindex: 0, label: `snippets.${name}` }, code));
  });
  const node = h("details", { class: "snippets", hidden: true }, h("summary", { say: "snippets.title" }), ...blocks);
  return {
    node,
    show(shell, script) {
      texts.curl.textContent = shell;
      texts.python.textContent = script;
      node.hidden = false;
    },
    hide() {
      node.hidden = true;
    },
  };
}
