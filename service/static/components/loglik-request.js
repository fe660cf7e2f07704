// A likelihood request, as the page sends it, as curl and as Python.

import { paint } from "../lib/image.js";
import { isPicture, pack } from "../lib/encode.js";
import { Code, curl, python } from "./snippets.js";

const PNG = "data:image/png;base64,";

/**
 * The body of POST /loglik.
 * @param {object} model an entry of GET /models
 * @param {Array} data
 * @param {object} fields the form's fields; `by` selects `terms`, `target_error` or `trajectories`
 */
export function bodyOf(model, data, { by, strata, convention, seed, ...counts }) {
  return {
    model: model.name,
    data: isPicture(model) ? data.map((x) => png(x, model)) : data,
    ...(by !== "all" && { [by]: Number(counts[by]) }),
    ...(strata && strata !== "even" && { strata }),
    ...(convention && { convention }),
    per_step: true,
    seed: Number(seed),
  };
}

function png(x, { kind }) {
  const canvas = document.createElement("canvas");
  paint(canvas, x, kind === "bits" ? 1 : 255);
  return canvas.toDataURL("image/png").slice(PNG.length);
}

/** The same request with curl and with the client: [shell, script]. */
export async function told(model, data, body) {
  const { data: _, ...named } = body;
  const then = 'save("likelihoods.csv")';
  if (!isPicture(model)) return [curl("/loglik", body), python("loglik", [data], named, then)];
  const shape = `(${[data.length, ...model.shape].join(", ")})`;
  const bytes = (await pack(data, model, Infinity)).match(/.{1,96}/g).map((line) => `    "${line}"`).join("\n");
  const before = {
    imports: "from base64 import urlsafe_b64decode\nfrom zlib import decompress\n\nimport numpy as np\n",
    lines: `pixels = (\n${bytes}\n)\ndata = np.frombuffer(decompress(urlsafe_b64decode(pixels + "==")), np.uint8).reshape${shape}\n`,
  };
  return [curl("/loglik", body), python("loglik", [new Code("data")], named, then, before)];
}
