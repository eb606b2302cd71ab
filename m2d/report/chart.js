/** A line chart over epochs, with its legend and the values under the pointer. */
function chart(spec, runNames) {
  const parts = [...new Set(spec.series.map((each) => each.part))];
  const dash = (part) => ["", "5 4", "2 3"][parts.indexOf(part) % 3];
  const many = runNames.length > 1;
  const title = (each) => [many ? runNames[each.run] : "", each.part].filter(Boolean).join(", ") || spec.title;
  const last = (each) => number(each.y[each.y.length - 1], spec.unit);
  const picture = s("svg", { role: "img", "aria-label": `${spec.title}: ` + spec.series.map((e) => `${title(e)} ${last(e)}`).join("; ") });
  const legend = h(
    "div",
    { class: "legend" },
    spec.series.map((each) => h("span", {}, sample(each), `${title(each)} ${last(each)}`)),
  );
  const figure = h(
    "figure",
    { class: "card chart" },
    h("figcaption", {}, h("h3", {}, spec.title), spec.note ? h("span", { class: "soft small" }, spec.note) : null),
    picture,
    legend,
  );

  function sample(each) {
    const line = s("line", { x1: 0, y1: 5, x2: 22, y2: 5, stroke: colour(each.run), "stroke-width": 2.2, "stroke-dasharray": dash(each.part) });
    return s("svg", { width: 22, height: 10, style: "width:22px;height:10px;margin:0;flex:none", "aria-hidden": "true" }, line);
  }

  const box = tip(figure);
  drawn(picture, () => {
    const place = scales(spec, picture.clientWidth, picture.clientHeight);
    picture.replaceChildren(...axes(place, spec.unit), ...spec.series.flatMap((each) => line(each, place, dash(each.part))));
    const cursor = s("line", { class: "cursor", y1: place.top, y2: place.bottom, visibility: "hidden" });
    picture.append(cursor);
    picture.onpointermove = (event) => {
      const x = nearest(spec, place.atX(event.offsetX));
      cursor.setAttribute("x1", place.x(x));
      cursor.setAttribute("x2", place.x(x));
      cursor.setAttribute("visibility", "visible");
      const rows = spec.series
        .map((each) => [each, each.x.indexOf(x)])
        .filter(([, i]) => i >= 0)
        .map(([each, i]) => h("div", { style: `color:${colour(each.run)}` }, `${title(each)} ${number(each.y[i], spec.unit)}`));
      box.show(place.x(x) + picture.offsetLeft, picture.offsetTop + 40, h("div", { class: "soft" }, `epoch ${+x.toPrecision(5)}`), ...rows);
    };
    picture.onpointerleave = () => {
      cursor.setAttribute("visibility", "hidden");
      box.hide();
    };
  });
  return figure;
}

function nearest(spec, wanted) {
  let best = spec.series[0].x[0];
  for (const each of spec.series) for (const x of each.x) if (Math.abs(x - wanted) < Math.abs(best - wanted)) best = x;
  return best;
}

/** From epochs and values to pixels, and back. */
function scales(spec, width, height) {
  let lowX = Infinity, highX = -Infinity, low = Infinity, high = -Infinity;
  for (const each of spec.series) {
    for (const x of each.x) [lowX, highX] = [Math.min(lowX, x), Math.max(highX, x)];
    for (const y of each.y) [low, high] = [Math.min(low, y), Math.max(high, y)];
  }
  lowX = Math.min(lowX, 0);
  if (highX === lowX) highX = lowX + 1;
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  const fromZero = low >= 0 && (spec.zero || low - room < 0);
  [low, high] = [fromZero ? 0 : low - room, high + room];
  const [left, right, top, bottom] = [52, width - 18, 8, height - 22];
  return {
    left, right, top, bottom, low, high, lowX, highX,
    x: (value) => left + ((value - lowX) / (highX - lowX)) * (right - left),
    y: (value) => bottom - ((value - low) / (high - low)) * (bottom - top),
    atX: (pixel) => lowX + ((pixel - left) / (right - left)) * (highX - lowX),
  };
}

function axes(place, unit) {
  const found = [], values = ticks(place.low, place.high, 4);
  const small = values.every((value) => Math.abs(value) < 1e-2);
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(values.length > 1 ? values[1] - values[0] : 1)));
  for (const value of values) {
    const y = place.y(value);
    const plain = small && value ? exponential(value) : String(+value.toFixed(Math.min(decimals, 12)));
    const text = unit === "share" ? `${+(100 * value).toPrecision(4)} %` : plain;
    found.push(s("line", { class: "gridline", x1: place.left, x2: place.right, y1: y, y2: y }));
    found.push(s("text", { x: place.left - 6, y: y + 4, "text-anchor": "end" }, text));
  }
  const wanted = Math.max(2, Math.floor((place.right - place.left) / 70));
  for (const value of ticks(place.lowX, place.highX, wanted, true)) {
    found.push(s("text", { x: place.x(value), y: place.bottom + 15, "text-anchor": "middle" }, String(value)));
  }
  found.push(s("text", { x: place.left - 6, y: place.bottom + 15, "text-anchor": "end" }, "epoch"));
  return found;
}

function line(each, place, dash) {
  const points = each.x.map((x, i) => [place.x(x), place.y(each.y[i])]);
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const found = [s("path", { d: path, fill: "none", stroke: colour(each.run), "stroke-width": 1.8, "stroke-dasharray": dash, "stroke-linejoin": "round" })];
  if (points.length <= 12) found.push(...points.map(([x, y]) => s("circle", { cx: x, cy: y, r: 3, fill: colour(each.run) })));
  return found;
}

/** Bars over a logarithmic axis of seconds, with a line at the model's input. */
function histogram(lengths, input) {
  const { edges, counts } = lengths;
  const picture = s("svg", { role: "img", "aria-label": `Lengths of clips: ${number(edges[0], "s")} to ${number(edges[edges.length - 1], "s")}` });
  const figure = h("figure", { class: "chart", style: "margin:10px 0 0" }, h("figcaption", { class: "soft small" }, "Lengths of clips (s), and the model's input"), picture);
  drawn(picture, () => {
    const [left, right, top, bottom] = [8, picture.clientWidth - 8, 16, picture.clientHeight - 22];
    const low = Math.log(Math.min(edges[0], input)), high = Math.log(Math.max(edges[edges.length - 1], input * 1.05));
    const x = (value) => left + ((Math.log(value) - low) / (high - low)) * (right - left);
    const most = Math.max(...counts);
    const round = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 300, 1000, 3600].filter((value) => Math.log(value) >= low && Math.log(value) <= high);
    const marks = round.length > 2 ? round : ticks(Math.exp(low), Math.exp(high), 6);
    picture.replaceChildren(
      ...counts.map((count, i) => {
        const height = (count / most) * (bottom - top);
        return s("rect", { x: x(edges[i]), y: bottom - height, width: Math.max(1, x(edges[i + 1]) - x(edges[i]) - 1), height, fill: "var(--c7)" });
      }),
      s("line", { class: "gridline", x1: left, x2: right, y1: bottom, y2: bottom }),
      s("line", { x1: x(input), x2: x(input), y1: top - 4, y2: bottom, stroke: "var(--accent)", "stroke-width": 2 }),
      s("text", { x: x(input), y: 9, "text-anchor": x(input) > right - 60 ? "end" : x(input) < left + 60 ? "start" : "middle" }, `input ${number(input, "s")}`),
      ...marks.map((value) => s("text", { x: x(value), y: bottom + 15, "text-anchor": "middle" }, String(value))),
    );
  });
  return figure;
}
