"use strict";
// The graph, what of it is shown, and where. Edges come in ascending |share|: the strongest is drawn last.

const data = JSON.parse(document.getElementById("graph").textContent);
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 52, STEP = 60, HEAD = 52, PAD = 14, WIDEST = 26; // pixels
const FEW = 20; // matches of a search that are shown also where the sliders hide them
const CLASS_COLOURS = ["#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#7f8790"];

const nodes = data.nodes.map((node, index) => ({
  ...node, index, in: [], out: [], x: 0, y: 0, shown: false, element: null,
  words: [node.id, node.label, ...node.tags.map((tag) => tag[0])].join("\n").toLowerCase(),
}));
const edges = data.edges.map(([source, target, weight, share], index) => {
  nodes[source].out.push(index);
  nodes[target].in.push(index);
  return { index, source, target, weight, share, size: Math.abs(share), shown: false, drawn: -1, element: null };
});
const total = edges.reduce((sum, edge) => sum + edge.size, 0);
const colourOf = new Map(data.classes.map(([key], place) => [key, CLASS_COLOURS[place % CLASS_COLOURS.length]]));
const nameOf = new Map(data.classes);
const byId = new Map(nodes.map((node) => [node.id, node.index]));
const most = Math.max(1, ...data.layers.map((layer) => layer.nodes.filter((one) => !untold(nodes[one])).length));

const state = { share: 0, nodes: 0, from: 0, to: 0, negative: true, untold: true, of: "", query: "", kept: null };
let width = 150, gap = 100, version = 0, hovered = null, current = null, route = null, waiting = null, dressed = null;

function untold(node) { return node.kind === "residual" || node.kind === "rest"; }

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function number(value) {
  const size = Math.abs(value);
  const text = size !== 0 && (size < 0.001 || size >= 1e5) ? size.toExponential(1) : String(Number(size.toPrecision(3)));
  return (value < 0 ? "−" : "") + text;
}
const percent = (share) => `${number(100 * Number(share.toPrecision(2)))} %`;
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const side = (value) => (value < 0 ? "against" : "for");
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const short = (node) => node.label || node.id;

// ------------------------------------------------------------------------------------------------ what is shown

function rank(node) {
  const values = Object.values(node.importance);
  if (node.kind === "class") return node.activation ?? 0;
  if (!values.length) return Math.abs(node.activation ?? 0);
  if (state.of !== "") return Math.abs(node.importance[state.of] ?? 0);
  return values.reduce((sum, value) => sum + Math.abs(value), 0);
}

