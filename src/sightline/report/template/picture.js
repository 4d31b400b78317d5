// The picture of a record with boxes on it: gold thin, reference dashed, predicted solid, crops in their own colours.

function boxShape(box, kind, width, height, extra) {
  const [x1, y1, x2, y2] = box;
  const at = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) };
  // A box of no extent would be invisible; it is drawn as a small mark where it stands.
  at.width = Math.max(at.width, width / 200);
  at.height = Math.max(at.height, height / 200);
  return [shape("rect", { class: "halo", ...at }), shape("rect", { ...at, class: `${kind} ${extra.class || ""}`, hint: extra.hint })];
}

function boxHint(box) {
  const words = [`box ${box.box.map((v) => number(v)).join(", ")}`];
  words.push(box.iou === null || box.iou === undefined ? "no gold region to compare with" : `IoU ${box.iou.toFixed(2)}`);
  if (!box.is_valid) words.push("not a valid box");
  if (box.problems && box.problems.length) words.push(`normalised: ${box.problems.join(", ")}`);
  return words.join("\n");
}

// The images a rollout's boxes may refer to: the record's, then those that were added.
function imagesOf(group, rollout) {
  return [...group.record.images, ...((rollout && rollout.images) || [])];
}

// The picture, over it the map of attention (if one is shown), over that the boxes.
function drawPicture(view, rollout) {
  const { group, image: index, data } = view, image = imagesOf(group, rollout)[index], source = image && data.images[image.key];
  const frame = element("div", { class: "picture" });
  if (!source) {
    frame.append(element("div", { class: "missing", text: image ? "The picture was not kept." : "This record has no picture." }));
    return frame;
  }
  const { width, height } = image;
  if (width < 320) frame.classList.add("small");
  frame.append(element("img", { src: source, alt: `image ${index + 1} of record ${group.record.id}`, width, height }));
  const canvas = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const layer = view.layer(rollout, index, view.watchers);
  if (layer) { frame.append(layer.node); tellValues(frame, canvas, layer); }
  const crops = index === 0 ? cropsOf(group, rollout).filter((crop) => crop.box) : [];
  const own = (rollout ? rollout.boxes : []).map((box, i) => [box, i]).filter(([box]) => (box.image || 0) === index);
  for (const crop of crops) canvas.append(cropShape(view, crop, width, height));
  for (const box of (index === 0 && group.reference && group.reference.boxes) || []) {
    canvas.append(...boxShape(box, "reference", width, height, { hint: `archive reference, step ${group.reference.step}` }));
  }
  for (const [box, i] of own) {
    const nodes = boxShape(box.box, "predicted", width, height, { hint: boxHint(box), class: box.is_valid ? "" : "bad" });
    nodes[1].dataset.box = i;
    nodes[1].addEventListener("pointerenter", () => view.light(view.active, i, true));
    nodes[1].addEventListener("pointerleave", () => view.light(view.active, i, false));
    canvas.append(...nodes);
  }
  canvas.append(...goldShapes(group, index, width, height));
  frame.append(canvas, ...crops.map((crop) => cropTag(crop, width, height)), ...own.slice(0, 12).filter(([box]) => Number.isFinite(box.iou)).map(([box]) => boxTag(box, width, height)));
  return frame;
}

function goldShapes(group, index, width, height) {
  return (group.record.regions || []).filter((region) => (region.image || 0) === index)
    .map((region) => boxShape(region.box, "gold", width, height, { hint: `gold region${region.label ? ": " + region.label : ""}` })[1]);
}

function cropShape(view, crop, width, height) {
  const node = boxShape(crop.box, `cropped mark${crop.k % 6}`, width, height, { hint: `crop ${crop.k + 1}: ${crop.box.map((v) => number(v)).join(", ")}` })[1];
  node.dataset.crop = crop.k;
  node.addEventListener("pointerenter", () => view.lightCrop(view.active, crop.k, true));
  node.addEventListener("pointerleave", () => view.lightCrop(view.active, crop.k, false));
  return node;
}

// Below the box at its right, where no other mark stands.
function cropTag(crop, width, height) {
  const tag = element("span", { class: `tag mark${crop.k % 6}`, text: `crop ${crop.k + 1}` });
  const isHigh = crop.box[3] / height < 0.92;
  tag.style.right = `${Math.max(0, Math.min(82, 100 - (100 * crop.box[2]) / width))}%`;
  tag.style.top = `${(100 * crop.box[3]) / height}%`;
  tag.style.transform = isHigh ? "translateY(4px)" : "translateY(calc(-100% - 4px))";
  return tag;
}

function boxTag(box, width, height) {
  const tag = element("span", { class: "tag", text: `IoU ${box.iou.toFixed(2)}` });
  const isLow = box.box[1] / height > 0.1;
  tag.style.left = `${Math.min(82, (100 * box.box[0]) / width)}%`;
  tag.style.top = `${(100 * (isLow ? box.box[1] : box.box[3])) / height}%`;
  tag.style.transform = isLow ? "translateY(calc(-100% - 3px))" : "translateY(3px)";
  return tag;
}

function drawKeys(view, rollout) {
  const { group } = view, keys = element("div", { class: "keys" });
  const add = (kind, text, isShown) => { if (isShown) keys.append(element("span", {}, element("i", { class: kind }), document.createTextNode(text))); };
  add("predicted", "predicted", rollout && rollout.boxes.length);
  add("gold", "gold region", (group.record.regions || []).length);
  add("reference", "archive reference", group.reference && group.reference.boxes.length);
  add("for", "token the image supports", rollout && Object.keys(rollout.effects || {}).length);
  add("against", "token it speaks against", rollout && Object.keys(rollout.effects || {}).length);
  return keys;
}
