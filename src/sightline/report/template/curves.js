// Which curves stand where: held-out measures with intervals, then reward and accuracy of each stream.

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

function buildCurves(data, pick) {
  const { arms, sentences } = data;
  const held = evaluationCharts(arms);
  const isHeadline = (chart) => chart.measure === "accuracy";
  const rich = held.filter((chart) => isHeadline(chart) && chart.lines.some((line) => line.points.length > 2)).slice(0, 1);
  const reward = streamCharts(arms, sentences, "total", "Reward");
  const accuracy = streamCharts(arms, sentences, "accuracy", "Accuracy");
  const first = [...rich, ...reward, ...accuracy].filter((chart) => chart.lines.length);
  const further = ["rollout", "credit", "policy", "loss", "update", "archive", "judge", "sample", "seconds"].flatMap((area) =>
    unique(arms.flatMap((arm) => Object.keys(arm.curves.metrics))).filter((name) => name.startsWith(area + "/"))
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