function matches(node) {
  const query = state.query.replace(/^#/, "");
  if (!query) return false;
  if (/^\d+$/.test(query)) return String(node.concept) === query || (node.kind === "class" && node.key === query);
  return query.split(/\s+/).every((word) => node.words.includes(word));
}

function chooseNodes() {
  for (const node of nodes) {
    node.hit = matches(node);
    node.shown = false;
  }
  const few = nodes.filter((node) => node.hit).length <= FEW;
  data.layers.forEach((layer, place) => {
    if (place < state.from || place > state.to) return;
    const own = layer.nodes.map((one) => nodes[one]);
    const told = own.filter((node) => !untold(node) && !(node.kind === "class" && state.of !== "" && node.key !== state.of));
    const first = new Set(told.slice().sort((a, b) => rank(b) - rank(a)).slice(0, state.nodes));
    for (const node of own) {
      node.shown = untold(node) ? state.untold : first.has(node) || (node.hit && few) || node.index === state.kept;
    }
  });
}

function wanted(edge) {
  return edge.size >= state.share && edge.size > 0 && (state.negative || edge.share >= 0)
    && nodes[edge.source].shown && nodes[edge.target].shown;
}

/** All that leads to a node, and all that it leads to, along edges that are shown. */
function routesOf(start) {
  const found = { nodes: new Set([start]), edges: new Set() };
  for (const [list, end] of [["in", "source"], ["out", "target"]]) {
    const stack = [start], seen = new Set(stack);
    while (stack.length) {
      for (const one of nodes[stack.pop()][list]) {
        if (!wanted(edges[one])) continue;
        found.edges.add(one);
        const next = edges[one][end];
        found.nodes.add(next);
        if (!seen.has(next)) seen.add(next), stack.push(next);
      }
    }
  }
  return found;
}

// ------------------------------------------------------------------------------------------------ drawing

function place() {
  const columns = [];
  for (let layer = state.from; layer <= state.to; layer++) columns.push(data.layers[layer].nodes.filter((one) => nodes[one].shown));
  const room = at("scroller").clientWidth - 2 * PAD, count = columns.length;
  width = Math.max(110, Math.min(164, (room - (count - 1) * 56) / count));
  gap = Math.max(50, Math.min(240, count > 1 ? (room - count * width) / (count - 1) : 0));
  const rows = Math.max(1, ...columns.map((column) => column.length));
  columns.forEach((column, number_) => column.forEach((one, row) => {
    nodes[one].x = PAD + number_ * (width + gap);
    nodes[one].y = HEAD + ((rows - column.length) / 2 + row) * STEP;
  }));
  const stage = at("stage");
  stage.style.width = `${2 * PAD + count * width + (count - 1) * gap}px`;
  stage.style.height = `${HEAD + rows * STEP + PAD}px`;
  stage.style.setProperty("--print-zoom", Math.min(1, 1040 / (2 * PAD + count * width + (count - 1) * gap)));
  for (const node of nodes) {
    node.element.hidden = !node.shown;
    if (!node.shown) continue;
    node.element.style.left = `${node.x}px`;
    node.element.style.top = `${node.y}px`;
    node.element.style.width = `${width}px`;
  }
  at("heads").replaceChildren(...columns.map((_, number_) => headOf(data.layers[state.from + number_], PAD + number_ * (width + gap))));
  version += 1;
}

function headOf(layer, left) {
  const told = [];
  if (layer.atoms != null) told.push(`${layer.atoms} concepts`);
  if (layer.error != null) told.push(`error ${layer.error.toFixed(2)}`);
  const head = make("div", { className: "head", title: layer.site }, make("b", {}, layer.classes ? "classes" : layer.site), make("span", {}, told.join(" · ")));
  head.style.left = `${left}px`;
  head.style.width = `${width + Math.min(gap - 8, 40)}px`;
  return head;
}

/** From the right side of a card to the left side of another, leaving in the direction in which it goes. */
function curve(edge) {
  const a = nodes[edge.source], b = nodes[edge.target];
  const x0 = a.x + width, x1 = b.x, tilt = Math.max(-20, Math.min(20, (b.y - a.y) / 14));
  const y0 = a.y + HEIGHT / 2 + tilt, y1 = b.y + HEIGHT / 2 - tilt, bend = (x1 - x0) / 2;
  return `M${x0.toFixed(1)} ${y0.toFixed(1)}C${(x0 + bend).toFixed(1)} ${y0.toFixed(1)} ${(x1 - bend).toFixed(1)} ${y1.toFixed(1)} ${x1.toFixed(1)} ${y1.toFixed(1)}`;
}

function drawEdges() {
  let count = 0, mass = 0;
  for (const edge of edges) {
    const shown = wanted(edge) && (route === null || route.edges.has(edge.index));
    if (shown) {
      count += 1;
      mass += edge.size;
      if (edge.drawn !== version) {
        edge.element.setAttribute("d", curve(edge));
        edge.drawn = version;
      }
    }
    if (shown !== edge.shown) {
      edge.shown = shown;
      edge.element.style.display = shown ? "" : "none";
    }
  }
  return { count, mass: total ? mass / total : 0 };
}

function drawHover() {
  const paths = [];
  if (hovered !== null && hovered !== state.kept && nodes[hovered].shown) {
    for (const one of [...nodes[hovered].in, ...nodes[hovered].out]) {
      if (edges[one].shown) paths.push(edges[one].element.cloneNode());
    }
  }
  at("over").replaceChildren(...paths);
  at("stage").classList.toggle("hovering", paths.length > 0);
}

function dress() {
  if (dressed === state.of) return;
  dressed = state.of;
  const scale = data.layers.map((layer) => Math.max(1e-30, ...layer.nodes.flatMap((one) => {
    const values = untold(nodes[one]) ? {} : nodes[one].importance; // residuals can dwarf all concepts: theirs are cut
    return (state.of === "" ? Object.values(values) : [values[state.of] ?? 0]).map(Math.abs);
  })));
  for (const node of nodes) {
    if (node.kind === "class") continue;
    const keys = (state.of === "" ? [...colourOf.keys()] : [state.of]).filter((key) => key in node.importance).slice(0, 4);
    node.bars.replaceChildren(...keys.map((key, row) => {
      const part = Math.max(-1, Math.min(1, node.importance[key] / scale[node.layer])), bar = make("i");
      bar.style.cssText = `top:${row * 3.5}px;background:${colourOf.get(key)};width:${50 * Math.abs(part)}%;left:${part < 0 ? 50 + 50 * part : 50}%`;
      return bar;
    }));
    node.bars.hidden = !keys.length;
    const part = state.of === "" ? 0 : (node.importance[state.of] ?? 0) / scale[node.layer];
    node.element.style.setProperty("--tint", part && !untold(node)
      ? `color-mix(in srgb, var(--${side(part)}) ${Math.round(40 * Math.abs(part))}%, var(--paper))` : "var(--paper)");
  }
}

function mark() {
  const searching = state.query !== "";
  let hits = 0;
  for (const node of nodes) {
    if (!node.shown) continue;
    hits += node.hit;
    const names = node.element.classList;
    names.toggle("off", route !== null && !route.nodes.has(node.index));
    names.toggle("kept", node.index === state.kept);
    names.toggle("hit", searching && node.hit);
    names.toggle("miss", searching && !node.hit);
    node.element.setAttribute("aria-pressed", String(node.index === state.kept));
  }
  return hits;
}

/** Bring the picture up to date; `layout`: nodes may come, go or move. */
function update(layout) {
  if (layout) {
    chooseNodes();
    if (state.kept !== null && !nodes[state.kept].shown) state.kept = null;
    place();
    dress();
  }
  route = state.kept === null ? null : routesOf(state.kept);
  const { count, mass } = drawEdges();
  const hits = mark();
  drawHover();
  rove();
  const shown = nodes.filter((node) => node.shown).length;
  const parts = [`${shown} of ${nodes.length} nodes`, `${count} of ${edges.length} edges, ${percent(mass)} of their mass`];
  if (state.kept !== null) parts.unshift(`routes of ${short(nodes[state.kept])}: ${counted(route.nodes.size - 1, "node")}`);
  if (state.query !== "") parts.unshift(`${hits} of ${nodes.filter((node) => node.hit).length} matches shown`);
  at("status").textContent = parts.join(" · ");
  at("share-value").textContent = `≥ ${percent(state.share)}`;
  at("nodes-value").textContent = state.nodes >= most ? `all ${most}` : String(state.nodes);
  at("from-value").textContent = data.layers[state.from].site;
  at("to-value").textContent = data.layers[state.to].site;
  for (const name of ["share", "nodes", "from", "to"]) at(name).setAttribute("aria-valuetext", at(`${name}-value`).textContent);
}

/** Many changes within a frame are drawn once. */
function schedule(layout) {
  if (waiting === null) requestAnimationFrame(() => { const all = waiting; waiting = null; update(all); });
  waiting = waiting || layout;
}

/** Of all nodes one is reached with Tab, the others with arrows. */
function rove() {
  if (current === null || !nodes[current].shown) current = (nodes.find((node) => node.shown) ?? { index: null }).index;
  for (const node of nodes) node.element.tabIndex = node.index === current ? 0 : -1;
}

// ------------------------------------------------------------------------------------------------ elements

function nodeElement(node) {
  const thumb = node.crop ? make("img", { className: "thumb", src: node.crop, alt: "", decoding: "async" })
    : node.map ? heat(node.map, make("canvas", { className: "thumb" })) : make("span", { className: `thumb ${node.kind}` });
  node.bars = make("span", { className: "bars" });
  node.element = make("button", { type: "button", className: `node ${node.kind}${node.shared ? " shared" : ""}`, title: node.id }, thumb, make("span", { className: "name" }, nameOnNode(node)));
  if (node.kind === "class") node.element.append(make("span", { className: "told" }, outcome(node).at(-1) ?? ""));
  else node.element.append(node.bars);
  node.element.dataset.node = node.index;
  if (node.kind === "class") node.element.style.setProperty("--own", colourOf.get(node.key) ?? "");
  const told = Object.entries(node.importance).map(([key, value]) => `${signed(value)} for ${nameOf.get(key) ?? key}`);
  const kind = { concept: `concept ${node.concept}`, residual: "residual", rest: "other concepts", class: "class" }[node.kind];
  node.element.setAttribute("aria-label", [short(node), `${kind} of ${data.layers[node.layer].site}`, ...(node.kind === "class" ? [] : told)].join(", "));
  return node.element;
}

/** On a node there is little room: a concept without a name of its own goes by its number. */
function nameOnNode(node) { return short(node) === `concept ${node.concept}` ? `#${node.concept}` : short(node); }

function outcome(node) {
  const found = node.activation == null ? [] : [`output ${number(node.activation)}`];
  return node.probability == null ? found : [...found, percent(node.probability)];
}

function edgeElement(edge) {
  edge.element = document.createElementNS(SVG, "path");
  edge.element.setAttribute("class", side(edge.share));
  edge.element.setAttribute("stroke-width", Math.max(0.5, WIDEST * edge.size).toFixed(2));
  edge.element.style.display = "none";
  return edge.element;
}

/** Where a node is on: red for positive codes, blue for negative ones, clear for zero; over the image if it is there. */
function heat(map, canvas, cell = 1) {
  const levels = Int8Array.from(atob(map.levels), (character) => character.charCodeAt(0));
  canvas.width = map.w * cell;
  canvas.height = map.h * cell;
  const context = canvas.getContext("2d");
  levels.forEach((level, place) => {
    const x = (place % map.w) * cell, y = Math.floor(place / map.w) * cell, edge = cell > 3 ? 1 : 0;
    context.fillStyle = `rgb(${level < 0 ? "33 102 172" : "178 24 43"} / ${Math.abs(level) / 127})`;
    context.fillRect(x, y, cell - edge, cell - edge);
  });
  return canvas;
}

function key(path, text) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", 34);
  svg.setAttribute("height", 14);
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", "M0 7H34");
  line.setAttribute("class", path);
  line.setAttribute("stroke-width", (WIDEST * 0.2).toFixed(1));
  svg.append(line);
  return make("span", {}, svg, text);
}

function legend() {
  const parts = [key("for", "does 20 % for its target"), key("against", "does 20 % against it")];
  const kinds = { residual: "residual: what no concept tells", rest: "rest: all other concepts of the layer" };
  for (const [kind, text] of Object.entries(kinds)) {
    if (nodes.some((node) => node.kind === kind)) parts.push(make("span", {}, make("i", { className: `swatch ${kind}` }), text));
  }
  if (nodes.some((node) => node.shared)) parts.push(make("span", {}, make("i", { className: "swatch shared" }), "shared by classes"));
  const told = data.classes.filter(([name]) => nodes.some((node) => node.kind !== "class" && name in node.importance));
  for (const [name, text] of told.slice(0, 4)) {
    const swatch = make("i", { className: "swatch plain" });
    swatch.style.background = colourOf.get(name);
    parts.push(make("span", {}, swatch, `importance for ${text}`));
  }
  at("legend").replaceChildren(...parts);
}
