// Which curves stand where: held-out measures with intervals, then reward and accuracy of each stream.

const AREAS = ["rollout", "credit", "probe", "anchor", "policy", "loss", "update", "archive", "judge", "sample"];
const CHARTED = /^(credit\/[^/]+\/(no_box|bin_\d+)_(share|reward)|probe\/[^/]+\/.+_region|anchor\/region_mass)$/;

function metricLines(arms, name) {
  return arms.flatMap((arm, colour) => {
    const values = arm.curves.metrics[name];
    if (!values || !values.some((v) => v !== null)) return [];
    return [{ name: arm.name, colour, points: arm.curves.steps.map((step, i) => [step, values[i]]) }];
  });
}

function evaluationCharts(arms) {
  const charts = new Map();
  arms.forEach((arm, colour) => {
    for (const row of arm.evaluations) {
      if (row.points.length < 2 || row.points.every((p) => p[1] === 0)) continue;
      const key = JSON.stringify([row.measure, row.mode, row.split]);
      const title = [row.title, row.where, row.split].filter(Boolean).join(", ");
      if (!charts.has(key)) charts.set(key, { title, note: "held-out", sentence: row.sentence, isShare: row.is_share, measure: row.measure, lines: [] });
      charts.get(key).lines.push({ name: arm.name, colour, points: row.points, isExact: true });
    }
  });
  return [...charts.values()];
}

function streamCharts(arms, sentences, kind, title) {
  const names = unique(arms.flatMap((arm) => Object.keys(arm.curves.metrics))).filter((n) => n.match(`^reward/[^/]+/${kind}$`));
  return names.map((name) => ({
    title: `${title}, ${name.split("/")[1]}`, note: "training", sentence: sentences[name], isShare: kind === "accuracy", lines: metricLines(arms, name),
  }));
}

// One chart for all bins of a stream: how many rollouts fall into each, and the mean reward of each.
function binCharts(arms, kind, title) {
  return arms.flatMap((arm) => {
    const found = Object.keys(arm.curves.metrics).map((name) => name.match(`^credit/([^/]+)/(no_box|bin_\\d+)_${kind}$`)).filter(Boolean);
    return unique(found.map(([, stream]) => stream)).map((stream) => {
      const lines = found.filter((one) => one[1] === stream).sort((a, b) => a[2].localeCompare(b[2])).flatMap(([name, , bin], colour) =>
        metricLines([arm], name).map((line) => ({ ...line, name: bin.replaceAll("_", " "), colour })));
      return { title: [title, stream].join(", "), note: arms.length > 1 ? arm.name : "training", sentence: `${title} of each bin of box size, 'no box' for rollouts without one.`, isShare: kind === "share", hasKeys: true, lines };
    });
  });
}

// How much of the attention falls on the gold regions: where it is taught, and where it is only measured.
function regionCharts(arms, sentences) {
  const names = unique(arms.flatMap((arm) => Object.keys(arm.curves.metrics)));
  const measured = names.map((name) => name.match("^probe/([^/]+)/(.+)_region$")).filter(Boolean)
    .map(([name, stream, probe]) => ({ name, title: `${probe} on the region, ${stream}` }));
  const taught = names.includes("anchor/region_mass") ? [{ name: "anchor/region_mass", title: "Attention on the region, Anchoring" }] : [];
  return [...taught, ...measured].map(({ name, title }) => ({ title: title[0].toUpperCase() + title.slice(1), note: "training", sentence: sentences[name], isShare: true, lines: metricLines(arms, name) }));
}

function buildCurves(data, pick) {
  const { arms, sentences } = data;
  const held = evaluationCharts(arms);
  const isHeadline = (chart) => chart.measure === "accuracy";
  const rich = held.filter((chart) => isHeadline(chart) && chart.lines.some((line) => line.points.length > 2)).slice(0, 1);
  const reward = streamCharts(arms, sentences, "total", "Reward");
  const accuracy = streamCharts(arms, sentences, "accuracy", "Accuracy");
  const bins = [...binCharts(arms, "share", "Occupancy"), ...binCharts(arms, "reward", "Mean reward")];
  const regions = regionCharts(arms, sentences);
  const first = [...rich, ...reward, ...accuracy, ...bins, ...regions].filter((chart) => chart.lines.length);
  const names = unique(arms.flatMap((arm) => Object.keys(arm.curves.metrics))).filter((name) => !name.startsWith("reward/") && !CHARTED.test(name));
  const areas = unique([...AREAS, ...names.map((name) => name.split("/")[0])]);
  const further = areas.flatMap((area) => names.filter((name) => name.startsWith(area + "/"))
    .map((name) => ({ title: name, sentence: sentences[name], lines: metricLines(arms, name) })));
  const rest = [...first.slice(4), ...held.filter((chart) => !rich.includes(chart)), ...further].filter((chart) => chart.lines.length);
  const shown = first.slice(0, 4).map((chart) => new Chart(chart, pick));
  document.getElementById("panels").append(...shown.map((chart) => chart.node));
  if (!shown.length) document.getElementById("panels").append(element("p", { class: "empty", text: "No step has been logged yet." }));
  const more = rest.map((chart) => new Chart(chart, pick));
  document.getElementById("more-panels").append(...more.map((chart) => chart.node));
  document.getElementById("more-curves").hidden = !more.length;
  if (arms.length > 1) document.getElementById("legend").append(...arms.map((arm, i) =>
    element("span", { class: `c${i % 6}` }, element("span", { class: "dot" }), document.createTextNode(arm.name))));
  const width = Math.max(1, ...arms.map((arm) => arm.curves.width));
  document.getElementById("curves-note").textContent = width > 1 ? `each point is the mean of ${width} steps` : "faint: each step, strong: running mean";
  return [...shown, ...more];
}
