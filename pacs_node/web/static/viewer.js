// Radiographs in canvases: 16-bit grey, window, zoom and inversion are computed here; so is the heat map.
"use strict";

const LEAST_SCALE = 5; // units of the logit: weak maps look weak
const MAP_SIDE = 160; // pixels of the drawn map; it has no finer detail than its cells
const shared = { inverted: false, map: false, opacity: 0.65 };

class Viewer {
  constructor(element) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.message = element.querySelector(".message");
    this.overlay = element.querySelector(".overlay");
    this.image = null; // {columns, rows, values, bitmap}
    this.map = null; // {cells, reach, bitmap}
    [this.level, this.width, this.zoom, this.left, this.top, this.asked] = [0.5, 1, 1, 0, 0, 0];
    this.listen();
  }

  async load(source, cells) {
    const mine = ++this.asked;
    this.image = null;
    this.map = cells ? heatMap(JSON.parse(cells)) : null;
    this.message.textContent = "Loading …";
    delete this.element.dataset.shown;
    this.draw();
    try {
      const answer = await fetch(source);
      if (mine !== this.asked) return;
      if (!answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        throw new Error(page.querySelector("main p")?.textContent || "The image cannot be shown.");
      }
      const bytes = await answer.arrayBuffer();
      if (mine !== this.asked) return;
      const [columns, rows] = new Uint16Array(bytes, 0, 2);
      this.image = { columns, rows, values: new Uint16Array(bytes, 4), bitmap: document.createElement("canvas") };
      this.image.bitmap.width = columns;
      this.image.bitmap.height = rows;
      this.message.textContent = "";
      this.preset("full");
      this.fit();
      this.element.dataset.shown = source;
    } catch (error) {
      if (mine === this.asked) this.message.textContent = error.message;
    }
  }

  quantile(share) {
    const sorted = this.image.sample ??= Uint16Array.from(this.image.values.filter((_, at) => at % 37 === 0)).sort();
    return sorted[Math.floor(share * (sorted.length - 1))] / 65535;
  }

  preset(name) {
    if (!this.image) return;
    const ends = {
      full: () => [0, 1],
      contrast: () => [this.quantile(0.02), this.quantile(0.98)],
      dark: () => [this.quantile(0.01), this.quantile(0.6)],
      bright: () => [this.quantile(0.4), this.quantile(0.995)],
    }[name]();
    this.width = Math.max(0.002, ends[1] - ends[0]);
    this.level = (ends[0] + ends[1]) / 2;
    this.render();
  }

  render() {
    if (!this.image) return;
    const table = new Uint8ClampedArray(65536);
    for (let value = 0; value < 65536; value++) {
      const grey = 255 * ((value / 65535 - this.level) / this.width + 0.5);
      table[value] = shared.inverted ? 255 - grey : grey;
    }
    const { columns, rows, values, bitmap } = this.image;
    const shown = new ImageData(columns, rows);
    const pixels = new Uint32Array(shown.data.buffer);
    for (let at = 0; at < values.length; at++) pixels[at] = 0xff000000 | (table[values[at]] * 0x010101);
    bitmap.getContext("2d").putImageData(shown, 0, 0);
    this.draw();
  }

  draw() {
    const { canvas, context, image } = this;
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    this.overlay.textContent = "";
    if (!image) return;
    const by = this.zoom * Math.min(canvas.width / image.columns, canvas.height / image.rows);
    const [wide, high] = [by * image.columns, by * image.rows];
    const place = [(canvas.width - wide) / 2 + this.left, (canvas.height - high) / 2 + this.top, wide, high];
    context.imageSmoothingQuality = "high";
    context.drawImage(image.bitmap, ...place);
    if (shared.map && this.map) context.drawImage(coloured(this.map), ...place);
    const percent = (part) => `${Math.round(100 * part)} %`;
    this.overlay.textContent = `window ${percent(this.width)} · level ${percent(this.level)} · zoom ${this.zoom.toFixed(1)}`;
  }

  fit() {
    [this.zoom, this.left, this.top] = [1, 0, 0];
    this.draw();
  }

  zoomBy(factor) {
    this.zoom = Math.max(0.5, Math.min(16, this.zoom * factor));
    this.draw();
  }

  listen() {
    const { canvas } = this;
    let waits = false;
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!this.image || !event.buttons) return;
      if (event.shiftKey || event.buttons === 4) {
        this.left += event.movementX * devicePixelRatio;
        this.top += event.movementY * devicePixelRatio;
        return this.draw();
      }
      this.width = Math.max(0.002, Math.min(2, this.width * Math.exp(event.movementX / 250)));
      this.level = Math.max(0, Math.min(1, this.level + (event.movementY / 500) * this.width));
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => { waits = false; this.render(); });
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
    }, { passive: false });
    addEventListener("resize", () => this.draw());
  }
}

function heatMap(cells) {
  return { cells, reach: Math.max(LEAST_SCALE, ...cells.flat().map(Math.abs)) };
}

// Between the centres of cells linear, beyond the outermost centres constant; no edge that is not there
function valueAt(cells, across, down) {
  const [x, left, right] = between(across * cells[0].length - 0.5, cells[0].length);
  const [y, upper, lower] = between(down * cells.length - 0.5, cells.length);
  const row = (at) => cells[at][left] * (1 - x) + cells[at][right] * x;
  return row(upper) * (1 - y) + row(lower) * y;
}

