// Draws arrays on a canvas, one pixel per number; CSS enlarges them, pixelated.

/**
 * Draw an image [C, H, W] of 0..255, or bits [1, H, W] of 0..1, C = 1 or 3.
 * @param {HTMLCanvasElement} canvas is resized to the image
 * @param {number[][][]} x
 * @param {number} white the value of white
 */
export function paint(canvas, x, white = 255) {
  const [height, width] = [x[0].length, x[0][0].length];
  Object.assign(canvas, { height, width });
  const pixels = new ImageData(width, height);
  const [red, green, blue] = x.length >= 3 ? x : [x[0], x[0], x[0]];
  const scale = 255 / white;
  for (let i = 0, at = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      pixels.data[at++] = red[i][j] * scale; // the array clamps to 0..255
      pixels.data[at++] = green[i][j] * scale;
      pixels.data[at++] = blue[i][j] * scale;
      pixels.data[at++] = 255;
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Draw a base64 PNG, if it is still wanted once it is decoded. */
export async function paintPng(canvas, png, wanted = () => true) {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  if (!wanted()) return;
  Object.assign(canvas, { height: image.height, width: image.width });
  canvas.getContext("2d").drawImage(image, 0, 0);
}

/** Draw rows of numbers as one picture: one example per row, one number per pixel; `white` as for `paint`. */
export const paintRows = (canvas, rows, white = 1) => paint(canvas, [rows], white);

/**
 * Put several canvases on one, side by side in rows, enlarged by a whole factor.
 * @param {HTMLCanvasElement[]} canvases of one size
 * @param {{columns?: number, scale?: number, gap?: number}} options
 */
export function sheet(canvases, { columns = Math.ceil(Math.sqrt(canvases.length)), scale = 4, gap = 2 } = {}) {
  const [width, height] = [canvases[0].width * scale, canvases[0].height * scale];
  const rows = Math.ceil(canvases.length / columns);
  const whole = document.createElement("canvas");
  whole.width = columns * (width + gap) - gap;
  whole.height = rows * (height + gap) - gap;
  const context = whole.getContext("2d");
  context.imageSmoothingEnabled = false;
  for (const [i, canvas] of canvases.entries()) {
    const [row, column] = [Math.floor(i / columns), i % columns];
    context.drawImage(canvas, column * (width + gap), row * (height + gap), width, height);
  }
  return whole;
}
