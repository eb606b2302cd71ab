/**
 * A map of points on a canvas: colours by group, names under the pointer, groups to pick out, zoom.
 *
 * map: { layouts: [{method, note, x, y}], names, group, groups, kind }, places from 0 to 1.
 * chosen(i), where given, is called for a point that is clicked; `show(i)` of the result marks one.
 */
function mapView(map, chosen, large) {
  let layout = map.layouts[0], picked = null, marked = null, zoom = 1, centre = [0.5, 0.5];
  const canvas = h("canvas", { role: "img", "aria-label": `Map of ${map.names.length} clips by their embeddings, coloured by ${map.kind}` });
  const stage = h("div", { class: "stage" }, canvas);
  const note = h("span", { class: "soft small" }, layout.note);
  const box = tip(stage);
  const choice = map.layouts.map((each) => toggle(each.method, each === layout, (button) => {
    layout = each;
    note.textContent = each.note;
    choice.forEach((other) => other.setAttribute("aria-pressed", other === button));
    draw();
  }));
  const zoomTo = (factor) => {
    zoom = Math.min(40, Math.max(1, zoom * factor));
    if (zoom === 1) centre = [0.5, 0.5];
    draw();
  };
  const tools = h(
    "div", { class: "tools" }, choice.length > 1 ? choice : null, note, h("span", { class: "gap" }),
    h("button", { type: "button", "aria-label": "Zoom in", onclick: () => zoomTo(1.6) }, "+"),
    h("button", { type: "button", "aria-label": "Zoom out", onclick: () => zoomTo(1 / 1.6) }, "−"),
    h("button", { type: "button", onclick: () => zoomTo(0) }, "whole"),
  );
  const counts = map.groups.map((_, g) => map.group.filter((each) => each === g).length);
  const groups = map.groups.map((name, g) => {
    const button = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
      picked = picked === g ? null : g;
      groups.forEach((each, i) => each.setAttribute("aria-pressed", i === picked));
      draw();
    } }, h("i", { class: "swatch", style: `color:${colour(g)}` }), `${name} (${counts[g].toLocaleString("en")})`);
    return button;
  });

  function toggle(text, on, action) {
    return h("button", { type: "button", "aria-pressed": String(on), onclick: (event) => action(event.currentTarget) }, text);
  }

  const margin = 14;
  const size = () => [canvas.clientWidth - 2 * margin, canvas.clientHeight - 2 * margin];
  const toX = (x) => margin + ((x - centre[0]) * zoom + 0.5) * size()[0];
  const toY = (y) => margin + (0.5 - (y - centre[1]) * zoom) * size()[1];

  function draw() {
    const scale = window.devicePixelRatio || 1, [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const radius = Math.max(1.4, Math.min(4.5, 55 / Math.sqrt(map.names.length))) * Math.min(2, Math.sqrt(zoom));
    const colours = map.groups.map((_, g) => colourNow(`--c${g % 8}`));
    const order = [...map.group.keys()];
    if (picked !== null) order.sort((a, b) => (map.group[a] === picked) - (map.group[b] === picked));
    for (const i of order) {
      const x = toX(layout.x[i]), y = toY(layout.y[i]);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      pen.globalAlpha = picked === null || map.group[i] === picked ? 0.75 : 0.08;
      pen.fillStyle = colours[map.group[i]];
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fill();
    }
    if (marked !== null) {
      pen.globalAlpha = 1;
      pen.strokeStyle = colourNow("--ink");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(toX(layout.x[marked]), toY(layout.y[marked]), radius + 4, 0, 7);
      pen.stroke();
    }
  }

  function nearestPoint(event) {
    let best = null, distance = 144;
    for (let i = 0; i < map.names.length; i++) {
      if (picked !== null && map.group[i] !== picked) continue;
      const d = (toX(layout.x[i]) - event.offsetX) ** 2 + (toY(layout.y[i]) - event.offsetY) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    return best;
  }

  let dragged = null, moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    dragged = zoom > 1 ? [event.offsetX, event.offsetY, ...centre] : null;
    moved = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged && event.buttons) {
      const [width, height] = size();
      const [dx, dy] = [event.offsetX - dragged[0], event.offsetY - dragged[1]];
      moved = moved || Math.hypot(dx, dy) > 4;
      centre = [dragged[2] - dx / width / zoom, dragged[3] + dy / height / zoom];
      box.hide();
      return draw();
    }
    const i = nearestPoint(event);
    if (i === null) return box.hide();
    box.show(event.offsetX, event.offsetY, h("div", {}, map.names[i]), h("div", { class: "soft" }, map.groups[map.group[i]]));
  });
  canvas.addEventListener("pointerleave", () => box.hide());
  canvas.addEventListener("click", (event) => {
    const i = moved ? null : nearestPoint(event);
    if (i !== null && chosen) chosen(i);
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomTo(event.deltaY < 0 ? 1.3 : 1 / 1.3);
  }, { passive: false });
  drawn(canvas, draw);

  const element = h("div", { class: large ? "map large" : "map" }, tools, stage, h("div", { class: "groups" }, groups));
  return {
    element,
    show(i) {
      marked = i;
      if (zoom > 1) centre = [layout.x[i], layout.y[i]];
      draw();
    },
  };
}
