// How much each part of a reply depends on the image: one chart per mode, a line per arm.

function dependenceCharts(arms) {
  const places = unique(arms.flatMap((arm) => arm.dependence.map((one) => one.where)));
  return places.map((where) => {
    const lines = arms.flatMap((arm, number) => arm.dependence.filter((one) => one.where === where).flatMap(({ curves }) => {
      const shown = arms.length > 1 ? curves.slice(-1) : curves;
      return shown.map((curve, i) => ({
        name: arms.length > 1 ? arm.name : `step ${curve.step}`,
        colour: arms.length > 1 ? number : i < shown.length - 1 ? 5 : number,
        points: curve.points, isExact: true,
      }));
    }));
    return {
      title: `Image dependence, ${where}`, note: "by tenth", across: "part", hasKeys: true, lines,
      sentence: "log p − log p′ in nats per token over the length of the reply, p′ under the changed image: what a token owes to the image",
    };
  }).filter((chart) => chart.lines.some((line) => line.points.length));
}

function buildDependence(data) {
  const node = document.getElementById("dependence");
  if (node) node.append(...dependenceCharts(data.arms).map((chart) => new Chart(chart).node));
}
