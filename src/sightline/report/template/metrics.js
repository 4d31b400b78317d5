// The table of all metrics, the alarms, and the fold of the before/after table.

function sparkline(values, colour) {
  const finite = values.map((v, i) => [i, v]);
  const [low, high] = extent(values.filter((v) => v !== null));
  const x = (i) => (100 * i) / Math.max(1, values.length - 1), y = (v) => 20 - (18 * (v - low)) / (high - low);
  return shape("svg", { class: `sparkline c${colour % 6}`, viewBox: "0 0 100 22", preserveAspectRatio: "none" }, shape("path", { d: path(finite, x, y) }));
}

function metricTable(data) {
  const { arms, sentences } = data;
  const names = unique(arms.flatMap((arm) => Object.keys(arm.curves.metrics)));
  if (!names.length) return element("p", { class: "empty", text: "No metric has been logged yet." });
  const head = element("tr", {}, element("th", { text: "metric" }),
    ...arms.flatMap((arm) => [element("th", { class: "number", text: arms.length > 1 ? arm.name : "last" }), element("th", {})]), element("th", { text: "meaning" }));
  const rows = names.map((name) => {
    const cells = arms.flatMap((arm, i) => {
      const values = arm.curves.metrics[name] || [];
      const last = values.filter((v) => v !== null).pop();
      return [element("td", { class: "number", text: number(last) }), element("td", {}, values.length > 1 ? sparkline(values, i) : null)];
    });
    return element("tr", { hint: sentences[name] }, element("td", { text: name }), ...cells, element("td", { class: "meaning", text: sentences[name] }));
  });
  return element("table", { class: "metric-table" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

function buildAlarms(data) {
  const all = data.arms.flatMap((arm) => arm.alarms.map((alarm) => ({ ...alarm, arm: arm.name })));
  const count = data.arms.reduce((sum, arm) => sum + arm.alarm_count, 0);
  if (!count) return;
  const section = document.getElementById("alarms"), badge = document.getElementById("alarm-badge");
  const rows = all.map((alarm) => element("li", {}, element("b", { text: alarm.last > alarm.step ? `steps ${alarm.step}–${alarm.last}` : `step ${alarm.step}` }),
    element("span", { text: (data.arms.length > 1 ? `${alarm.arm}: ` : "") + alarm.text })));
  section.append(element("ul", { class: "alarm-list" }, ...rows));
  if (count > all.length) section.append(element("p", { class: "empty", text: `${count - all.length} more in events.jsonl` }));
  section.hidden = badge.hidden = false;
  badge.textContent = count === 1 ? "1 alarm" : `${count} alarms`;
}

function foldResults() {
  const table = document.querySelector("table.results"), button = document.getElementById("further");
  if (!table) return;
  const count = table.querySelectorAll("tbody.further").length;
  if (!count || !table.querySelector("tbody.headline")) return;
  const set = (isFolded) => {
    table.classList.toggle("folded", isFolded);
    button.textContent = isFolded ? `show ${count} more measures` : "show fewer";
  };
  button.hidden = false;
  button.addEventListener("click", () => set(!table.classList.contains("folded")));
  set(true);
}
