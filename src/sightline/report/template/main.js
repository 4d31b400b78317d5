// The page's state: arm, step, record and rollout, kept in the address so that a view can be linked to.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

const view = {
  data, arm: 0, step: null, record: 0, image: 0, active: -1, open: new Set(),
  ramp: rampBytes(data.ramp), map: "", tint: "advantage", pinned: null, watchers: [], bodyWatchers: {},

  get steps() { return unique(data.arms[this.arm].groups.map((group) => group.step)); },
  get groups() { return data.arms[this.arm].groups.filter((group) => group.step === this.step); },
  get group() { return this.groups[this.record]; },

  // Shows the logged step nearest to the wanted one; keeps the record if that step has it.
  go({ arm = this.arm, step = this.step, record = this.record, id = this.group && this.group.record.id } = {}) {
    this.arm = arm;
    const steps = this.steps;
    if (steps.length) this.step = steps.reduce((best, s) => (step !== null && Math.abs(s - step) < Math.abs(best - step) ? s : best), step === null ? steps[steps.length - 1] : steps[0]);
    const same = this.groups.findIndex((group) => group.record.id === id);
    this.record = same >= 0 ? same : Math.max(0, Math.min(record, this.groups.length - 1));
    this.image = 0;
    this.open = new Set();
    this.active = -1;
    if (this.group) this.choose();
    this.draw();
  },

  // What is open at first: the best rollout of every stream; boxes are drawn for the best one that wrote any.
  choose() {
    const { rollouts } = this.group;
    const rank = (i) => (rollouts[i].is_masked ? -Infinity : rollouts[i].total || 0);
    const order = rollouts.map((_, i) => i).sort((a, b) => rank(b) - rank(a) || a - b);
    for (const stream of unique(rollouts.map((r) => r.stream))) {
      const best = order.find((i) => rollouts[i].stream === stream);
      if (best !== undefined) this.open.add(best);
    }
    const boxed = order.find((i) => rollouts[i].boxes.length);
    this.active = boxed === undefined ? order[0] : boxed;
    this.open.add(this.active);
  },

  toggle(index) {
    if (this.open.has(index) && this.active === index) this.open.delete(index);
    else this.open.add(index);
    this.active = index;
    this.image = 0;
    this.draw();
  },

  // The rollout whose boxes, crops and maps the picture shows.
  show(index) {
    if (index === this.active) return;
    this.active = index;
    this.image = 0;
    for (const node of this.body.querySelectorAll(".rollout")) node.classList.toggle("active", Number(node.dataset.index) === index);
    this.drawAside();
  },

  mark(index, selector, isOn) {
    if (isOn) this.show(index);
    for (const lit of this.node.querySelectorAll(`.aside ${selector}, .rollout[data-index="${index}"] ${selector}`)) lit.classList.toggle("lit", isOn);
  },

  light(index, box, isOn) { this.mark(index, `[data-box="${box}"]`, isOn); },
  lightCrop(index, crop, isOn) { this.mark(index, `[data-crop="${crop}"]`, isOn); },

  // Shows where one token looked; without one the pinned token, or the mean over the reply.
  look(index, token) {
    if (token !== null && mapNames(this.group.rollouts[index]).length) this.show(index);
    const wanted = token === null && index === this.active ? this.pinned : token;
    for (const tell of [...(index === this.active ? this.watchers : []), ...(this.bodyWatchers[index] || [])]) tell(wanted);
  },

  pin(index, token) {
    if (!mapNames(this.group.rollouts[index]).length) return;
    this.show(index);
    this.pinned = this.pinned === token ? null : token;
    for (const node of this.body.querySelectorAll(".token.pinned")) node.classList.remove("pinned");
    const node = this.pinned === null ? null : this.body.querySelector(`.rollout[data-index="${index}"] [data-token="${token}"]`);
    if (node) node.classList.add("pinned");
    this.look(index, null);
  },

  // The shown map over one image, kept up to date while the pointer moves over tokens.
  layer(rollout, image, watchers) {
    const name = shownMap(this, rollout), map = name && rollout.maps[name];
    if (!map || !map.grid[image]) return null;
    const layer = new HeatLayer(map, image, this.ramp);
    watchers.push((token) => layer.draw(token));
    return layer;
  },

  draw() {
    drawControls(this);
    for (const chart of this.charts) chart.mark(this.step);
    if (!this.group) return;
    const tints = tintsOf(this.group), tint = tints.find(({ name }) => name === this.tint) || tints[0];
    drawTints(this, tints, tint);
    this.bodyWatchers = {};
    const scales = { reward: highest(this.group), tokens: { tint: scaled(this.group, tint), underline: underlineOf(this.group) } };
    const streams = unique(this.group.rollouts.map((r) => r.stream));
    this.body.replaceChildren(...streams.map((stream) => streamNode(this, this.group, stream, scales)));
    this.drawAside();
  },

  drawAside() {
    const rollout = this.group.rollouts[this.active];
    this.watchers = [];
    this.pinned = null;
    const images = imagesOf(this.group, rollout);
    const strip = images.length < 2 ? null : element("div", { class: "strip" }, ...images.map((image, i) => data.images[image.key] &&
      element("button", { type: "button", "aria-pressed": String(i === this.image), onclick: () => { this.image = i; this.drawAside(); } }, element("img", { src: data.images[image.key], alt: `image ${i + 1}` }))).filter(Boolean));
    const parts = [mapPicker(this, rollout), drawPicture(this, rollout), mapLine(this, rollout), strip, drawKeys(this, rollout), asked(this.group.record)];
    this.aside.replaceChildren(...parts.filter(Boolean));
  },
};

