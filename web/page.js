// The page: photos come in by drop, paste, or choice, and the matches are drawn. The work is done in worker.js.

const $ = (id) => document.getElementById(id);
const address = new URLSearchParams(location.search); // ?engine=wasm or webgpu, ?threads=1
const NARROW = 640; // pixels of the drawing, below which the photos stand one above the other
const GAP = 8; // pixels between them
const COLOURS = [[237, 28, 36], [255, 204, 26], [26, 212, 71]]; // of a low, a middle and a high score

const photos = [null, null]; // {name, bitmap, width, height}
let found = null; // what the worker found in them
let about = null; // the model
let matching = false;
let outdated = false; // another photo came while two were being matched
let busy = 0; // photos that are being read or matched

// --------------------------------------------------------------------------------------------------------------------
// The worker

await isolate();
const worker = new Worker("worker.js", { type: "module" });
const asked = new Map();

function ask(verb, given = {}) {
  return new Promise((resolve, reject) => {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    asked.set(id, { resolve, reject });
    worker.postMessage({ id, verb, ...given });
  });
}

worker.onmessage = ({ data: { id, result, error, loaded, total } }) => {
  if (!id) return showProgress(loaded, total);
  const { resolve, reject } = asked.get(id);
  asked.delete(id);
  error ? reject(error) : resolve(result);
};
worker.onerror = (event) => fail(`The page could not start: ${event.message ?? "a file of it cannot be loaded"}.`);

/** Threads are for pages that are isolated from others: where the server does not say so, a service worker does. */
async function isolate() {
  if (crossOriginIsolated || address.get("threads") === "1" || !navigator.serviceWorker) return;
  try {
    if (sessionStorage.getItem("isolated")) return; // it was tried, and did not help
    sessionStorage.setItem("isolated", "tried");
    if (!(await navigator.serviceWorker.register("isolation.js"))) return;
    await Promise.race([navigator.serviceWorker.ready, new Promise((resolve) => setTimeout(resolve, 3000))]);
  } catch {
    return; // not allowed here
  }
  location.reload();
  await new Promise(() => {});
}

function threads() {
  const cores = navigator.hardwareConcurrency ?? 1;
  return Number(address.get("threads")) || Math.min(8, cores, Math.max(2, cores / 2));
}

// --------------------------------------------------------------------------------------------------------------------
// What is said

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

function showProgress(loaded, total) {
  $("loading").hidden = false;
  if (total >= loaded) $("loading").value = loaded / total;
  else $("loading").removeAttribute("value");
  say(`Loading the model: ${megabytes(loaded)} of ${megabytes(Math.max(loaded, total))} MB`);
}

function say(text) {
  $("status").textContent = text;
}

