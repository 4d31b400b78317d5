// Evidence beside the picture: which map is shown and what it says, original beside changed image, focus beside target.

function mapNames(rollout) {
  return Object.keys((rollout && rollout.maps) || {});
}

// The map that is shown: the one that was chosen if the rollout has it, else one with a row for each token.
function shownMap(view, rollout) {
  const names = mapNames(rollout);
  if (!names.length || view.map === "none") return null;
  return names.includes(view.map) ? view.map : names.find((name) => rollout.maps[name].rows > 1) || names[0];
}

function mapPicker(view, rollout) {
  const names = mapNames(rollout), shown = shownMap(view, rollout);
  if (!names.length) return null;
  const choice = (name, text) => element("button", { type: "button", "aria-pressed": String((shown || "none") === name), text, onclick: () => { view.map = name; view.draw(); } });
  return element("div", { class: "tabs maps" }, choice("none", "picture"), ...names.map((name) => choice(name, name)));
}

// What the shown map says at the token under the pointer, or over the whole reply.
function mapNote(view, rollout, token) {
  const name = shownMap(view, rollout), map = name && rollout.maps[name];
  if (!map) return "";
  const isOne = mapRow(map, token) !== null, share = shareOn(view.group.target, mapWeights(map, token));
  const what = isOne ? `at ${JSON.stringify(rollout.tokens.text[token].trim() || rollout.tokens.text[token])}${map.every > 1 ? ` and ${map.every - 1} tokens around it` : ""}` : map.rows > 1 ? "mean over the reply" : `where ${name} looks`;
  return `${what}${share === null ? "" : ` · ${(100 * share).toFixed(0)}% of it on the gold region`}`;
}

function mapLine(view, rollout) {
  const note = element("span", { class: "map-note" });
  const tell = (token) => { note.textContent = mapNote(view, rollout, token); };
  tell(null);
  view.watchers.push(tell);
  return shownMap(view, rollout) ? element("div", { class: "map-line" }, rampKey(view.ramp, "little", "much"), note) : null;
}

// A small picture with a map over it and the gold regions on top.
function miniature(view, image, layer, caption, hint) {
  const { width, height } = image, source = view.data.images[image.key];
  const frame = element("div", { class: `picture ${width < 320 ? "small" : ""}` });
  frame.append(source ? element("img", { src: source, alt: caption, width, height }) : element("div", { class: "missing", text: "The picture was not kept." }));
  if (source && layer) frame.append(layer.node);
  const gold = view.group.record.images[0], canvas = shape("svg", { viewBox: `0 0 ${gold.width} ${gold.height}`, preserveAspectRatio: "none" }, ...goldShapes(view.group, 0, gold.width, gold.height));
  if (source) frame.append(canvas);
  return element("figure", { hint }, frame, element("figcaption", { text: caption }));
}

// Original and changed image under the same map: what the change took away, and whether the reply looked there.
function contrastFigures(view, rollout, watchers) {
  const original = view.group.record.images[0], names = Object.keys(rollout.pictures || {});
  if (!original || !names.length) return [];
  const layer = () => view.layer(rollout, 0, watchers);
  const changed = names.map((name) => {
    const values = ((rollout.effects || {})[name] || []).filter((v) => Number.isFinite(v)), sum = values.reduce((a, b) => a + b, 0);
    const figure = miniature(view, rollout.pictures[name][0], layer(), `under ${name}`, "the same map over the changed image");
    if (values.length) figure.lastChild.append(element("span", { class: "note", text: `log p − log p′ = ${signed(sum)}`, hint: "sum over the reply, in nats: what it loses in likelihood where the image is changed" }));
    return figure;
  });
  return [miniature(view, original, layer(), "original", "the map over the image as it was shown"), ...changed];
}

// A map with a single row (a token that was made to look) beside where the gold regions are.
function focusFigures(view, rollout) {
  const { target, record } = view.group, image = record.images[0];
  const names = mapNames(rollout).filter((name) => rollout.maps[name].rows === 1 && rollout.tokens.text.length > 1);
  if (!image || !target || !names.length) return [];
  const looks = names.map((name) => {
    const map = rollout.maps[name], figure = miniature(view, image, new HeatLayer(map, 0, view.ramp), name, "where the token that was made to look looks");
    figure.lastChild.append(element("span", { class: "note", text: `${(100 * (shareOn(target, mapWeights(map, null)) || 0)).toFixed(0)}% on the region`, hint: "share of its attention to the images that falls on cells the gold regions touch" }));
    return figure;
  });
  return [...looks, miniature(view, image, new HeatLayer(target, 0, view.ramp), "region target", "each cell's share of the area of the gold regions")];
}

function evidenceRow(view, rollout, index) {
  const watchers = (view.bodyWatchers[index] = []);
  const figures = [...contrastFigures(view, rollout, watchers), ...focusFigures(view, rollout)];
  return figures.length ? element("div", { class: "figures" }, ...figures) : null;
}
