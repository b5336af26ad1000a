// One radiograph in a canvas: 16-bit grey, window, zoom and inversion are computed here.
"use strict";

const viewer = document.getElementById("viewer");
const canvas = document.getElementById("image");
const context = canvas.getContext("2d");
const message = document.getElementById("message");
const overlay = document.getElementById("overlay");
const invert = document.getElementById("invert");
let image = null; // {columns, rows, values, bitmap}
let level = 0.5, width = 1, zoom = 1, left = 0, top_ = 0, asked = 0;

async function load(source) {
  const mine = ++asked;
  image = null;
  message.textContent = "Loading …";
  draw();
  try {
    const answer = await fetch(source);
    if (mine !== asked) return;
    if (!answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      throw new Error(page.querySelector("main p")?.textContent || "The image cannot be shown.");
    }
    const bytes = await answer.arrayBuffer();
    if (mine !== asked) return;
    const [columns, rows] = new Uint16Array(bytes, 0, 2);
    image = { columns, rows, values: new Uint16Array(bytes, 4), bitmap: document.createElement("canvas") };
    image.bitmap.width = columns;
    image.bitmap.height = rows;
    message.textContent = "";
    preset("full");
    fit();
    viewer.dataset.shown = source;
  } catch (error) {
    if (mine === asked) message.textContent = error.message;
  }
}

function quantile(share) {
  const sorted = image.sample ??= Uint16Array.from(image.values.filter((_, at) => at % 37 === 0)).sort();
  return sorted[Math.floor(share * (sorted.length - 1))] / 65535;
}

function preset(name) {
  const ends = {
    full: () => [0, 1],
    contrast: () => [quantile(0.02), quantile(0.98)],
    dark: () => [quantile(0.01), quantile(0.6)],
    bright: () => [quantile(0.4), quantile(0.995)],
  }[name]();
  width = Math.max(0.002, ends[1] - ends[0]);
  level = (ends[0] + ends[1]) / 2;
  render();
}

function render() {
  if (!image) return;
  const table = new Uint8ClampedArray(65536);
  const isInverted = invert.getAttribute("aria-pressed") === "true";
  for (let value = 0; value < 65536; value++) {
    const grey = 255 * ((value / 65535 - level) / width + 0.5);
    table[value] = isInverted ? 255 - grey : grey;
  }
  const shown = new ImageData(image.columns, image.rows);
  for (let at = 0; at < image.values.length; at++) {
    const grey = table[image.values[at]];
    shown.data.set([grey, grey, grey, 255], 4 * at);
  }
  image.bitmap.getContext("2d").putImageData(shown, 0, 0);
  draw();
}

function scale() {
  return zoom * Math.min(canvas.width / image.columns, canvas.height / image.rows);
}

function draw() {
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  overlay.textContent = "";
  if (!image) return;
  const by = scale();
  context.imageSmoothingQuality = "high";
  context.drawImage(image.bitmap, (canvas.width - by * image.columns) / 2 + left, (canvas.height - by * image.rows) / 2 + top_, by * image.columns, by * image.rows);
  const percent = (part) => `${Math.round(100 * part)} %`;
  overlay.textContent = `window ${percent(width)} · level ${percent(level)} · zoom ${zoom.toFixed(1)}`;
}

function fit() {
  [zoom, left, top_] = [1, 0, 0];
  draw();
}

function toggleInvert() {
  invert.setAttribute("aria-pressed", String(invert.getAttribute("aria-pressed") !== "true"));
  render();
}

function zoomBy(factor) {
  zoom = Math.max(0.5, Math.min(16, zoom * factor));
  draw();
}

let waits = false;
canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
canvas.addEventListener("pointermove", (event) => {
  if (!image || !event.buttons) return;
  if (event.shiftKey || event.buttons === 4) {
    left += event.movementX * devicePixelRatio;
    top_ += event.movementY * devicePixelRatio;
    return draw();
  }
  width = Math.max(0.002, Math.min(2, width * Math.exp(event.movementX / 250)));
  level = Math.max(0, Math.min(1, level + (event.movementY / 500) * width));
  if (waits) return;
  waits = true;
  requestAnimationFrame(() => { waits = false; render(); });
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
}, { passive: false });
invert.addEventListener("click", toggleInvert);
document.getElementById("fit").addEventListener("click", fit);
addEventListener("resize", draw);
for (const button of document.querySelectorAll("[data-window]")) {
  button.addEventListener("click", () => image && preset(button.dataset.window));
}
const judged = document.getElementById("judged");
const choices = [...document.querySelectorAll("button[data-source]")];
for (const button of choices) {
  button.addEventListener("click", () => {
    for (const one of choices) one.setAttribute("aria-pressed", String(one === button));
    if (judged) judged.value = button.dataset.image;
    load(button.dataset.source);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const actions = {
    1: () => image && preset("full"), 2: () => image && preset("contrast"),
    3: () => image && preset("dark"), 4: () => image && preset("bright"),
    0: fit, i: toggleInvert, "+": () => zoomBy(1.15), "-": () => zoomBy(1 / 1.15),
    escape: () => document.getElementById("back").click(),
  };
  const verdict = document.querySelector(`button[data-key="${CSS.escape(key)}"]`);
  if (verdict) verdict.click();
  else if (key in actions) actions[key]();
});

if (viewer.dataset.source) load(viewer.dataset.source);
