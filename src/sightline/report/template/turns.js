// Conversations: who said what, the crops that a turn brought, and the tree in which rollouts share their first turns.

// Pictures that turns added, in order, each with the place it was cut out of, if it was.
function cropsOf(group, rollout) {
  const images = imagesOf(group, rollout);
  return (rollout.turns || []).flatMap((turn, at) => (turn.images || []).map((k, j) => ({ turn: at, index: k, image: images[k], box: (turn.boxes || [])[j] || null })))
    .filter((crop) => crop.image).map((crop, k) => ({ ...crop, k }));
}

function cropShare(group, box) {
  const image = group.record.images[0];
  if (!box || !image) return null;
  return Math.abs((box[2] - box[0]) * (box[3] - box[1])) / (image.width * image.height);
}

function cropFigure(view, crop, light) {
  const source = view.data.images[crop.image.key], share = cropShare(view.group, crop.box);
  const size = `${crop.image.width} × ${crop.image.height} px`;
  const caption = crop.box ? `crop ${crop.k + 1}` : "added image";
  const hint = crop.box ? `${caption}, ${size}\ncut out of ${crop.box.map((v) => number(v)).join(", ")}${share === null ? "" : `\n${number(100 * share, 2)}% of the image`}` : `${caption}, ${size}`;
  const picture = source ? element("img", { src: source, alt: `${caption}, ${size}` }) : element("span", { class: "missing", text: "not kept" });
  return element("figure", { class: `crop mark${crop.k % 6} ${crop.image.width < 160 ? "small" : ""}`, hint, "data-crop": crop.k, onpointerenter: () => light(crop.k, true), onpointerleave: () => light(crop.k, false) },
    picture, element("figcaption", {}, element("b", { text: caption }), element("span", { text: share === null ? size : `${number(100 * share, 2)}% of the image` })));
}

// What the policy does in a turn.
const ACTIONS = { box: "asks for a region", answer: "answers", both: "asks for a region and answers", none: "neither asks nor answers" };

// The turns of a rollout, one below the other; a reply without turns is its token strip alone.
function turnNodes(view, rollout, index, scale) {
  const turns = rollout.turns || [], all = rollout.tokens.text.length, crops = cropsOf(view.group, rollout);
  const light = (k, isOn) => view.lightCrop(index, k, isOn);
  if (turns.length < 2) {
    const nodes = [element("div", { class: "turn" }, tokenStrip(view, rollout, index, 0, all, scale))];
    const pictures = thumbnails(view.data, rollout.images);
    return pictures ? [...nodes, pictures] : nodes;
  }
  return turns.map((turn, i) => {
    const isUser = turn.role === "user", own = crops.filter((crop) => crop.turn === i);
    const notes = [ACTIONS[turn.action], sharedNote(view.group, rollout, turn), turn.finish === "length" ? "cut by the token limit" : null].filter(Boolean);
    const label = element("div", { class: "role", text: `turn ${i + 1}, ${turn.role}` }, ...notes.map((text) => element("span", { class: "note", text })));
    const said = isUser && turn.text ? element("p", { class: "said", text: turn.text }) : tokenStrip(view, rollout, index, turn.span[0], turn.span[1], scale);
    const pictures = own.length ? element("div", { class: "crops" }, ...own.map((crop) => cropFigure(view, crop, light))) : null;
    const isEmpty = isUser && !turn.text && !rollout.tokens.text.slice(...turn.span).join("").trim();
    return element("div", { class: `turn ${isUser ? "user" : ""}` }, label, pictures, isEmpty ? null : said);
  });
}

function thumbnails(data, images) {
  const known = images.filter((image) => data.images[image.key]);
  if (!known.length) return null;
  return element("div", { class: "strip" }, ...known.map((image) =>
    element("img", { src: data.images[image.key], alt: `added image, ${image.width} x ${image.height} px`, hint: `added image, ${image.width} × ${image.height} px` })));
}

// Rollouts of the same stream and prompt whose tokens before fork number `level` are the same ones.
function siblings(group, rollout, level) {
  const start = rollout.branch.slice(0, level + 1).join();
  return group.rollouts.filter((other) => other.stream === rollout.stream && other.branch.length > level + 1 && other.branch.slice(0, level + 1).join() === start);
}

// Where level `level` + 1 of the tree begins; a conversation that was over before it is shared as a whole.
function forkOf(rollout, level) {
  const { forks } = rollout;
  return level < forks.length ? forks[level] : rollout.tokens.text.length;
}

function sharedNote(group, rollout, turn) {
  const levels = (rollout.branch || []).slice(1).map((_, level) => level);
  const level = levels.find((k) => turn.span[1] <= forkOf(rollout, k));
  const count = level === undefined ? 0 : siblings(group, rollout, level).length;
  return count > 1 ? `shared by ${count} rollouts` : null;
}

// Rollouts as a tree: those that share a turn hang below one stem that shows it; a stem of one is no stem.
function branchNodes(view, own, level, leaf) {
  const stems = new Map();
  for (const entry of own) {
    const [rollout] = entry, key = (rollout.branch || []).slice(0, level + 1).join();
    if (!stems.has(key)) stems.set(key, []);
    stems.get(key).push(entry);
  }
  return [...stems.values()].flatMap((entries) => {
    const isFork = entries.length > 1 && entries[0][0].branch.length > level + 1;
    if (!isFork) return entries.map(([rollout, i]) => leaf(rollout, i));
    return [element("div", { class: "branch" }, stemNode(view, entries, level), ...branchNodes(view, entries, level + 1, leaf))];
  });
}

function stemNode(view, entries, level) {
  const [rollout, index] = entries[0], fork = forkOf(rollout, level), { text, inserted } = rollout.tokens;
  const written = new Set(inserted), said = text.slice(0, fork).filter((_, i) => !written.has(i)).join("").replace(/<\|\w+\|>/g, "").trim();
  const crop = cropsOf(view.group, rollout).find((c) => rollout.turns[c.turn].span[1] <= fork);
  const source = crop && view.data.images[crop.image.key];
  const picture = source ? element("img", { class: `mark${crop.k % 6}`, src: source, alt: `crop ${crop.k + 1}` }) : null;
  if (picture) { picture.addEventListener("pointerenter", () => view.lightCrop(index, crop.k, true)); picture.addEventListener("pointerleave", () => view.lightCrop(index, crop.k, false)); }
  const isOver = rollout.forks.length <= level;
  const count = `${entries.length} rollouts ${isOver ? "are this one reply" : `share ${fork} tokens`}`;
  return element("div", { class: "stem", hint: said.slice(0, 600) }, element("span", { class: "index", text: rollout.branch.slice(0, level + 1).map((b) => b + 1).join("·") }),
    picture, element("span", { class: "said", text: said || "shared turn" }), element("span", { class: "note", text: count }));
}
