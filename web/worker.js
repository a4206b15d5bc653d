// The model in a worker, so that the page stays awake: photos in, matches out.
//
// Messages are {id, verb, ...arguments}; each is answered by {id, result} or {id, error}. While files are loaded
// {loaded, total} tells how many bytes there are.

import { InputError, batch, decode, prepare, toPhoto } from "./pixels.js";

const LIBRARIES = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};
const SHOWN = 1600; // pixels of the longer side of a photo on the page

const processor = fetchFile("model/preprocessor_config.json").then((response) => response.json());
processor.catch(() => {}); // said by whoever awaits it
const photos = [null, null];
const turns = [0, 0]; // photos that were chosen for each place: the last one counts, whichever is decoded last
let loading; // the model, once `load` was called
const progress = { loaded: 0, total: 0 };

const verbs = {
  /** The model loaded: `{engine, threads, model}`. `engine` is "wasm" or "webgpu". */
  load({ engine, threads }) {
    loading = load(engine, threads);
    return loading.then(({ about }) => about);
  },

  /** A photo read and prepared: `{bitmap, width, height}`, the bitmap to be shown; null if another one came since. */
  async photo({ place, file }) {
    const turn = ++turns[place];
    photos[place] = null;
    let bitmap;
    try {
      bitmap = await decode(file, file.name ?? "The picture");
    } catch (error) {
      if (turn !== turns[place]) return null;
      throw error;
    }
    const photo = { width: bitmap.width, height: bitmap.height, ...scaled(bitmap) };
    const start = performance.now();
    const prepared = prepare(bitmap, await processor);
    const seconds = (performance.now() - start) / 1e3;
    const shown = await createImageBitmap(bitmap, { ...photo.shown, resizeQuality: "high" });
    bitmap.close();
    if (turn !== turns[place]) return null;
    photos[place] = { width: photo.width, height: photo.height, prepared, seconds };
    return { bitmap: shown, width: photo.width, height: photo.height };
  },

  /**
   * The two photos matched; `keypoints0`, `keypoints1` are (x, y) after (x, y) in pixels of the photos. null while one of
   * them is being read, after which it will be asked again.
   */
  async match() {
    const { session, Tensor } = await loading;
    const [first, second] = photos;
    if (!first || !second) return null;
    const { values, height, width } = batch([first.prepared, second.prepared], await processor);
    const feeds = { pixel_values: new Tensor("float32", values, [1, 2, 3, height, width]) };
    if (session.inputNames.includes("image_sizes")) {
      const sizes = [first, second].flatMap(({ prepared }) => [prepared.height, prepared.width]);
      feeds.image_sizes = new Tensor("int64", BigInt64Array.from(sizes, BigInt), [1, 2, 2]);
    }
    const start = performance.now();
    const found = await session.run(feeds);
    const seconds = (performance.now() - start) / 1e3;
    return { ...matched(found, [first, second]), seconds, preparing: first.seconds + second.seconds };
  },
};

async function load(engine, threads) {
  if (engine === "webgpu" && !(await navigator.gpu?.requestAdapter())) {
    throw new InputError("This browser has no WebGPU here.");
  }
  if (!(engine in LIBRARIES)) throw new InputError(`There is no engine ${engine}: it is wasm or webgpu.`);
  const [library, binary] = LIBRARIES[engine];
  const [{ InferenceSession, Tensor, env }, model, wasm, graph] = await Promise.all([
    import(`./ort/${library}`),
    fetchFile("model/about.json").then((response) => response.json()),
    download(`ort/${binary}`),
    download("model/model.onnx"),
  ]);
  env.wasm.wasmBinary = wasm.buffer;
  env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
  const session = await InferenceSession.create(graph, { executionProviders: [engine] });
  return { session, Tensor, about: { engine, threads: env.wasm.numThreads, model } };
}

/** What the graph found, as points of the photos; the best match last. */
function matched(found, pair) {
  const { matches, matching_scores: scores, keypoints, mask } = found;
  const n = mask.dims.at(-1);
  const exists = (image, i) => mask.data[image * n + i] > 0;
  const counts = [0, 1].map((image) => mask.data.subarray(image * n, (image + 1) * n).reduce((a, b) => a + b, 0));
  const rows = [];
  for (let i = 0; i < n; i++) {
    const partner = Number(matches.data[i]);
    if (partner >= 0 && exists(0, i) && exists(1, partner) && scores.data[i] > 0) rows.push([i, partner]);
  }
  rows.sort(([i], [j]) => scores.data[i] - scores.data[j]);
  const points = pair.map(({ prepared, width, height }, image) =>
    Float32Array.from(
      rows.flatMap((row) => {
        const place = 2 * (image * n + row[image]);
        return [
          toPhoto(keypoints.data[place], prepared.width, width),
          toPhoto(keypoints.data[place + 1], prepared.height, height),
        ];
      }),
    ),
  );
  return {
    keypoints0: points[0],
    keypoints1: points[1],
    scores: Float32Array.from(rows, ([i]) => scores.data[i]),
    counts,
    stop: Number(found.stop?.data[0] ?? 0),
  };
}

/** The size at which a photo is shown. */
function scaled({ width, height }) {
  const scale = Math.min(1, SHOWN / Math.max(width, height));
  const side = (value) => Math.max(1, Math.round(value * scale));
  return { shown: { resizeWidth: side(width), resizeHeight: side(height) } };
}

// --------------------------------------------------------------------------------------------------------------------
// Files and messages

async function fetchFile(path) {
  const response = await fetch(new URL(path, self.location)).catch(() => null);
  if (!response?.ok) throw new InputError(`${path} cannot be loaded (${response?.status ?? "no connection"}).`);
  return response;
}

/** The bytes of a file, their number told while they come. */
async function download(path) {
  const response = await fetchFile(path);
  progress.total += Number(response.headers.get("Content-Length") ?? 0);
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    progress.loaded += value.length;
    self.postMessage({ ...progress });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** A sentence about what went wrong. */
function explain(error) {
  if (error instanceof InputError) return error.message;
  const text = String(error?.message ?? error);
  if (/bad_alloc|memory|allocation|array buffer/i.test(text)) {
    return `This browser has not enough memory for it: close other pages, reload this one, or take smaller photos.`;
  }
  return `That did not work: ${text}`;
}

self.onmessage = async ({ data: { id, verb, ...given } }) => {
  try {
    const result = await verbs[verb](given);
    self.postMessage({ id, result }, result?.bitmap ? [result.bitmap] : []);
  } catch (error) {
    console.error(error);
    self.postMessage({ id, error: explain(error) });
  }
};
