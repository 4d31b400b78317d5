// A small line chart: nice axes, values on hover, interval bands, a mark at the step that is shown below.

function niceTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-6; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) return [0, 1];
  if (low === high) { const pad = Math.abs(low) * 0.1 || 0.5; return [low - pad, high + pad]; }
  return [low, high];
}

// An exponential mean whose memory grows with the length of the run.
function smoothed(points) {
  const keep = 1 - 1 / Math.max(1, points.length / 14);
  let value = null, weight = 0;
  return points.map(([x, y]) => {
    if (!Number.isFinite(y)) return [x, y];
    value = (value === null ? 0 : value * keep) + y * (1 - keep);
    weight = weight * keep + (1 - keep);
    return [x, value / weight];
  });
}

function path(points, x, y) {
  let text = "", isPen = false;
  for (const [px, py] of points) {
    if (!Number.isFinite(py)) { isPen = false; continue; }
    text += `${isPen ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
    isPen = true;
  }
  return text;
}

function bandPath(points, x, y) {
  const kept = points.filter((p) => Number.isFinite(p[2]) && Number.isFinite(p[3]));
  if (kept.length < 2) return "";
  const up = kept.map((p) => `${x(p[0]).toFixed(1)} ${y(p[3]).toFixed(1)}`);
  const down = kept.slice().reverse().map((p) => `${x(p[0]).toFixed(1)} ${y(p[2]).toFixed(1)}`);
  return `M${up.join("L")}L${down.join("L")}Z`;
}

// chart: {title, sentence, isShare, hasKeys, across (what x counts; steps by default), lines: [{name, colour, points: [[x, y, low, high]], isExact}]}
class Chart {
  constructor(chart, pick) {
    this.chart = chart;
    this.pick = pick;
    this.step = null;
    this.svg = shape("svg", { class: "chart", role: "img", "aria-label": chart.title });
    const title = element("div", { class: "panel-title", hint: chart.sentence }, element("b", { text: chart.title }), element("span", { text: chart.note || "" }));
    this.area = element("div", { class: "area" }, this.svg);
    const keys = chart.hasKeys ? element("div", { class: "panel-keys" }, ...chart.lines.map((line) => element("span", { class: `c${line.colour % 6}` }, element("span", { class: "dot" }), document.createTextNode(line.name)))) : null;
    this.node = element("div", { class: "panel" }, title, keys, this.area);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => { this.cross.setAttribute("visibility", "hidden"); hint.hide(); });
    this.svg.addEventListener("click", (event) => { const near = this.nearest(event); if (near !== null && this.pick) this.pick(near); });
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  scales(width, height) {
    const { lines, isShare } = this.chart;
    const all = lines.flatMap((line) => line.points);
    const [x0, x1] = extent(all.map((p) => p[0]));
    let [y0, y1] = extent(all.flatMap((p) => p.slice(1)));
    const pad = (y1 - y0) * 0.06;
    y0 -= pad; y1 += pad;
    if (isShare) { y0 = Math.max(y0, 0); y1 = Math.min(y1, 1); if (y1 <= y0) { y0 = 0; y1 = 1; } }
    const labels = niceTicks(y0, y1, Math.max(3, height / 34)).map((v) => this.label(v).length);
    const left = Math.max(34, 10 + 6.2 * Math.max(...labels, 0)), right = width - 8, top = 8, bottom = height - 18;
    const x = (v) => left + ((v - x0) / (x1 - x0)) * (right - left);
    const y = (v) => bottom - ((v - y0) / (y1 - y0)) * (bottom - top);
    const back = (px) => x0 + ((px - left) / (right - left)) * (x1 - x0);
    return { x, y, back, x0, x1, y0, y1, left, right, top, bottom };
  }

  draw() {
    const width = Math.round(this.area.clientWidth), height = Math.round(this.area.clientHeight);
    if (!width || !height) return;
    const s = (this.scale = this.scales(width, height));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const v of niceTicks(s.y0, s.y1, Math.max(3, height / 34))) {
      parts.push(shape("line", { class: "grid", x1: s.left, x2: s.right, y1: s.y(v), y2: s.y(v) }));
      parts.push(shape("text", { x: s.left - 6, y: s.y(v) + 3.5, "text-anchor": "end", text: this.label(v) }));
    }
    for (const v of niceTicks(s.x0, s.x1, width / 90)) {
      if (!Number.isInteger(v)) continue;
      const anchor = s.x(v) > s.right - 10 ? "end" : s.x(v) < s.left + 6 ? "start" : "middle";
      parts.push(shape("text", { x: s.x(v), y: height - 3, "text-anchor": anchor, text: number(v) }));
    }
    parts.push(shape("line", { class: "axis", x1: s.left, x2: s.right, y1: s.bottom, y2: s.bottom }));
    this.here = shape("line", { class: "here", y1: s.top, y2: s.bottom, visibility: "hidden" });
    this.cross = shape("line", { class: "cross", y1: s.top, y2: s.bottom, visibility: "hidden" });
    parts.push(this.here, ...this.chart.lines.map((line) => this.line(line, s)), this.cross);
    this.svg.replaceChildren(...parts);
    this.mark(this.step);
  }

  line(line, s) {
    const group = shape("g", { class: `c${line.colour % 6}` });
    const points = line.isExact ? line.points : smoothed(line.points);
    if (line.isExact) group.append(shape("path", { class: "band", d: bandPath(line.points, s.x, s.y) }));
    else if (line.points.length > 8) group.append(shape("path", { class: "raw", d: path(line.points, s.x, s.y) }));
    group.append(shape("path", { class: "line", d: path(points, s.x, s.y) }));
    const drawn = points.filter((p) => Number.isFinite(p[1]));
    if (line.isExact) for (const p of drawn) group.append(shape("circle", { class: "spot", r: 3, cx: s.x(p[0]), cy: s.y(p[1]) }));
    else if (drawn.length) { const p = drawn[drawn.length - 1]; group.append(shape("circle", { class: "end", r: 3, cx: s.x(p[0]), cy: s.y(p[1]) })); }
    return group;
  }

  label(value) {
    return this.chart.isShare ? `${number(100 * value, 3)}%` : number(value, 3);
  }

  nearest(event) {
    const box = this.svg.getBoundingClientRect();
    const at = this.scale.back(event.clientX - box.left);
    let best = null;
    for (const line of this.chart.lines) for (const [x, y] of line.points) {
      if (Number.isFinite(y) && (best === null || Math.abs(x - at) < Math.abs(best - at))) best = x;
    }
    return best;
  }

  point(event) {
    const at = this.scale ? this.nearest(event) : null;
    if (at === null) return;
    this.cross.setAttribute("x1", this.scale.x(at));
    this.cross.setAttribute("x2", this.scale.x(at));
    this.cross.setAttribute("visibility", "visible");
    const rows = [element("div", { class: "title", text: `${this.chart.across || "step"} ${at}` })];
    for (const line of this.chart.lines) {
      const p = line.points.find(([x, y]) => x === at && Number.isFinite(y));
      if (!p) continue;
      const range = p.length > 2 && p[2] !== p[3] ? ` [${this.label(p[2])}, ${this.label(p[3])}]` : "";
      const name = element("span", {}, element("span", { class: "dot" }), document.createTextNode(line.name));
      rows.push(element("div", { class: `row c${line.colour % 6}` }, name, element("b", { text: this.label(p[1]) + range })));
    }
    hint.show(rows, event.clientX, event.clientY);
  }

  mark(step) {
    this.step = step;
    if (!this.here || step === null || step === undefined) return;
    const s = this.scale, isInside = step >= s.x0 && step <= s.x1;
    this.here.setAttribute("visibility", isInside ? "visible" : "hidden");
    if (isInside) { this.here.setAttribute("x1", s.x(step)); this.here.setAttribute("x2", s.x(step)); }
  }
}
