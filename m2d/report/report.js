const runNames = data.runs.map((run) => run.name);
const several = data.runs.length > 1;

/** One column a run, with its name where there are several; runs without content are left out. */
function columns(content) {
  const found = data.runs.map((run, i) => [i, content(run, i)]).filter(([, element]) => element);
  if (!found.length) return null;
  return h("div", { class: "columns" }, found.map(([i, element]) => h("div", { class: "card" }, several ? runTitle(i) : null, element)));
}

function runTitle(i) {
  return h("div", { class: "run" }, h("i", { class: "swatch", style: `color:${colour(i)}` }), runNames[i]);
}

function overview(run, i) {
  const facts = run.facts.map(([what, value, more]) =>
    h("div", {}, h("dt", {}, what), h("dd", { class: "value" }, value), h("dd", { class: "soft small" }, more)));
  return h(
    "div", { class: "card" },
    h("div", { class: "run" }, h("i", { class: "swatch", style: `color:${colour(i)}` }), run.name, h("span", { class: `badge ${run.state}` }, run.state)),
    h("dl", { class: "facts" }, facts),
    run.notes.length ? h("ul", { class: "notes" }, run.notes.map((note) => h("li", {}, note))) : null,
  );
}

/** A spectrogram with its axes; `over` is laid over it. */
function spectrogram(caption, address, alt, seen, over) {
  const khz = seen.khz.map(([text, place]) => h("span", { class: "tick khz", style: `bottom:${100 * place}%` }, text));
  const marks = ticks(0, seen.seconds, 4).filter((second) => second <= seen.seconds * 0.97);
  const time = marks.map((second, i) =>
    h("span", { class: "tick time", style: `left:${(100 * second) / seen.seconds}%` }, i === marks.length - 1 ? `${second} s` : String(second)));
  return h(
    "figure", { class: "spectrogram" }, h("figcaption", {}, caption),
    h("div", { class: "plot" }, h("img", { src: address, alt }), over || null, khz, time),
  );
}

function seenBy(run) {
  if (!run.seen) return null;
  const samples = run.seen.items.map((item) => {
    const [width, height] = item.cover;
    const mask = () => h("img", { src: item.mask, alt: "", style: `width:${100 * width}%;height:${100 * height}%` });
    const share = `${(100 * item.share).toFixed(0)} %`;
    return h(
      "div", { class: "sample" },
      spectrogram(item.name, item.picture, `Spectrogram of ${item.name}`, run.seen),
      spectrogram(`what the encoder sees: ${share}`, item.picture, `The ${share} of it that is not masked`, run.seen, mask()),
      item.rebuilt ? spectrogram(`reconstruction (loss ${item.loss.toFixed(3)} over the masked patches)`, item.rebuilt, "The masked patches as the decoder fills them in", run.seen) : null,
    );
  });
  return h("div", { class: "samples" }, samples, h("p", { class: "soft small" }, `The first samples of epoch ${run.seen.epoch}; kHz over seconds.`));
}

function probeOf(run) {
  if (!run.learned) return null;
  const { probe, directions, count } = run.learned;
  const rows = probe.flatMap(([what, value, low, high], i) => [
    h("span", {}, what),
    h("div", { class: "bar", "aria-hidden": "true" },
      h("i", { style: `width:${100 * value}%;${i ? "" : "background:var(--accent)"}` }), h("b", { style: `left:${100 * low}%;width:${100 * (high - low)}%` })),
    h("span", { class: "soft" }, `${(100 * value).toFixed(1)} % (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`),
  ]);
  const used = Object.entries(directions).map(([what, value]) => `${what} ${value.toFixed(1)}`).join(", ");
  return h(
    "div", {},
    rows.length
      ? [h("h3", {}, "Linear probe on held-out clips"), h("p", { class: "soft small" }, `Accuracy and its 95 % interval; classes by ${run.learned.map.kind === "classes" ? "folders or labels" : "folders"}.`), h("div", { class: "probe" }, rows)]
      : h("p", { class: "soft small" }, run.learned.unprobed),
    h("p", { class: "small", style: "margin-top:10px" }, `Directions used (RankMe, of ${count} clips' embeddings): ${used}.`),
  );
}

