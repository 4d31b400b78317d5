"use strict";
// Every text reaches the page through textContent; nothing in these files parses a string as HTML.

function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = String(value);
    else if (name === "hint") node.dataset.hint = String(value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function unique(values) {
  return [...new Set(values)];
}

function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

function signed(value, digits = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
}

function mean(values) {
  const finite = values.filter((v) => Number.isFinite(v));
  return finite.length ? finite.reduce((a, b) => a + b, 0) / finite.length : null;
}

// The hint: one floating note for everything that carries data-hint, and for charts, which fill it themselves.
const hint = {
  node: document.getElementById("hint"),
  show(content, x, y) {
    this.node.replaceChildren(...(Array.isArray(content) ? content : [document.createTextNode(content)]));
    this.node.hidden = false;
    const box = this.node.getBoundingClientRect();
    const left = Math.min(x + 14, innerWidth - box.width - 8);
    const top = y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18;
    this.node.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
  },
  hide() { this.node.hidden = true; },
};

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest ? event.target.closest("[data-hint]") : null;
  if (target) hint.show(target.dataset.hint, event.clientX, event.clientY);
  else if (!event.target.closest || !event.target.closest(".chart")) hint.hide();
});
document.addEventListener("scroll", () => hint.hide(), { passive: true, capture: true });