function sayReady() {
  say(about ? `Ready: ${engineName()}` : "");
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function describe() {
  const { seconds, preparing, counts, stop } = found;
  const layers = stop ? `, ${stop} of ${about.model.layers} layers` : "";
  const parts = [
    `${Math.round(seconds * 1e3)} ms to match, ${Math.round(preparing * 1e3)} ms to scale the photos`,
    `${counts[0]} and ${counts[1]} keypoints${layers}`,
    engineName(),
  ];
  return parts.join(" · ");
}

function engineName() {
  const on = about.engine === "webgpu" ? "WebGPU (experimental)" : `WebAssembly, ${about.threads} thread${about.threads > 1 ? "s" : ""}`;
  return `${about.model.name} on ${on}`;
}

// --------------------------------------------------------------------------------------------------------------------
// Photos

async function take(place, file) {
  fail("");
  working(1);
  const card = $(`card${place}`);
  card.classList.add("busy");
  try {
    const photo = await ask("photo", { place, file });
    if (!photo) return; // another one was chosen since
    photos[place]?.bitmap.close();
    photos[place] = { name: file.name ?? "picture", ...photo };
    showCard(place);
    await match();
  } catch (text) {
    fail(text);
    photos[place] = null;
    outdated = true; // what is found of the photo that was there before
    showCard(place);
    clear();
  } finally {
    card.classList.remove("busy");
    working(-1);
  }
}

/** For those who do not see the page, and for its tests. */
function working(change) {
  busy += change;
  document.querySelector("main").setAttribute("aria-busy", busy > 0);
}

function showCard(place) {
  const photo = photos[place];
  const preview = $(`preview${place}`);
  $(`card${place}`).classList.toggle("filled", Boolean(photo));
  $(`name${place}`).textContent = photo ? `${photo.name}, ${photo.width} × ${photo.height}` : "";
  if (!photo) return;
  const scale = Math.min(1, 480 / Math.max(photo.bitmap.width, photo.bitmap.height));
  preview.width = Math.max(1, photo.bitmap.width * scale);
  preview.height = Math.max(1, photo.bitmap.height * scale);
  preview.getContext("2d").drawImage(photo.bitmap, 0, 0, preview.width, preview.height);
}

/** Several at once fill both places; one goes to its place, or to the first that is empty. */
function takeAll(files, place = null) {
  if (files.length >= 2) return [0, 1].forEach((i) => take(i, files[i]));
  if (files.length) take(place ?? Math.max(0, photos.indexOf(null)), files[0]);
}

function clear() {
  found = null;
  $("result").hidden = true;
}

async function match() {
  if (!photos[0] || !photos[1]) return;
  outdated = matching;
  if (matching) return;
  matching = true;
  clear();
  try {
    do {
      outdated = false;
      if (about) say("Matching ...");
      const answer = await ask("match");
      if (!outdated) found = answer;
    } while (outdated && photos[0] && photos[1]);
    if (found) show();
    else sayReady();
  } catch (text) {
    fail(text);
    sayReady();
  } finally {
    matching = false;
  }
}

// --------------------------------------------------------------------------------------------------------------------
// Matches

function show() {
  say(describe());
  $("result").hidden = false;
  draw();
}

/** The first match whose score is above the threshold; they are in order. */
function firstShown() {
  const threshold = Number($("threshold").value);
  const first = found.scores.findIndex((score) => score > threshold);
  return first < 0 ? found.scores.length : first;
}

function colourOf(score) {
  const place = 2 * Math.min(1, Math.max(0, score));
  const [low, high] = place < 1 ? COLOURS : COLOURS.slice(1);
  return low.map((value, i) => Math.round(value + (place % 1 || (place === 2 ? 1 : 0)) * (high[i] - value))).join(" ");
}

/** Where the photos go on a drawing `width` pixels wide: `{height, places: [{left, top, width, height}, ...]}`. */
function layout(width) {
  const sizes = photos.map(({ bitmap }) => bitmap);
  if (width < NARROW) {
    const heights = sizes.map((size) => (width * size.height) / size.width);
    const tops = [0, heights[0] + GAP];
    return {
      height: tops[1] + heights[1],
      places: heights.map((height, i) => ({ left: 0, top: tops[i], width, height })),
    };
  }
  const aspects = sizes.map((size) => size.width / size.height);
  const height = Math.min((width - GAP) / (aspects[0] + aspects[1]), Math.max(320, 0.8 * innerHeight));
  const widths = aspects.map((aspect) => aspect * height);
  const left = (width - GAP - widths[0] - widths[1]) / 2;
  return {
    height,
    places: widths.map((own, i) => ({ left: left + i * (widths[0] + GAP), top: 0, width: own, height })),
  };
}

function draw() {
  if (!found) return;
  const canvas = $("drawing");
  const width = canvas.parentElement.clientWidth;
  const { height, places } = layout(width);
  const density = Math.min(2, devicePixelRatio || 1);
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  places.forEach(({ left, top, width, height }, i) => context.drawImage(photos[i].bitmap, left, top, width, height));

  const first = firstShown();
  const count = found.scores.length - first;
  const ends = [found.keypoints0, found.keypoints1].map((points, image) => (i) => {
    const { left, top, width, height } = places[image];
    const [x, y] = points.subarray(2 * i, 2 * i + 2);
    return [left + ((x + 0.5) * width) / photos[image].width, top + ((y + 0.5) * height) / photos[image].height];
  });
  const scale = Math.min(1, width / NARROW); // many lines on a small drawing must leave the photos visible
  const opacity = scale * Math.min(0.9, Math.max(0.15, 6 / Math.sqrt(count)));
  context.lineWidth = 1.2;
  for (let i = first; i < found.scores.length; i++) {
    context.strokeStyle = `rgb(${colourOf(found.scores[i])} / ${opacity})`;
    context.beginPath();
    ends.forEach((end) => context.lineTo(...end(i)));
    context.stroke();
  }
  context.strokeStyle = "rgb(0 0 0 / 60%)";
  context.lineWidth = 0.6;
  for (let i = first; i < found.scores.length; i++) {
    context.fillStyle = `rgb(${colourOf(found.scores[i])})`;
    for (const end of ends) {
      context.beginPath();
      context.arc(...end(i), 1 + 1.2 * scale, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }
  const total = found.scores.length;
  $("count").textContent = count === total ? `${total} matches` : `${count} of ${total} matches`;
  $("above").textContent = Number($("threshold").value).toFixed(2);
  canvas.setAttribute("aria-label", `${count} matches between ${photos[0].name} and ${photos[1].name}`);
}

/** The matches that are shown, with the names that `lightglue-hf match --json` gives them. */
function toJSON() {
  const first = firstShown();
  const pairs = (points) => Array.from(found.scores.subarray(first), (_, i) => Array.from(points.subarray(2 * (first + i), 2 * (first + i) + 2)));
  return {
    images: photos.map(({ name }) => name),
    image_sizes: photos.map(({ height, width }) => [height, width]),
    model: about.model.name,
    engine: engineName(),
    seconds: found.seconds,
    keypoints0: pairs(found.keypoints0),
    keypoints1: pairs(found.keypoints1),
    matching_scores: Array.from(found.scores.subarray(first)),
  };
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(toJSON())], { type: "application/json" }));
  link.download = "matches.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --------------------------------------------------------------------------------------------------------------------
// What a person does

async function takeExample() {
  try {
    const files = ["left.jpg", "right.jpg"].map(async (name) => {
      const response = await fetch(`example/${name}`);
      if (!response.ok) throw new Error(response.status);
      return new File([await response.blob()], name);
    });
    takeAll(await Promise.all(files));
  } catch (error) {
    fail(`The example cannot be loaded (${error.message}).`);
  }
}

for (const place of [0, 1]) {
  $(`file${place}`).addEventListener("change", (event) => {
    takeAll([...event.target.files], place);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.querySelectorAll(".card").forEach((card) => card.classList.toggle("over", card.contains(event.target)));
});
const leave = () => document.querySelectorAll(".card").forEach((card) => card.classList.remove("over"));
document.addEventListener("dragleave", (event) => event.relatedTarget ?? leave());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  leave();
  const card = event.target.closest?.(".card");
  takeAll([...event.dataTransfer.files], card ? Number(card.dataset.place) : null);
});
document.addEventListener("paste", (event) => takeAll([...event.clipboardData.files]));
$("example").addEventListener("click", takeExample);
$("save").addEventListener("click", save);
$("threshold").addEventListener("input", draw);
new ResizeObserver(draw).observe($("result"));

try {
  say("Loading the model ...");
  about = await ask("load", { engine: address.get("engine") ?? "wasm", threads: threads() });
  if (!found) say(matching ? "Matching ..." : `Ready: ${engineName()}`);
} catch (text) {
  say("");
  fail(text);
} finally {
  $("loading").hidden = true;
}
