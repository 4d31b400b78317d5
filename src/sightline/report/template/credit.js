// Where an advantage comes from: its parts per rollout, and the bins of box size that rollouts were compared in.

const TOLD_ELSEWHERE = /^(advantage|bin|box_area|baseline|flat|masked|no_box_\w+|bin_\d+_\w+)$/;
const TERMS = {
  intra: ({ parts }) => `against ${binName(parts.bin)}${Number.isFinite(parts.box_area) ? `, box of ${number(100 * parts.box_area, 2)}% of the image` : ""}${Number.isFinite(parts.baseline) ? `, mean reward ${number(parts.baseline, 3)}` : ""}`,
  inter: ({ parts }) => (parts.inter > 0 ? `${binName(parts.bin)} has the best mean reward` : parts.inter < 0 ? "another bin has the best mean reward" : "the bins do not differ"),
};

function binName(bin) {
  return bin > 0 ? `bin ${bin}` : "no box";
}

// The terms an advantage is the sum of, as bars to both sides; other parts of the credit as plain numbers.
function partRows(rollout) {
  const { parts } = rollout, names = Object.keys(parts).filter((name) => Number.isFinite(parts[name]));
  const terms = names.filter((name) => name in TERMS), others = names.filter((name) => !(name in TERMS) && !TOLD_ELSEWHERE.test(name));
  const node = element("div", { class: "terms parts" });
  const shown = terms.length && Number.isFinite(parts.advantage) ? [...terms, "advantage"] : terms;
  const most = Math.max(1, ...shown.map((name) => Math.abs(parts[name])));
  for (const name of shown) node.append(...partRow(name, parts[name], most, name in TERMS ? TERMS[name](rollout) : ""));
  if (others.length) node.append(element("span", { class: "name", text: "credit" }), element("span", { class: "others", text: others.map((name) => `${name.replaceAll("_", " ")} ${number(parts[name], 3)}`).join(" · ") }));
  return node.childNodes.length ? node : null;
}

function partRow(name, value, most, why) {
  const bar = element("div", { class: "bar signed" }), inner = element("i", { class: value < 0 ? "below" : "" });
  const share = (50 * Math.min(1, Math.abs(value) / most)).toFixed(1);
  inner.style.width = `${share}%`;
  inner.style.left = value < 0 ? `${50 - share}%` : "50%";
  bar.append(inner);
  return [element("span", { class: "name", text: name }), bar, element("span", { class: "value", text: signed(value) }), element("span", { class: "why", text: why })];
}

// Occupancy and mean reward of each bin among the rollouts of a stream; the bins without any are shown as empty.
function binsNode(rollouts) {
  const placed = rollouts.filter((r) => Number.isFinite(r.parts.bin));
  if (!placed.length) return null;
  const known = Object.keys(placed[0].parts).map((name) => name.match(/^bin_(\d+)_share$/)).filter(Boolean).map((found) => Number(found[1]));
  const bins = unique([...known, ...placed.map((r) => r.parts.bin)]).sort((a, b) => a - b);
  const rows = bins.map((bin) => {
    const own = placed.filter((r) => r.parts.bin === bin), areas = own.map((r) => r.parts.box_area).filter((v) => Number.isFinite(v));
    return { bin, own, reward: mean(own.filter((r) => !r.is_masked).map((r) => r.total)), low: Math.min(...areas), high: Math.max(...areas), hasArea: areas.length > 0 };
  });
  const best = Math.max(...rows.filter((row) => row.bin > 0 && row.reward !== null).map((row) => row.reward)), most = Math.max(1e-9, ...rows.map((row) => row.reward || 0));
  return element("div", { class: "bins" }, ...rows.flatMap((row) => {
    const span = row.low === row.high ? number(100 * row.low, 2) : `${number(100 * row.low, 2)}–${number(100 * row.high, 2)}`;
    const seats = element("span", { class: "seats", hint: `${row.own.length} of ${placed.length} rollouts` }, ...placed.map((_, i) => element("i", { class: i < row.own.length ? "taken" : "" })));
    const bar = element("div", { class: "bar" }), inner = element("i", {});
    inner.style.width = `${100 * Math.max(0, (row.reward || 0) / most)}%`;
    bar.append(inner);
    const isBest = row.bin > 0 && row.reward === best;
    return [element("span", { class: "name", text: binName(row.bin) }), element("span", { class: "note", text: row.hasArea ? `${span}% of the image` : row.own.length ? "" : "empty" }), seats, bar,
      element("span", { class: `value ${isBest ? "best" : ""}`, text: row.reward === null ? "–" : row.reward.toFixed(2), hint: isBest ? "the best mean reward: its rollouts gain by the inter term" : "mean reward of the bin" })];
  }));
}
