// The token strip: one span per token, tinted by its advantage; what the policy did not sample is set in italics.

function advantageAt(tokens, i) {
  return Array.isArray(tokens.advantage) ? tokens.advantage[i] : tokens.advantage;
}

function strongest(group) {
  let most = 1e-9;
  for (const rollout of group.rollouts) {
    const values = Array.isArray(rollout.tokens.advantage) ? rollout.tokens.advantage : [rollout.tokens.advantage];
    for (const v of values) if (Number.isFinite(v)) most = Math.max(most, Math.abs(v));
  }
  return most;
}

// Characters of the rollout's text that each token covers; tokens the text does not show cover none.
function characterSpans(rollout) {
  let at = 0;
  return rollout.tokens.text.map((piece) => {
    if (!piece || !rollout.text.startsWith(piece, at)) return [at, at];
    at += piece.length;
    return [at - piece.length, at];
  });
}

function tokenNode(rollout, i, most, inserted, boxIndex) {
  const tokens = rollout.tokens, piece = tokens.text[i], logprob = tokens.logprob[i];
  const node = element("span", { class: "token", text: piece });
  if (inserted.has(i)) {
    node.classList.add("inserted");
    node.dataset.hint = `${JSON.stringify(piece)}\nnot sampled, carries no loss`;
  } else {
    const advantage = advantageAt(tokens, i);
    if (Number.isFinite(advantage) && advantage !== 0) {
      node.classList.add(advantage > 0 ? "plus" : "minus");
      node.style.setProperty("--strength", (4 + 30 * Math.min(1, Math.abs(advantage) / most)).toFixed(1));
    }
    if (Number.isFinite(logprob) && logprob < -0.7) node.classList.add("unsure");
    const share = Number.isFinite(logprob) ? ` (p ${Math.exp(logprob).toFixed(2)})` : "";
    node.dataset.hint = `${JSON.stringify(piece)}\nlog-prob ${number(logprob)}${share}\nadvantage ${signed(advantage, 3)}`;
  }
  if (boxIndex >= 0) { node.classList.add("in-box"); node.dataset.box = boxIndex; }
  return node;
}

function tokenStrip(rollout, from, to, most, light) {
  const strip = element("div", { class: "tokens" });
  const spans = characterSpans(rollout), inserted = new Set(rollout.tokens.inserted);
  for (let i = from; i < Math.min(to, rollout.tokens.text.length); i++) {
    const [a, b] = spans[i];
    const box = a < b ? rollout.boxes.findIndex(({ span }) => span && a < span[1] && span[0] < b) : -1;
    strip.append(tokenNode(rollout, i, most, inserted, box));
  }
  if (to >= rollout.tokens.text.length && rollout.tokens.left_out) {
    strip.append(element("span", { class: "token inserted", text: ` … ${rollout.tokens.left_out} more tokens` }));
  }
  if (!rollout.tokens.text.length) strip.append(element("span", { class: "token", text: rollout.text }));
  const react = (event, isOn) => { const i = event.target.dataset ? event.target.dataset.box : undefined; if (i !== undefined) light(Number(i), isOn); };
  strip.addEventListener("pointerover", (event) => react(event, true));
  strip.addEventListener("pointerout", (event) => react(event, false));
  return strip;
}

// The turns of a rollout: text of each, and the pictures (crops) that a turn added.
function turnNodes(data, group, rollout, most, light) {
  const turns = rollout.turns || [], all = rollout.tokens.text.length;
  if (turns.length < 2) {
    const nodes = [element("div", { class: "turn" }, tokenStrip(rollout, 0, all, most, light))];
    const pictures = thumbnails(data, rollout.images);
    return pictures ? [...nodes, pictures] : nodes;
  }
  return turns.map((turn, i) => {
    const images = imagesOf(group, rollout);
    const node = element("div", { class: `turn ${turn.role === "user" ? "user" : ""}` });
    node.append(element("div", { class: "role", text: `turn ${i + 1}, ${turn.role}` }));
    const pictures = thumbnails(data, (turn.images || []).map((k) => images[k]).filter(Boolean));
    if (pictures) node.append(pictures);
    node.append(tokenStrip(rollout, turn.span[0], turn.span[1], most, light));
    return node;
  });
}

function thumbnails(data, images) {
  const known = images.filter((image) => data.images[image.key]);
  if (!known.length) return null;
  return element("div", { class: "strip" }, ...known.map((image) =>
    element("img", { src: data.images[image.key], alt: `added image, ${image.width} x ${image.height} px`, hint: `added image, ${image.width} × ${image.height} px` })));
}
