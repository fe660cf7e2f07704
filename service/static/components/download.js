// Saves answers as files: a PNG that embeds its request, CSV, and npy.

import { h } from "../lib/dom.js";
import { button } from "./controls.js";

const SIGNATURE = 8; // bytes of a PNG before its first chunk
const HEADER = 25; // bytes of the first chunk, IHDR
const ALIGNED = 64; // npy's header is padded to a multiple of this many bytes

/**
 * Buttons that save an answer: `node`, `offer(made)` with `{ name, request, canvas(), rows, array }`, `hide()`.
 *
 * `name` is the file name without its ending, `request` the body that was sent, including its seed,
 * `canvas` a promise of a picture, `rows` the CSV's, heading first, `array` { values, shape, kind }.
 */
export function saver() {
  let made = null;
  const ways = {
    png: async () => save(await noted(await blobOf(await made.canvas()), { Software: "noneq", Source: location.href, "noneq.request": JSON.stringify(made.request) }), "png"),
    csv: () => save(new Blob([made.rows.map((row) => row.map(cell).join(",")).join("\n"), "\n"], { type: "text/csv" }), "csv"),
    npy: () => save(new Blob([npy(made.array)], { type: "application/octet-stream" }), "npy"),
  };
  const buttons = Object.entries(ways).map(([way, act]) => button(`save.${way}`, act));
  const node = h("div", { class: "row saver", role: "group", label: "save.label", hidden: true }, ...buttons);

  function save(blob, ending) {
    const href = URL.createObjectURL(blob);
    h("a", { href, download: `${made.name}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000); // once the browser has taken it
  }

  return {
    node,
    offer(answer) {
      made = answer;
      node.hidden = false;
    },
    hide() {
      node.hidden = true;
    },
  };
}

/** Samples as CSV rows and an npy array: one sample per row, flattened. */
export function tableOf(samples, { shape, kind }) {
  const heading = shape.reduce((a, b) => a * b);
  const rows = [Array.from({ length: heading }, (_, i) => `x${i + 1}`), ...samples.map((x) => x.flat(Infinity))];
  return { rows, array: { values: samples.flat(Infinity), shape: [samples.length, ...shape], kind: kind === "bits" ? "u1" : "f4" } };
}

const blobOf = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));

/** A value in a CSV file (RFC 4180); empty if it is missing. */
function cell(value) {
  const text = String(value ?? "");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Numbers in NumPy's format, version 1.0: [magic, length of the header, header, values]. */
function npy({ values, shape, kind }) {
  const [descr, Kind] = { u1: ["|u1", Uint8Array], f4: ["<f4", Float32Array], f8: ["<f8", Float64Array] }[kind];
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const room = ALIGNED - ((10 + text.length + 1) % ALIGNED);
  const header = `${text}${" ".repeat(room)}\n`;
  const start = [0x93, ...bytesOf("NUMPY"), 1, 0, header.length & 0xff, header.length >> 8, ...bytesOf(header)];
  const numbers = new Kind(Kind.from(values, (value) => value ?? -Infinity).buffer); // null: probability 0
  const whole = new Uint8Array(start.length + numbers.byteLength);
  whole.set(start);
  whole.set(new Uint8Array(numbers.buffer), start.length);
  return whole;
}

/** Add texts to a PNG as tEXt chunks after its header (PNG Specification, 11.3.4.3). */
async function noted(png, texts) {
  const bytes = new Uint8Array(await png.arrayBuffer());
  const at = SIGNATURE + HEADER;
  const chunks = Object.entries(texts).map(([key, text]) => chunk("tEXt", [...bytesOf(key), 0, ...bytesOf(plain(text))]));
  return new Blob([bytes.subarray(0, at), ...chunks, bytes.subarray(at)], { type: "image/png" });
}

function chunk(kind, data) {
  const body = Uint8Array.from([...bytesOf(kind), ...data]);
  const whole = new Uint8Array(body.length + 8);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  whole.set(body, 4);
  view.setUint32(body.length + 4, checksum(body));
  return whole;
}

/** CRC-32 (ISO 3309), by bits: the texts are short. */
function checksum(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

const bytesOf = (text) => Array.from(text, (letter) => letter.charCodeAt(0));

/** Escape all but Latin letters as in JSON, because tEXt allows no others. */
const plain = (text) => text.replace(/[^\x20-\x7e]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
