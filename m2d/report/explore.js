const near = unpack(data.near, Int32Array), cosines = unpack(data.cosines, Int16Array), perFile = data.neighbours;
const names = data.names;

/** Little-endian integers out of base64. */
function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Kind(bytes.buffer);
}

const stageOfMap = h("div", {});
const chosen = h("div", { class: "chosen", "aria-live": "polite" }, h("p", { class: "soft" }, "Choose a file in the map or by its name."));
const results = h("ul", { class: "results" });
const search = h("input", { type: "search", placeholder: "part of a name", "aria-label": "Search a file by its name", style: "width:100%", oninput: find });
let map = null;

function grouping(each) {
  map = mapView({ layouts: data.layouts, names, group: each.group, groups: each.groups, kind: each.kind }, choose, true);
  stageOfMap.replaceChildren(map.element);
}

function find() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let i = 0; words.length && i < names.length && found.length < 50; i++) {
    if (words.every((word) => names[i].toLowerCase().includes(word))) found.push(i);
  }
  results.replaceChildren(...found.map((i) => h("li", {}, playButton(data.sounds[i], names[i]), nameButton(i))));
  if (words.length && !found.length) results.append(h("li", { class: "soft" }, "no such name"));
}

const nameButton = (i) => h("button", { type: "button", class: "linklike", onclick: () => choose(i) }, names[i]);

function choose(i) {
  map.show(i);
  const rows = [];
  for (let k = 0; k < perFile; k++) {
    const other = near[i * perFile + k];
    rows.push(h("tr", {},
      h("td", { class: "control" }, playButton(data.sounds[other], names[other])), h("td", {}, nameButton(other)),
      h("td", { class: "number soft" }, (cosines[i * perFile + k] / 10000).toFixed(2))));
  }
  const groups = data.groupings.map((each) => each.groups[each.group[i]]).join(", ");
  chosen.replaceChildren(
    h("div", { class: "run" }, playButton(data.sounds[i], names[i]), names[i]),
    h("p", { class: "soft small" }, groups),
    h("h3", { style: "margin-top:10px" }, "Nearest"),
    h("table", {}, h("tbody", {}, rows)),
  );
}

const choices = data.groupings.map((each, i) =>
  h("button", { type: "button", "aria-pressed": String(i === 0), onclick: (event) => {
    choices.forEach((other) => other.setAttribute("aria-pressed", other === event.currentTarget));
    grouping(each);
  } }, each.kind));

function clusterRow(cluster, i) {
  const examples = cluster.examples.map((row) => h("div", { style: "display:flex;gap:8px;align-items:center" }, playButton(data.sounds[row], names[row]), nameButton(row)));
  return h("tr", {},
    h("th", { scope: "row", style: "white-space:nowrap" }, h("i", { class: "swatch", style: `color:${colour(i)};display:inline-block;margin-right:6px` }), `cluster ${i + 1}`),
    h("td", { class: "number" }, cluster.size.toLocaleString("en")),
    data.groupings.length > 1 ? h("td", {}, `${cluster.folder} (${(100 * cluster.share).toFixed(0)} %)`) : null,
    h("td", {}, examples));
}

const heads = ["", "files", data.groupings.length > 1 ? "most of them from" : null, "nearest to the middle"].filter((text) => text !== null);
page.append(
  h("header", {}, h("h1", {}, data.title),
    h("p", { class: "soft" }, `${names.length.toLocaleString("en")} files, ${data.width.toLocaleString("en")} values each, ${data.made}`),
    data.missing ? h("ul", { class: "notes" }, h("li", {}, `${data.missing.toLocaleString("en")} files are not where they were: no play button (--audio FOLDER names their folder).`)) : null),
  h("div", { class: "explore", style: "margin-top:18px" },
    h("div", { class: "card" }, choices.length > 1 ? h("div", { class: "tools" }, h("span", { class: "soft small" }, "colours:"), choices) : null, stageOfMap),
    h("div", { class: "card" }, h("h3", { style: "margin-bottom:6px" }, "Files"), search, results, chosen)),
  section("clusters", "Clusters", "By k-means of the first principal components, at most 50.",
    h("div", { class: "card scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, data.clusters.map(clusterRow))))),
  h("footer", {}, `m2d ${data.version}. Neighbours by the cosine of centred embeddings. This page loads nothing but sounds beside it.`),
);
grouping(data.groupings[0]);
choose(data.clusters[0].examples[0]);
