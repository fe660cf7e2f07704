// Converts pictures of any size to data of a model: [C, H, W] of whole numbers 0..255, or bits.
//
// Pictures are drawn on a sheet, a canvas FINE times the model's size, and each block of FINE x FINE
// pixels is averaged, so that edges are soft, as in a picture that was scaled down.

import { paint } from "./image.js";

export const FINE = 10; // pixels of a sheet per pixel of the model, along each side
const DIGIT = 20; // pixels: the longer side of a digit in MNIST (LeCun et al. 1998)
const INK = 24; // of 255: darker pixels count as paper

/** An empty (black) sheet for a model's pictures. */
export function sheetOf({ shape: [, height, width] }) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: width * FINE, height: height * FINE });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Draw an example on a sheet, one block per number, such that it can be read back exactly. */
export function lay(sheet, x, { kind }) {
  const small = document.createElement("canvas");
  paint(small, x, kind === "bits" ? 1 : 255);
  const pen = sheet.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, sheet.width, sheet.height);
}

/** Read an example from a sheet: grey by luminance (ITU-R BT.601), bits by a threshold of one half. */
export function readSheet(sheet, { kind, shape: [channels, height, width] }) {
  const { data } = sheet.getContext("2d").getImageData(0, 0, sheet.width, sheet.height);
  const sums = Array.from({ length: channels }, () => Array.from({ length: height }, () => Array(width).fill(0)));
  for (let i = 0, at = 0; i < sheet.height; i++) {
    for (let j = 0; j < sheet.width; j++, at += 4) {
      const [row, column] = [Math.floor(i / FINE), Math.floor(j / FINE)];
      const [red, green, blue] = data.subarray(at, at + 3);
      if (channels === 1) sums[0][row][column] += 0.299 * red + 0.587 * green + 0.114 * blue;
      else [red, green, blue].forEach((value, c) => (sums[c][row][column] += value));
    }
  }
  const settle = (sum) => (kind === "bits" ? Number(sum / FINE ** 2 >= 127.5) : Math.round(sum / FINE ** 2));
  return sums.map((rows) => rows.map((row) => row.map(settle)));
}

/** Convert a picture's largest centred part with the model's aspect ratio to an example. */
export function fit(picture, model) {
  const sheet = sheetOf(model);
  const scale = Math.max(sheet.width / picture.width, sheet.height / picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  const pen = sheet.getContext("2d");
  pen.imageSmoothingEnabled = scale < 1; // enlarged pictures keep hard edges, so those of the model's size stay exact
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, (sheet.width - width) / 2, (sheet.height - height) / 2, width, height);
  return readSheet(sheet, model);
}

/** Scale a drawing to the size of MNIST's digits, with its centre of mass in the middle, on a new sheet. */
export function centred(sheet, model) {
  const box = inkOf(sheet);
  if (!box) return sheet;
  const scale = (DIGIT * FINE) / Math.max(box.width, box.height);
  const whole = sheetOf(model);
  const pen = whole.getContext("2d");
  pen.imageSmoothingQuality = "high";
  const place = (x, y) => pen.drawImage(sheet, box.left, box.top, box.width, box.height, x, y, box.width * scale, box.height * scale);
  place(
    whole.width / 2 - (box.x - box.left) * scale,
    whole.height / 2 - (box.y - box.top) * scale,
  );
  return whole;
}

/** The bounding box of a sheet's ink, and its centre of mass (x, y); null without ink. */
function inkOf(sheet) {
  const { data } = sheet.getContext("2d").getImageData(0, 0, sheet.width, sheet.height);
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  let [mass, x, y] = [0, 0, 0];
  for (let i = 0, at = 0; i < sheet.height; i++) {
    for (let j = 0; j < sheet.width; j++, at += 4) {
      const ink = data[at];
      if (ink < INK) continue;
      [left, right, top, bottom] = [Math.min(left, j), Math.max(right, j + 1), Math.min(top, i), Math.max(bottom, i + 1)];
      mass += ink;
      x += ink * (j + 0.5);
      y += ink * (i + 0.5);
    }
  }
  return mass ? { left, top, width: right - left, height: bottom - top, x: x / mass, y: y / mass } : null;
}
