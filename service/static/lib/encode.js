// Encodes data as a short text for a link, and decodes it.
//
//   pictures   their bytes, zlib-compressed (RFC 1950), in base64 for addresses (RFC 4648, Section 5)
//   bits       "01101001.11110000"
//   vectors    "0.5,-1;9,9"

const LONGEST = 6000; // characters that every server and browser accepts in an address

/** Whether the data are pictures, which are encoded as bytes. */
export const isPicture = ({ shape }) => shape.length === 3;

/** Encode data; null if the text would be too long for an address. */
export async function pack(data, model, longest = LONGEST) {
  const text = isPicture(model) ? await squeeze(data) : model.kind === "bits" ? data.map((x) => x.join("")).join(".") : data.join(";");
  return text.length > longest ? null : text;
}

/** Decode a text; null if it is not data of this model. */
export async function unpack(text, model) {
  try {
    const data = isPicture(model) ? await unfold(text, model) : model.kind === "bits" ? text.split(".").map((x) => [...x].map(Number)) : rowsOf(text.replaceAll(";", "\n"), model);
    return data?.length && data.every((x) => fits(x, model)) ? data : null;
  } catch {
    return null; // cut off or mistyped
  }
}

/** Parse typed numbers, one example per line; null if they are not data of this model. */
export function rowsOf(text, { shape, kind }) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const solid = kind === "bits" && lines.every((line) => /^[01]+$/.test(line));
  const data = lines.map((line) => (solid ? [...line] : line.replace(/[[\]()]/g, " ").split(/[\s,;]+/).filter(Boolean)).map(Number));
  return data.length && data.every((x) => fits(x, { shape, kind })) ? data : null;
}

function fits(x, { shape, kind }) {
  const values = x.flat(2);
  const allowed = kind === "bits" ? (value) => value === 0 || value === 1 : Number.isFinite;
  return values.length === shape.reduce((a, b) => a * b) && values.every(allowed);
}

async function squeeze(data) {
  const bytes = Uint8Array.from(data.flat(3));
  const zipped = await through(bytes, new CompressionStream("deflate"));
  const text = btoa(Array.from(zipped, (byte) => String.fromCharCode(byte)).join(""));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function unfold(text, { shape: [channels, height, width] }) {
  const zipped = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = await through(Uint8Array.from(zipped, (letter) => letter.charCodeAt(0)), new DecompressionStream("deflate"));
  const one = channels * height * width;
  if (bytes.length % one) return null;
  const row = (at) => Array.from(bytes.subarray(at, at + width));
  return Array.from({ length: bytes.length / one }, (_, n) =>
    Array.from({ length: channels }, (_, c) => Array.from({ length: height }, (_, i) => row(n * one + (c * height + i) * width))));
}

const through = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
