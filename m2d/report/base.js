"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
page.replaceChildren();

/** An element. Texts become text nodes, never markup. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function s(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A path's parts, between which a line may break. */
const breakable = (path) => path.split(/(?<=[/_])/).flatMap((part) => [part, h("wbr")]);

/** The colour of a run or group, as CSS has it. */
const colour = (number) => `var(--c${number % 8})`;

/** The value of a colour now, for a canvas. */
const colourNow = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function number(value, unit) {
  if (unit === "share") return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  const nearWhole = value % 1 !== 0 && +value.toPrecision(4) % 1 === 0; // 0.99995 is not 1
  const plain = String(+value.toPrecision(nearWhole && size < 10 ? 7 : 4));
  const text = size !== 0 && (size < 1e-2 || size >= 1e5) ? exponential(value) : plain;
  return unit ? `${text} ${unit}` : text;
}

/** 0.00125 as 1.25e-3. */
const exponential = (value) => value.toExponential(2).replace(/\.?0+e/, "e");

/** Round values from low to high, about `count` of them. */
function ticks(low, high, count, whole) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw) || 10 * power;
  if (whole) step = Math.max(1, Math.ceil(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

/** Call `draw` now, and whenever the element's width or the colour scheme changes. */
function drawn(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth !== width) {
      width = element.clientWidth;
      if (width) draw();
    }
  }).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

/** A box beside the pointer that says what is there. */
function tip(parent) {
  const box = h("div", { class: "tip", hidden: true, role: "status" });
  parent.append(box);
  return {
    show(x, y, ...children) {
      box.hidden = false;
      box.replaceChildren(...children);
      const left = x + 14 + box.offsetWidth > parent.clientWidth ? x - 14 - box.offsetWidth : x + 14;
      box.style.left = `${Math.max(0, left)}px`;
      box.style.top = `${Math.max(0, y - box.offsetHeight / 2)}px`;
    },
    hide() {
      box.hidden = true;
    },
  };
}

const player = new Audio();
let playing = null;
player.addEventListener("ended", () => mark(null));
player.addEventListener("error", () => mark(null, "✕"));

function mark(button, symbol = "▶") {
  if (playing) {
    playing.textContent = symbol;
    if (symbol !== "▶") playing.title = "This browser cannot play the file";
  }
  playing = button;
  if (button) button.textContent = "■";
}

/** A button that plays a sound, or nothing where there is none. */
function playButton(address, name) {
  if (!address) return null;
  const toggle = (event) => {
    const button = event.currentTarget;
    const stop = playing === button;
    player.pause();
    mark(null);
    if (stop) return;
    mark(button);
    player.src = address;
    player.play().catch(() => {});
  };
  return h("button", { class: "play", type: "button", "aria-label": `Play ${name}`, onclick: toggle }, "▶");
}

function section(id, title, lead, ...content) {
  return h("section", { id }, h("h2", {}, title), lead ? h("p", { class: "lead" }, lead) : null, ...content);
}
