// Photos to what the model takes, and points back to the photos: the arithmetic of LightGlueImageProcessor.
//
// Sizes are {height, width}; points are (x, y) in pixels, the centre of the first pixel is (0, 0).

export const MAX_MEGAPIXELS = 64;
const STRIP = 128; // rows of a photo that are read at once, so that no canvas is as large as the photo
const WEIGHT_BITS = 22; // of the fraction of a weight: those that Pillow's resize of 8-bit values has

/** An error that is meant to be read by who uses the page. */
export class InputError extends Error {}

/**
 * A file decoded, upright by its EXIF orientation, its colours as they are stored.
 *
 * Raises an InputError for what is no picture, or too large.
 */
export async function decode(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new InputError(`${name} is no picture that this browser can read.`);
  }
  const megapixels = (bitmap.width * bitmap.height) / 1e6;
  if (megapixels > MAX_MEGAPIXELS) {
    bitmap.close();
    throw new InputError(`${name} has ${megapixels.toFixed(1)} megapixels; ${MAX_MEGAPIXELS} is the most.`);
  }
  return bitmap;
}

/** The size after the resize that preprocessor_config.json asks for, at least 1 pixel. */
export function resizedShape({ height, width }, processor) {
  if (processor.do_resize === false) return { height, width };
  if (!processor.longest_edge) return processor.size;
  const scale = processor.longest_edge / Math.max(height, width);
  return { height: Math.max(1, roundHalfEven(height * scale)), width: Math.max(1, roundHalfEven(width * scale)) };
}

/** As Python rounds. */
function roundHalfEven(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

/**
 * For each place of a resized axis the window of the old one that it is the mean of, by a triangle.
 *
 * Pillow's BILINEAR (src/libImaging/Resample.c): the triangle is as wide as the axis shrinks, so that nothing aliases,
 * and weights are whole numbers of 2^-22. Values are the same or, where Pillow 13 takes the other axis first, one of 255
 * away.
 */
function windows(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const size = Math.ceil(support) * 2 + 1;
  const [starts, counts, weights] = [new Int32Array(to), new Int32Array(to), new Int32Array(to * size)];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const triangle = [];
    for (let j = start; j < end; j++) {
      triangle.push(Math.max(0, 1 - Math.abs((j - centre + 0.5) * (1 / support))));
    }
    const sum = triangle.reduce((a, b) => a + b, 0);
    triangle.forEach((weight, j) => (weights[i * size + j] = Math.trunc(0.5 + (weight / sum) * 2 ** WEIGHT_BITS)));
    starts[i] = start;
    counts[i] = end - start;
  }
  return { starts, counts, weights, size };
}

/**
 * 8-bit values resized along one axis.
 *
 * `source` has `lines` lines of values that lie `step` apart, the lines `lineStep` apart; likewise `target`.
 */
function resample(source, target, lines, { starts, counts, weights, size }, from, to) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < starts.length; i++) {
      let sum = 1 << (WEIGHT_BITS - 1);
      let place = from.offset + line * from.lineStep + starts[i] * from.step;
      for (let j = 0, k = i * size; j < counts[i]; j++, k++, place += from.step) sum += source[place] * weights[k];
      target[to.offset + line * to.lineStep + i * to.step] = sum >> WEIGHT_BITS;
    }
  }
}

/** Three planes of 8-bit values of a bitmap resized, first its rows and then its columns. */
export function resize(bitmap, { height, width }) {
  const rows = new Uint8Array(3 * bitmap.height * width);
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(STRIP, bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const across = windows(bitmap.width, width);
  for (let top = 0; top < bitmap.height; top += STRIP) {
    const count = Math.min(STRIP, bitmap.height - top);
    context.fillStyle = "white"; // behind what is transparent
    context.fillRect(0, 0, bitmap.width, count);
    context.drawImage(bitmap, 0, top, bitmap.width, count, 0, 0, bitmap.width, count);
    const { data } = context.getImageData(0, 0, bitmap.width, count);
    for (let channel = 0; channel < 3; channel++) {
      const from = { offset: channel, lineStep: 4 * bitmap.width, step: 4 };
      const to = { offset: (channel * bitmap.height + top) * width, lineStep: width, step: 1 };
      resample(data, rows, count, across, from, to);
    }
  }
  const planes = new Uint8Array(3 * height * width);
  const down = windows(bitmap.height, height);
  for (let channel = 0; channel < 3; channel++) {
    const from = { offset: channel * bitmap.height * width, lineStep: 1, step: width };
    const to = { offset: channel * height * width, lineStep: 1, step: width };
    resample(rows, planes, width, down, from, to);
  }
  return planes;
}

/** Three planes of 8-bit values as float32, rescaled, and grey where they have colours and the processor says so. */
export function normalise(planes, processor) {
  const { fround } = Math;
  const factor = processor.do_rescale === false ? 1 : processor.rescale_factor;
  const values = Float32Array.from(planes, (value) => value * factor);
  const n = values.length / 3;
  const [red, green, blue] = [0, 1, 2].map((channel) => values.subarray(channel * n, (channel + 1) * n));
  const isGrey = () => red.every((value, i) => value === green[i] && value === blue[i]);
  if (processor.do_grayscale && !isGrey()) {
    const [r, g, b] = [0.2989, 0.587, 0.114].map(fround);
    for (let i = 0; i < n; i++) {
      red[i] = fround(fround(red[i] * r) + fround(green[i] * g)) + fround(blue[i] * b);
    }
    green.set(red);
    blue.set(red);
  }
  return values;
}

/** A bitmap as the model takes it: `{values: float32 of three planes, height, width}`. */
export function prepare(bitmap, processor) {
  const shape = resizedShape(bitmap, processor);
  return { values: normalise(resize(bitmap, shape), processor), ...shape };
}

/**
 * Two prepared images as one array `(1, 2, 3, height, width)`, zeros to the right and below each.
 *
 * Padded to a multiple of the processor's `size_divisor` where images may differ in size, as in Python.
 */
export function batch(images, processor) {
  let [height, width] = ["height", "width"].map((side) => Math.max(...images.map((image) => image[side])));
  if (processor.longest_edge || images.some((image) => image.height !== height || image.width !== width)) {
    const divisor = processor.size_divisor ?? 8;
    [height, width] = [height, width].map((side) => Math.ceil(side / divisor) * divisor);
  }
  const values = new Float32Array(6 * height * width);
  images.forEach((image, i) => {
    for (let row = 0; row < 3 * image.height; row++) {
      const plane = 3 * i + Math.floor(row / image.height);
      const start = (plane * height + (row % image.height)) * width;
      values.set(image.values.subarray(row * image.width, (row + 1) * image.width), start);
    }
  });
  return { values, height, width };
}

/** A coordinate relative to an image's side, in pixels of the photo's: resizing keeps the borders in place. */
export function toPhoto(relative, side, photoSide) {
  return Math.fround(((relative * side + 0.5) * photoSide) / side - 0.5);
}
