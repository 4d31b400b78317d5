// One answered question: pictures under the map of attention, and the reply, whose words say where they looked.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const colours = rampBytes(data.ramp);
const layers = [];
let pinned = null;

function pictureNode({ source, width, height }, index) {
  const canvas = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const layer = new HeatLayer(data.map, index, colours);
  for (const { box: [x1, y1, x2, y2], label, colour, width: stroke, dash } of index === data.boxed ? data.boxes : []) {
    const at = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
    canvas.append(shape("rect", { class: "halo", ...at }), shape("rect", { ...at, stroke: colour, "stroke-width": stroke, "stroke-dasharray": dash || null, hint: label || "box" }));
  }
  layers.push(layer);
  const frame = element("div", { class: "picture" }, element("img", { src: source, width, height, alt: `image ${index + 1}` }), layer.node, canvas);
  tellValues(frame, canvas, layer);
  return frame;
}

function look(token) {
  const wanted = token === null ? pinned : token;
  for (const layer of layers) layer.draw(wanted);
  document.getElementById("said").textContent = wanted === null ? "Mean over the reply. Hover a word to see where it looked; click to keep it." : `Where ${JSON.stringify(data.tokens[wanted])} looked.`;
}

// Tokens are tinted by the attention they pay to the images in all.
function replyNode() {
  const sums = data.tokens.map((_, i) => { const row = mapRow(data.map, i); return row === null ? 0 : mapWeights(data.map, i).reduce((a, b) => a + b, 0); });
  const most = Math.max(1e-9, ...sums);
  return data.turns.map((turn) => {
    if (turn.role === "user") return element("div", { class: "turn user" }, ...turn.images.map(({ source, width, height }) => element("img", { src: source, alt: `added image, ${width} × ${height} px`, hint: `added image, ${width} × ${height} px` })), document.createTextNode(turn.text));
    const node = element("div", { class: "turn" });
    for (let i = turn.span[0]; i < turn.span[1]; i++) {
      if (!data.tokens[i]) continue;
      const token = element("span", { class: "token", text: data.tokens[i], "data-token": i, hint: `${JSON.stringify(data.tokens[i])}\nattention to the images ${number(sums[i], 3)}` });
      token.style.setProperty("--strength", (45 * sums[i] / most).toFixed(1));
      node.append(token);
    }
    return node;
  });
}

function pin(token, node) {
  for (const other of document.querySelectorAll(".token.pinned")) other.classList.remove("pinned");
  pinned = pinned === token ? null : token;
  if (pinned !== null) node.classList.add("pinned");
  look(null);
}

function start() {
  const reply = document.getElementById("reply"), pictures = document.getElementById("pictures");
  const change = (event) => { const isBare = pictures.querySelector(".picture").classList.contains("bare"); for (const node of pictures.querySelectorAll(".picture")) node.classList.toggle("bare", !isBare); event.target.textContent = isBare ? "show the picture alone" : "show the attention"; };
  pictures.append(...data.images.map(pictureNode), rampKey(colours, "little", "much"), element("button", { type: "button", class: "switch", text: "show the picture alone", onclick: change }));
  reply.append(...replyNode());
  const tokenOf = (event) => (event.target.dataset.token === undefined ? null : Number(event.target.dataset.token));
  reply.addEventListener("pointerover", (event) => look(tokenOf(event)));
  reply.addEventListener("pointerout", () => look(null));
  reply.addEventListener("click", (event) => { if (tokenOf(event) !== null) pin(tokenOf(event), event.target); });
  look(null);
  root.dataset.ready = "";
}

window.addEventListener("error", (event) => { root.dataset.error = event.message; });
document.addEventListener("securitypolicyviolation", (event) => { root.dataset.error = `${event.violatedDirective}: ${event.blockedURI}`; });
start();