function nearTo(run) {
  const near = run.learned && run.learned.near;
  if (!near) return null;
  const clip = (i, under, asked) => {
    const { name, picture, sound } = near.clips[i];
    return h(
      "div", { class: asked ? "clip asked" : "clip" },
      h("img", { src: picture, alt: `Spectrogram of ${name}` }),
      h("div", { class: "under" }, playButton(sound, name), h("span", { class: "soft" }, under)),
      h("div", { class: "name" }, breakable(name)),
    );
  };
  return h("div", {}, near.queries.map((query) =>
    h("div", { class: "query" }, clip(query.clip, "nearest to this:", true), query.near.map(([i, cosine]) => clip(i, cosine.toFixed(2))))));
}

function dataOf(run) {
  if (!run.data) return null;
  const rows = run.data.rows.map(([what, value]) => h("tr", {}, h("th", { scope: "row" }, what), h("td", {}, value)));
  return h("div", {}, h("table", {}, h("tbody", {}, rows)), run.data.lengths ? histogram(run.data.lengths, run.data.input) : null);
}

function settingsTable(rows) {
  const head = several ? h("thead", {}, h("tr", {}, h("th", {}), runNames.map((name) => h("th", { scope: "col" }, name)))) : null;
  const body = rows.map((row) =>
    h("tr", { class: several && row.differs ? "differs" : null }, h("th", { scope: "row" }, h("code", {}, row.name)), row.values.map((value) => h("td", {}, value))));
  return h("div", { class: "scroll" }, h("table", {}, head, h("tbody", {}, body)));
}

function settings() {
  if (!data.settings.length) return null;
  const shown = data.settings.filter((row) => row.changed || (several && row.differs));
  const starts = data.runs.flatMap((run) => run.starts.map((start) =>
    h("li", {}, several ? `${run.name}, ` : "", `${start.time}, m2d ${start.m2d}, torch ${start.torch}: `, h("code", {}, start.command))));
  return h(
    "div", { class: "card" },
    settingsTable(shown),
    h("details", {}, h("summary", {}, `All ${data.settings.length} settings`), settingsTable(data.settings)),
    starts.length ? h("details", {}, h("summary", {}, `Starts (${starts.length})`), h("ol", { class: "small" }, starts)) : null,
  );
}

const sections = [
  ["curves", "Curves", "", data.charts.length ? h("div", { class: "grid" }, data.charts.map((each) => chart(each, runNames))) : null],
  ["seen", data.runs.some((run) => run.seen && run.seen.reconstructs) ? "What the encoder sees, and what the decoder makes of it" : "What the encoder sees",
    "Grey patches are masked: the encoder does not get them, the model predicts them.", columns(seenBy)],
  ["learned", "What it has learned", "The encoder beside its untrained self and beside plain statistics of the spectrogram.", columns(probeOf)],
  ["confusion", "Confusion matrix", "Of the validation clips, by the best epoch.", columns((run) =>
    run.confusion && h("img", { src: run.confusion, alt: "Confusion matrix of the validation clips", style: "max-width:100%" }))],
  ["map", "Map of embeddings", "Each point is a clip; near points are alike to the encoder. Pick a group out by its button.",
    columns((run) => run.learned && mapView(run.learned.map).element)],
  ["near", "Nearest neighbours", "Clips and those that are nearest to them by the cosine of their centred embeddings.", columns(nearTo)],
  ["data", "Data", "", columns(dataOf)],
  ["settings", "Settings", several ? "Those that differ between runs or from the defaults." : "Those that are not at their defaults.", settings()],
].filter(([, , , content]) => content);

page.append(
  h("header", {}, h("h1", {}, data.title), h("p", { class: "soft" }, `Training report, ${data.made}`)),
  h("nav", { "aria-label": "Sections" }, sections.map(([id, title]) => h("a", { href: `#${id}` }, title))),
  h("div", { class: "columns" }, data.runs.map(overview)),
  ...sections.map(([id, title, lead, content]) => section(id, title, lead, content)),
  h("footer", {}, `m2d ${data.version}. This page holds all it shows and loads nothing.`),
);
