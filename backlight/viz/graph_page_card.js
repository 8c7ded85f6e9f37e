// The card beside the picture: a node with its pictures and numbers, or the graph as a whole.

const STRONGEST = 6;

function table(rows) {
  return make("table", {}, ...rows.map(([head, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, head), ...cells.map((cell) => make("td", {}, cell)))));
}

function titled(text, ...content) { return [make("h3", {}, text), ...content]; }

function figure(content, caption) { return make("figure", {}, content, make("figcaption", {}, caption)); }

function closing() {
  return make("button", { type: "button", className: "close", ariaLabel: "Close details", onclick: () => showCard(null) }, "Close");
}

function showCard(index) {
  const card = at("card");
  card.classList.toggle("sheet", index !== null);
  document.body.classList.toggle("covered", index !== null);
  card.replaceChildren(...(index === null ? overview() : nodeCard(nodes[index])));
  card.dataset.node = index === null ? "" : nodes[index].id;
  card.scrollTop = 0;
}

function nodeCard(node) {
  const layer = data.layers[node.layer];
  const what = { concept: `concept ${node.concept} of ${layer.site}`, residual: `residual of ${layer.site}: what no concept of the dictionary tells`, rest: `all concepts of ${layer.site} that are not nodes of this graph, together`, class: `class ${node.key}` }[node.kind];
  const parts = [closing(), make("h2", {}, short(node)), make("p", {}, what)];
  parts.push(make("div", {}, ...(node.shared ? [make("span", { className: "badge" }, "shared by classes")] : []),
    ...node.tags.map(([tag, value]) => make("span", { className: "badge" }, `${tag} ${number(value)}`))));
  if (node.kind === "class") parts.push(make("p", {}, outcome(node).join(" · ")));
  parts.push(...pictures(node), ...examples(node), ...importances(node));
  parts.push(...linked("Comes from", node, "in", "source"), ...linked("Leads to", node, "out", "target"));
  const kept = state.kept === node.index;
  parts.push(make("p", {}, make("button", { type: "button", className: "isolate", onclick: () => keep(node.index) }, kept ? "Show the whole graph again" : "Show its routes only")));
  return parts;
}

function pictures(node) {
  const found = [];
  if (node.crop) found.push(figure(make("img", { src: node.crop, alt: `Where ${short(node)} comes from in the image` }), "where in the image it comes from (iERF)"));
  if (node.map) {
    const cell = Math.max(1, Math.floor(224 / Math.max(node.map.w, node.map.h)));
    const canvas = heat(node.map, make("canvas", { role: "img", ariaLabel: `Where ${short(node)} is on` }), cell);
    if (data.picture) {
      canvas.style.background = `center / 100% 100% linear-gradient(rgb(255 255 255 / .62), rgb(255 255 255 / .62)), center / 100% 100% no-repeat url(${data.picture})`;
    } else canvas.style.background = "#fff";
    const share = node.map.on ? `on at ${node.map.on} of ${node.map.w * node.map.h} positions` : "on nowhere";
    found.push(figure(canvas, `${node.map.h} × ${node.map.w}: ${share}; largest ${number(node.map.scale)}`));
  }
  return found.length ? [make("div", { className: "pair" }, ...found)] : [];
}

function examples(node) {
  if (!node.exemplars.length) return [];
  return titled("In other images", make("div", { className: "strip" }, ...node.exemplars.map(([name, crop]) =>
    figure(make("img", { src: crop, alt: `Exemplar in ${name}`, title: name, loading: "lazy" }), name))));
}

function importances(node) {
  const values = Object.entries(node.importance).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, STRONGEST);
  if (!values.length || node.kind === "class") return [];
  const scale = Math.max(...values.map(([, value]) => Math.abs(value))) || 1;
  return titled("Importance for the classes", ...values.map(([key_, value]) => {
    const bar = make("i", { className: side(value) }), part = value / scale;
    bar.style.cssText = `left:${part < 0 ? 50 + 50 * part : 50}%;width:${50 * Math.abs(part)}%`;
    return make("div", { className: "meter" }, make("span", { className: "what" }, nameOf.get(key_) ?? key_), make("span", { className: "track" }, bar), make("span", { className: `number ${side(value)}` }, signed(value)));
  }));
}

function linked(title, node, list, end) {
  const all = node[list].map((one) => edges[one]).sort((a, b) => b.size - a.size);
  if (!all.length) return [];
  const rows = all.slice(0, STRONGEST).map((edge) => {
    const other = nodes[edge[end]];
    const name = make("span", { className: "what" }, short(other), make("small", {}, ` ${other.id}`));
    return make("button", { type: "button", className: "row", title: `Go to ${other.id}`, onclick: () => visit(other.index) },
      name, make("span", { className: `number ${side(edge.share)}` }, percent(edge.share)), make("span", { className: "number" }, signed(edge.weight)));
  });
  const more = all.length > STRONGEST ? `, ${STRONGEST} of ${all.length}` : "";
  return [make("h3", { className: "columns" }, `${title}${more}`, make("small", {}, "share"), make("small", {}, "ICAT")), ...rows];
}

function overview() {
  const about = data.about.map(([name, value]) => [name, value]);
  const parts = [make("h2", {}, "The graph")];
  if (data.picture) parts.push(make("div", { className: "pair" }, figure(make("img", { src: data.picture, alt: "The image that is explained" }), "the image")));
  parts.push(...titled("How to read it",
    make("p", {}, "Every node is a concept of a layer, with the part of the image that it comes from. An edge says what it does for a concept of a later layer or for a class (ICAT): red for, dashed blue against, wider for a larger share of all that is done for or against that target."),
    make("p", {}, "Bars on a node: its importance for the classes, on the scale of the layer's concepts; those of residuals may be cut. Point at a node for its numbers; click it, or press Enter, for the routes through it; Escape shows everything again. Arrow keys follow the strongest edges.")));
  parts.push(...titled("About", table(about)));
  const layers = data.layers.filter((layer) => !layer.classes);
  if (layers.length) parts.push(...titled("Layers: concepts, positions, relative error", table(layers.map((layer) => [layer.site, layer.atoms ?? "", layer.grid ? layer.grid.join(" × ") : "", layer.error == null ? "" : layer.error.toFixed(3)]))));
  if (data.completeness.length) parts.push(...titled("Completeness: what edges miss of S(reached) − S(base)", table(data.completeness.map((one) => [`${one.source} → ${one.target}`, one.missed == null ? "" : percent(one.missed)]))));
  return parts;
}
