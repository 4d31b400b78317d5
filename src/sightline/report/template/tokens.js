// The token strip: one span per token, tinted by its advantage or by what a probe says about it; hover tells all.

function advantageAt(tokens, i) {
  return Array.isArray(tokens.advantage) ? tokens.advantage[i] : tokens.advantage;
}

// What tokens can be tinted by: {name, isSigned, at(rollout, token)}. Causal effects come first, then other probes.
function tintsOf(group) {
  const names = (kind) => unique(group.rollouts.flatMap((r) => Object.keys(r[kind] || {})));
  const effects = names("effects"), probes = names("probes").filter((name) => !effects.includes(name));
  const of = (kind, name) => (rollout, i) => ((rollout[kind] || {})[name] || [])[i];
  const isBelow = (name) => group.rollouts.some((r) => (r.probes[name] || []).some((v) => v < 0));
  const tints = [{ name: "advantage", isSigned: true, at: (rollout, i) => advantageAt(rollout.tokens, i) },
    ...effects.map((name) => ({ name: `effect of ${name}`, isSigned: true, at: of("effects", name) })),
    ...probes.map((name) => ({ name, isSigned: isBelow(name), at: of("probes", name) }))];
  if (group.rollouts.some((r) => r.tokens.entropy)) tints.push({ name: "entropy", isSigned: false, at: (rollout, i) => (rollout.tokens.entropy || [])[i] });
  return tints;
}

// A tint with the largest value in the group, against which the strength of each token is measured.
function scaled(group, tint) {
  let most = 1e-9;
  for (const rollout of group.rollouts) rollout.tokens.text.forEach((_, i) => { const v = tint.at(rollout, i); if (Number.isFinite(v)) most = Math.max(most, Math.abs(v)); });
  return { ...tint, most };
}

// The causal effect that underlines tokens: the first one, whatever the tint.
function underlineOf(group) {
  const effect = tintsOf(group).find((tint) => tint.name.startsWith("effect of "));
  return effect ? scaled(group, effect) : null;
}

function strength(scale, value) {
  return (4 + 30 * Math.min(1, Math.abs(value) / scale.most)).toFixed(1);
}

function tokenHint(rollout, i) {
  const { tokens } = rollout, logprob = tokens.logprob[i], row = (name, value) => (Number.isFinite(value) ? `\n${name} ${number(value, 3)}` : "");
  const share = Number.isFinite(logprob) ? ` (p ${Math.exp(logprob).toFixed(2)})` : "";
  const effects = Object.entries(rollout.effects || {}).map(([name, values]) => (Number.isFinite(values[i]) ? `\neffect of ${name} ${signed(values[i], 3)}` : ""));
  const probes = Object.entries(rollout.probes || {}).filter(([name]) => !(name in (rollout.effects || {}))).map(([name, values]) => row(name, values[i]));
  return `${JSON.stringify(tokens.text[i])}\nlog-prob ${number(logprob)}${share}\nadvantage ${signed(advantageAt(tokens, i), 3)}${row("entropy", (tokens.entropy || [])[i])}${effects.join("")}${probes.join("")}`;
}

function tokenNode(rollout, i, scale, isInserted, boxIndex) {
  const piece = rollout.tokens.text[i], logprob = rollout.tokens.logprob[i];
  const node = element("span", { class: "token", text: piece, "data-token": i });
  if (isInserted) {
    node.classList.add("inserted");
    node.dataset.hint = `${JSON.stringify(piece)}\nnot sampled, carries no loss`;
  } else {
    const value = scale.tint.at(rollout, i), effect = scale.underline ? scale.underline.at(rollout, i) : null;
    if (Number.isFinite(value) && value !== 0) {
      node.classList.add(!scale.tint.isSigned ? "amount" : value > 0 ? "plus" : "minus");
      node.style.setProperty("--strength", strength(scale.tint, value));
    }
    if (Number.isFinite(effect)) {
      node.classList.add("caused", effect < 0 ? "against" : "for");
      node.style.setProperty("--effect", (100 * Math.min(1, Math.abs(effect) / scale.underline.most)).toFixed(0));
    }
    if (Number.isFinite(logprob) && logprob < -0.7) node.classList.add("unsure");
    node.dataset.hint = tokenHint(rollout, i);
  }
  if (boxIndex >= 0) { node.classList.add("in-box"); node.dataset.box = boxIndex; }
  return node;
}

function tokenStrip(view, rollout, index, from, to, scale) {
  const strip = element("div", { class: "tokens" });
  const inserted = new Set(rollout.tokens.inserted);
  if (from === 0 && rollout.prefix) strip.append(element("span", { class: "token inserted", text: rollout.prefix, hint: `${JSON.stringify(rollout.prefix)}\nforced, carries no loss` }));
  for (let i = from; i < Math.min(to, rollout.tokens.text.length); i++) {
    if (!rollout.tokens.text[i]) continue;
    const box = rollout.boxes.findIndex(({ tokens }) => tokens && tokens[0] <= i && i < tokens[1]);
    strip.append(tokenNode(rollout, i, scale, inserted.has(i), box));
  }
  if (to >= rollout.tokens.text.length && rollout.tokens.left_out) {
    strip.append(element("span", { class: "token inserted", text: ` … ${rollout.tokens.left_out} more tokens` }));
  }
  if (!rollout.tokens.text.length) strip.append(element("span", { class: "token", text: rollout.text }));
  const react = (event, isOn) => {
    const { box, token } = event.target.dataset || {};
    if (box !== undefined) view.light(index, Number(box), isOn);
    if (token !== undefined) view.look(index, isOn ? Number(token) : null);
  };
  strip.addEventListener("pointerover", (event) => react(event, true));
  strip.addEventListener("pointerout", (event) => react(event, false));
  strip.addEventListener("click", (event) => { const { token } = event.target.dataset || {}; if (token !== undefined) view.pin(index, Number(token)); });
  return strip;
}