function between(position, count) {
  const within = Math.max(0, Math.min(count - 1, position));
  const first = Math.min(Math.floor(within), Math.max(0, count - 2));
  return [within - first, first, Math.min(first + 1, count - 1)];
}

// Red for pneumonia, blue against; nothing where the map says nothing
function colour(share, opacity) {
  const strength = Math.min(1, Math.abs(share));
  const [red, green, blue] = share > 0 ? [214, 40, 30] : [40, 110, 220];
  return [red, green, blue, 255 * opacity * strength];
}

function coloured(map) {
  if (map.bitmap && map.opacity === shared.opacity) return map.bitmap;
  const shown = new ImageData(MAP_SIDE, MAP_SIDE);
  for (let row = 0; row < MAP_SIDE; row++) {
    for (let column = 0; column < MAP_SIDE; column++) {
      const value = valueAt(map.cells, (column + 0.5) / MAP_SIDE, (row + 0.5) / MAP_SIDE);
      shown.data.set(colour(value / map.reach, shared.opacity), 4 * (row * MAP_SIDE + column));
    }
  }
  map.bitmap ??= Object.assign(document.createElement("canvas"), { width: MAP_SIDE, height: MAP_SIDE });
  map.bitmap.getContext("2d").putImageData(shown, 0, 0);
  map.opacity = shared.opacity;
  return map.bitmap;
}

const main = new Viewer(document.getElementById("viewer"));
const beside = new Viewer(document.getElementById("beside"));
const both = [main, beside];
const invert = document.getElementById("invert");
const mapButton = document.getElementById("map");
const opacity = document.getElementById("opacity");

function show(element) {
  const { source, map, mapShown } = element.dataset;
  main.load(source, map);
  document.getElementById("map-tools").hidden = !map;
  setMap(mapShown === "true");
}

function setMap(isShown) {
  shared.map = isShown && Boolean(main.map);
  mapButton.setAttribute("aria-pressed", String(shared.map));
  drawScale();
  both.forEach((one) => one.draw());
}

function drawScale() {
  if (!main.map) return;
  const scale = document.getElementById("scale");
  const context = scale.getContext("2d");
  context.fillStyle = "#808080";
  context.fillRect(0, 0, scale.width, scale.height);
  for (let x = 0; x < scale.width; x++) {
    const [red, green, blue, alpha] = colour((2 * (x + 0.5)) / scale.width - 1, shared.opacity);
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha / 255})`;
    context.fillRect(x, 0, 1, scale.height);
  }
  document.getElementById("scale-low").textContent = `−${main.map.reach.toFixed(1)}`;
  document.getElementById("scale-high").textContent = `+${main.map.reach.toFixed(1)}`;
  const { cells } = main.map;
  document.getElementById("map-cells").textContent =
    `It has ${cells.length} × ${cells[0].length} cells; each adds 1/${cells.length * cells[0].length} of its value to the logit.`;
}

function toggleInvert() {
  shared.inverted = !shared.inverted;
  invert.setAttribute("aria-pressed", String(shared.inverted));
  both.forEach((one) => one.render());
}

invert.addEventListener("click", toggleInvert);
mapButton.addEventListener("click", () => setMap(!shared.map));
opacity.addEventListener("input", () => {
  shared.opacity = opacity.value / 100;
  setMap(true);
});
document.getElementById("fit").addEventListener("click", () => both.forEach((one) => one.fit()));
const presets = [...document.querySelectorAll("[data-window]")];
for (const button of presets) {
  button.addEventListener("click", () => both.forEach((one) => one.preset(button.dataset.window)));
}
const judged = document.getElementById("judged");
const choices = [...document.querySelectorAll(".thumbs button[data-source]")];
for (const button of choices) {
  button.addEventListener("click", () => {
    for (const one of choices) one.setAttribute("aria-pressed", String(one === button));
    if (judged) judged.value = button.dataset.image;
    show(button);
  });
}
const priors = [...document.querySelectorAll("[data-beside]")];
for (const button of priors) {
  button.addEventListener("click", () => {
    const isShown = button.getAttribute("aria-pressed") !== "true";
    for (const one of priors) one.setAttribute("aria-pressed", String(one === button && isShown));
    beside.element.hidden = !isShown;
    beside.element.querySelector(".caption").textContent = button.dataset.caption;
    if (isShown) beside.load(button.dataset.source, button.dataset.map);
    main.draw();
  });
}

document.addEventListener("keydown", (event) => {
  const isTyped = event.target.closest("input:not([type=range]), select, textarea");
  if (isTyped || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const at = "1234".indexOf(key);
  const actions = {
    0: () => both.forEach((one) => one.fit()), i: toggleInvert, m: () => setMap(!shared.map),
    "+": () => both.forEach((one) => one.zoomBy(1.15)), "-": () => both.forEach((one) => one.zoomBy(1 / 1.15)),
    b: () => priors[0]?.click(),
    escape: () => document.getElementById("back").click(),
  };
  const verdict = document.querySelector(`button[data-key="${CSS.escape(key)}"]`);
  if (verdict) verdict.click();
  else if (key && at >= 0) presets[at].click();
  else if (key in actions) actions[key]();
});

if (main.element.dataset.source) show(main.element);