function drawControls(view) {
  const steps = view.steps, at = steps.indexOf(view.step);
  view.slider.max = Math.max(0, steps.length - 1);
  view.slider.value = Math.max(0, at);
  view.slider.disabled = steps.length < 2;
  view.output.textContent = steps.length ? `step ${view.step}` : "";
  for (const [i, tab] of [...view.tabs.children].entries()) tab.setAttribute("aria-selected", String(i === view.arm));
  view.chips.replaceChildren(...view.groups.map((group, i) => {
    const image = group.record.images[0], source = image && data.images[image.key];
    return element("button", { type: "button", class: `chip ${source ? "" : "bare"}`, "aria-pressed": String(i === view.record), hint: group.record.question, onclick: () => view.go({ record: i, id: group.record.id }) },
      source ? element("img", { src: source, alt: "" }) : null, element("span", { text: group.record.id }));
  }));
}

function drawTints(view, tints, shown) {
  view.tints.hidden = tints.length < 2;
  const select = element("select", { "aria-label": "tint of the tokens", onchange: (event) => { view.tint = event.target.value; view.draw(); } },
    ...tints.map(({ name }) => element("option", { value: name, text: name, selected: name === shown.name })));
  view.tints.replaceChildren(document.createTextNode("tint "), select);
}

function buildRollouts(view) {
  const section = document.getElementById("rollouts");
  const move = (by) => { const steps = view.steps; const next = steps[steps.indexOf(view.step) + by]; if (next !== undefined) view.go({ step: next }); };
  view.move = move;
  view.slider = element("input", { type: "range", min: 0, step: 1, "aria-label": "step", oninput: (event) => view.go({ step: view.steps[Number(event.target.value)] }) });
  view.output = element("output", {});
  view.tabs = element("div", { class: "tabs", role: "tablist" }, ...data.arms.map((arm, i) => element("button", { type: "button", role: "tab", text: arm.name, onclick: () => view.go({ arm: i }) })));
  view.tabs.hidden = data.arms.length < 2;
  view.chips = element("div", { class: "chips" });
  view.tints = element("label", { class: "tints", hidden: true });
  view.aside = element("div", { class: "aside" });
  view.body = element("div", { class: "streams" });
  view.node = element("div", { class: "group" }, view.aside, view.body);
  const logged = data.arms.reduce((sum, arm) => sum + arm.group_count, 0), kept = data.arms.reduce((sum, arm) => sum + arm.groups.length, 0);
  const stepper = element("div", { class: "stepper" }, element("button", { type: "button", class: "quiet", text: "←", "aria-label": "previous step", onclick: () => move(-1) }), view.slider,
    element("button", { type: "button", class: "quiet", text: "→", "aria-label": "next step", onclick: () => move(1) }), view.output);
  const title = element("h2", { text: "Rollouts" });
  if (kept < logged) title.append(element("span", { class: "note", text: `${kept} of ${logged} logged groups, spread evenly` }));
  if (!kept) { section.replaceChildren(title, element("p", { class: "empty", text: "No rollout has been logged yet." })); return; }
  section.replaceChildren(element("div", { class: "rollouts-head" }, title, view.tabs, stepper, view.tints, view.chips), view.node);
}

function toggleTheme() {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range") return;
  const cycle = (value, by, count) => (value + by + count) % Math.max(1, count);
  const turn = (by) => { if (view.group) { view.active = cycle(view.active, by, view.group.rollouts.length); view.open = new Set([view.active]); view.image = 0; view.draw(); } };
  const actions = {
    ArrowLeft: () => view.move(-1), ArrowRight: () => view.move(1), t: toggleTheme, j: () => turn(1), k: () => turn(-1),
    "[": () => view.go({ record: cycle(view.record, -1, view.groups.length), id: null }), "]": () => view.go({ record: cycle(view.record, 1, view.groups.length), id: null }),
    a: () => view.go({ arm: cycle(view.arm, 1, data.arms.length) }),
  };
  if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
}

// The arm that is shown first: the one whose rollouts come in most streams.
function richestArm() {
  const counts = data.arms.map((arm) => unique(arm.groups.flatMap((group) => group.rollouts.map((r) => r.stream))).length);
  return counts.indexOf(Math.max(...counts));
}

function start() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (/^(light|dark)$/.test(wanted.get("theme"))) root.dataset.theme = wanted.get("theme");
  view.charts = buildCurves(data, (step) => view.go({ step }));
  buildDependence(data);
  buildRollouts(view);
  buildAlarms(data);
  foldResults();
  document.getElementById("metric-table").append(metricTable(data));
  document.getElementById("theme").addEventListener("click", toggleTheme);
  document.addEventListener("keydown", onKey);
  const arm = data.arms.findIndex((a) => a.name === wanted.get("arm"));
  const step = wanted.has("step") ? Number(wanted.get("step")) : null;
  if (data.arms.some((a) => a.groups.length)) view.go({ arm: arm < 0 ? richestArm() : arm, step: Number.isFinite(step) ? step : null, id: wanted.get("record") });
  root.dataset.ready = "";
}

window.addEventListener("error", (event) => { root.dataset.error = event.message; });
document.addEventListener("securitypolicyviolation", (event) => { root.dataset.error = `${event.violatedDirective}: ${event.blockedURI}`; });
start();
