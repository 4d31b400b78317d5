// The rollouts of one record at one step, by stream: answer, reward terms with their reasons, tokens, reference.

function verdict(rollout) {
  const term = rollout.terms.accuracy || rollout.terms.answer;
  if (!term || term.masked) return element("span", { class: "verdict", text: "·", hint: term ? term.why : "not judged" });
  const isRight = term.value >= 0.5;
  return element("span", { class: `verdict ${isRight ? "right" : "wrong"}`, text: isRight ? "✓" : "✗", hint: term.why });
}

function highest(group) {
  let most = 1e-9;
  for (const { terms } of group.rollouts) {
    most = Math.max(most, Object.values(terms).reduce((sum, t) => sum + Math.abs(t.weight) * Math.max(1, t.value), 0));
  }
  return most;
}

function stack(rollout, most) {
  const node = element("span", { class: `stack ${rollout.is_masked ? "masked" : ""}` });
  for (const [name, term] of Object.entries(rollout.terms)) {
    const share = term.masked ? 0 : Math.max(0, term.value * term.weight) / most;
    const part = element("i", { hint: `${name}: ${number(term.value)} × ${number(term.weight)}` });
    part.style.width = `${(100 * share).toFixed(2)}%`;
    if (share) node.append(part);
  }
  return node;
}

function termRows(rollout) {
  const names = Object.keys(rollout.terms);
  if (!names.length) return element("p", { class: "problems", text: "This rollout was not scored." });
  const node = element("div", { class: "terms" });
  for (const name of names) {
    const { value, weight, why, masked } = rollout.terms[name];
    const bar = element("div", { class: `bar ${masked ? "masked" : ""}` });
    const inner = element("i", { class: value < 0 ? "below" : "" });
    inner.style.width = masked ? "0" : `${Math.min(100, 100 * Math.abs(value))}%`;
    bar.append(inner);
    const times = weight === 1 ? "" : ` × ${number(weight)}`;
    node.append(element("span", { class: "name", text: name }), bar,
      element("span", { class: "value", text: masked ? "masked" : number(value, 3) + times }), element("span", { class: "why", text: why || "" }));
  }
  return node;
}

function referenceText(reference) {
  const scores = Object.entries(reference.scores || {}).map(([name, value]) => `${name} ${number(value, 3)}`).join(", ");
  const head = `archive reference, step ${reference.step}${scores ? " · " + scores : ""}`;
  return element("div", { class: "reference-text" }, element("span", { class: "note", text: head }), document.createTextNode(reference.text));
}

// A stream that is compared with the archive shows the reference beside its text.
function readsReference(group, stream) {
  if (!group.reference) return false;
  const own = group.rollouts.filter((r) => r.stream === stream);
  return own.some((r) => "consistency" in r.terms) || stream === "textual";
}

function detail(view, group, rollout, index, scale) {
  const texts = element("div", { class: "texts" }, element("div", {}, ...turnNodes(view, rollout, index, scale)));
  if (readsReference(group, rollout.stream)) {
    texts.classList.add("paired");
    texts.append(referenceText(group.reference));
  }
  const notes = [...(rollout.problems || []), rollout.finish === "length" ? "cut by the token limit" : null].filter(Boolean);
  const problems = notes.length ? element("p", { class: "problems", text: `noted while reading: ${notes.join(", ")}` }) : null;
  return element("div", { class: "detail" }, texts, evidenceRow(view, rollout, index), termRows(rollout), partRows(rollout), problems);
}

function rolloutNode(view, group, rollout, index, scales) {
  const isOpen = view.open.has(index), isActive = view.active === index;
  const answer = rollout.answer === null || rollout.answer === undefined ? "no answer" : rollout.answer || "empty answer";
  const advantage = rollout.advantage;
  const tone = rollout.is_masked || !advantage ? "" : advantage > 0 ? "right" : "wrong";
  const head = element("button", { type: "button", "aria-expanded": String(isOpen), onclick: () => view.toggle(index) },
    element("span", { class: "index", text: (rollout.branch || []).map((b) => b + 1).join("·") || "1" }),
    element("span", { class: "reply" }, verdict(rollout), document.createTextNode(answer)),
    stack(rollout, scales.reward),
    element("span", { class: "total", text: rollout.is_masked ? "masked" : Number.isFinite(rollout.total) ? rollout.total.toFixed(2) : "–", hint: "weighted sum of the reward terms" }),
    element("span", { class: `advantage ${tone}`, text: rollout.is_masked ? "" : signed(advantage), hint: "advantage within its group" }));
  const node = element("div", { class: `rollout ${isActive ? "active" : ""}`, "data-index": index }, head);
  if (isOpen) node.append(detail(view, group, rollout, index, scales.tokens));
  return node;
}

function streamNode(view, group, stream, scales) {
  const own = group.rollouts.map((rollout, i) => [rollout, i]).filter(([rollout]) => rollout.stream === stream);
  const totals = own.filter(([r]) => !r.is_masked).map(([r]) => r.total);
  const average = mean(totals);
  const note = `${own.length} rollout${own.length === 1 ? "" : "s"}${average === null ? "" : `, mean reward ${average.toFixed(2)}`}`;
  return element("section", { class: "stream" }, element("header", {}, element("h3", { text: stream }), element("span", { class: "note", text: note })),
    binsNode(own.map(([rollout]) => rollout)), ...branchNodes(view, own, 0, (rollout, i) => rolloutNode(view, group, rollout, i, scales)));
}

function asked(record) {
  const rows = [element("p", { class: "question", text: record.question })];
  const row = (name, value) => rows.push(element("div", {}, document.createTextNode(`${name} `), element("b", { text: value })));
  if ((record.options || []).length) row("options", record.options.join(" · "));
  row("gold answer", record.answer);
  return element("div", { class: "asked" }, ...rows);
}
