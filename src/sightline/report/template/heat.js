// Attention over a picture: one row of a map, or the mean of its rows, drawn cell by cell in the colours of the ramp.

function rampBytes(codes) {
  const stops = codes.map((code) => [1, 3, 5].map((at) => parseInt(code.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), low = Math.floor(at), high = Math.min(low + 1, stops.length - 1);
    return stops[low].map((v, k) => Math.round(v + (stops[high][k] - v) * (at - low)));
  });
}

function mapBytes(map) {
  if (!map.bytes) map.bytes = Uint8Array.from(atob(map.values), (c) => c.charCodeAt(0));
  return map.bytes;
}

// The row of a token; null where it has none (it was not sampled, or the map has a single row for the whole reply).
function mapRow(map, token) {
  const row = token === null || map.rows === 1 ? null : Math.floor(token / map.every);
  return row !== null && map.scale[row] > 0 ? row : null;
}

// Attention to each visual cell of all images: at a token, or the mean over the reply.
function mapWeights(map, token) {
  const bytes = mapBytes(map), visual = bytes.length / map.rows, row = mapRow(map, token);
  const rows = row !== null ? [row] : map.scale.map((_, i) => i).filter((i) => map.scale[i] > 0);
  const weights = new Float64Array(visual);
  for (const i of rows) for (let k = 0; k < visual; k++) weights[k] += (bytes[i * visual + k] / 255) * map.scale[i] / rows.length;
  return weights;
}

// Share of the attention to the images that falls on cells of the target (the gold regions).
function shareOn(target, weights) {
  if (!target) return null;
  const bytes = mapBytes(target);
  let on = 0, all = 0;
  for (let k = 0; k < weights.length; k++) { all += weights[k]; if (bytes[k]) on += weights[k]; }
  return all > 0 ? on / all : null;
}

// One image's part of a map as a canvas that lies over the picture.
class HeatLayer {
  constructor(map, image, ramp) {
    Object.assign(this, { map, image, ramp });
    const [rows, columns] = map.grid[image];
    this.first = map.grid.slice(0, image).reduce((sum, [r, c]) => sum + r * c, 0);
    this.node = element("canvas", { class: "heat", width: columns, height: rows });
    this.draw(null);
  }

  draw(token) {
    const { width, height } = this.node, paper = this.node.getContext("2d"), pixels = paper.createImageData(width, height);
    this.weights = mapWeights(this.map, token);
    const most = this.weights.reduce((a, b) => Math.max(a, b), 0) || 1;
    for (let k = 0; k < width * height; k++) {
      const [r, g, b] = this.ramp[Math.round(255 * Math.min(1, this.weights[this.first + k] / most))];
      pixels.data.set([r, g, b, 255], 4 * k);
    }
    paper.putImageData(pixels, 0, 0);
  }

  // The value under the pointer, given as shares of the picture's width and height.
  valueAt(x, y) {
    const { width, height } = this.node;
    const column = Math.min(width - 1, Math.max(0, Math.floor(x * width))), row = Math.min(height - 1, Math.max(0, Math.floor(y * height)));
    return this.weights[this.first + row * width + column];
  }
}

// The ramp with its ends named, for the key below a picture.
function rampKey(ramp, low, high) {
  const node = element("canvas", { class: "ramp", width: ramp.length, height: 1 });
  const paper = node.getContext("2d"), pixels = paper.createImageData(ramp.length, 1);
  ramp.forEach((colour, i) => pixels.data.set([...colour, 255], 4 * i));
  paper.putImageData(pixels, 0, 0);
  return element("span", { class: "ramp-key" }, element("span", { text: low }), node, element("span", { text: high }));
}

// A canvas over a picture tells its value under the pointer, unless a box there has something to say.
function tellValues(frame, surface, layer) {
  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const value = layer.valueAt((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    surface.dataset.hint = `attention ${number(value, 3)}`;
  }, { capture: true });
}
