// What the reader does: point, click, type, slide.

function defaults() {
  Object.assign(state, { nodes: Math.min(most, 10), from: 0, to: data.layers.length - 1, negative: true, untold: true, of: "", query: "", kept: null });
  state.share = startingShare();
}
const shareAt = (place) => 0.5 * (place / 100) ** 2; // finer where most edges are

/** The smallest stop of the slider that leaves about two edges for each node that is shown. */
function startingShare() {
  chooseNodes();
  const limit = Math.max(40, 2 * nodes.filter((node) => node.shown).length);
  let place = 0;
  for (state.share = 0; place < 100 && edges.filter(wanted).length > limit; place++) state.share = shareAt(place + 1);
  return shareAt(place);
}

function controls() {
  at("share").value = Math.round(100 * Math.sqrt(state.share / 0.5));
  for (const name of ["nodes", "from", "to"]) at(name).value = state[name];
  for (const name of ["negative", "untold"]) at(name).checked = state[name];
  at("of").value = state.of;
  at("search").value = state.query;
}

function reset() {
  defaults();
  hovered = null;
  controls();
  remember();
  update(true);
  showCard(null);
}

/** Isolate a node's routes, or show everything again. */
function keep(index) {
  state.kept = index === null || state.kept === index ? null : index;
  remember();
  update(false);
  showCard(state.kept ?? index);
}

/** The address names the node whose routes are shown, so that a finding can be passed on. */
function remember() {
  try {
    history.replaceState(null, "", state.kept === null ? location.pathname + location.search : `#${encodeURIComponent(nodes[state.kept].id)}`);
  } catch { /* some browsers refuse this for files */ }
}

function recall() {
  let id = "";
  try { id = decodeURIComponent(location.hash.slice(1)); } catch { return; }
  if (byId.has(id)) {
    state.kept = byId.get(id);
    update(true);
    showCard(state.kept);
  }
}

function hover(index) {
  if (hovered === index) return;
  hovered = index;
  drawHover();
  if (index !== null) showCard(index);
}

/** Go to a node, also to one that the settings hide. */
function visit(index) {
  const node = nodes[index];
  if (!node.shown) {
    state.from = Math.min(state.from, node.layer);
    state.to = Math.max(state.to, node.layer);
    if (untold(node)) state.untold = true;
    else if (node.kind === "class") state.of = "";
    else state.nodes = most;
    controls();
    update(true);
  }
  current = index;
  rove();
  node.element.focus();
  node.element.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function step(node, direction) {
  const [list, end] = direction < 0 ? ["in", "source"] : ["out", "target"];
  const linked_ = node[list].map((one) => edges[one]).filter((edge) => edge.shown).sort((a, b) => b.size - a.size);
  if (linked_.length) return linked_[0][end];
  const beside = nodes.filter((other) => other.shown && other.layer === node.layer + direction);
  beside.sort((a, b) => Math.abs(a.y - node.y) - Math.abs(b.y - node.y));
  return beside.length ? beside[0].index : null;
}

function arrow(event) {
  const element = event.target.closest(".node");
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 };
  if (!element || !(event.key in moves)) return;
  const node = nodes[element.dataset.node], by = moves[event.key];
  const column = data.layers[node.layer].nodes.filter((one) => nodes[one].shown);
  const next = event.key === "ArrowLeft" || event.key === "ArrowRight" ? step(node, by) : column[column.indexOf(node.index) + by];
  event.preventDefault();
  if (next !== undefined && next !== null) visit(next);
}

function escape() {
  if (document.activeElement === at("search") && state.query !== "") {
    at("search").value = state.query = "";
    schedule(true);
    return;
  }
  state.kept = null;
  hovered = null;
  remember();
  update(false);
  showCard(null);
}

function listen() {
  const stage = at("stage"), indexOf = (event) => { const found = event.target.closest?.(".node"); return found ? Number(found.dataset.node) : null; };
  stage.addEventListener("pointerover", (event) => { if (event.pointerType !== "touch") hover(indexOf(event)); });
  stage.addEventListener("pointerleave", () => hover(null));
  stage.addEventListener("focusin", (event) => { const one = indexOf(event); if (one !== null) { current = one; rove(); hover(one); } });
  stage.addEventListener("focusout", (event) => { if (!event.relatedTarget?.closest?.(".node")) hover(null); });
  stage.addEventListener("click", (event) => { const one = indexOf(event); if (one !== null) keep(one); });
  stage.addEventListener("keydown", arrow);
  at("share").addEventListener("input", (event) => { state.share = shareAt(Number(event.target.value)); schedule(false); });
  at("nodes").addEventListener("input", (event) => { state.nodes = Number(event.target.value); schedule(true); });
  for (const [name, other, pick] of [["from", "to", Math.max], ["to", "from", Math.min]]) {
    at(name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      state[other] = pick(state[other], state[name]);
      at(other).value = state[other];
      schedule(true);
    });
  }
  at("negative").addEventListener("change", (event) => { state.negative = event.target.checked; schedule(false); });
  at("untold").addEventListener("change", (event) => { state.untold = event.target.checked; schedule(true); });
  at("of").addEventListener("change", (event) => { state.of = event.target.value; schedule(true); });
  at("search").addEventListener("input", (event) => { state.query = event.target.value.trim().toLowerCase(); schedule(true); });
  at("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    if (waiting !== null) update(true);
    const first = nodes.find((node) => node.shown && node.hit);
    if (first) visit(first.index);
  });
  at("reset").addEventListener("click", reset);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") escape();
    if (event.key === "/" && !/^(input|select|textarea)$/i.test(event.target.tagName)) event.preventDefault(), at("search").focus();
  });
  window.addEventListener("resize", () => schedule(true));
  window.addEventListener("hashchange", recall);
}

function start() {
  at("subtitle").textContent = data.subtitle;
  at("nodes").max = most;
  at("from").max = at("to").max = data.layers.length - 1;
  at("of").append(make("option", { value: "" }, "all classes"), ...data.classes.map(([name, text]) => make("option", { value: name }, text)));
  if (matchMedia("(max-width: 900px)").matches) at("settings").open = false;
  at("base").append(...edges.map(edgeElement));
  at("nodes-layer").append(...data.layers.flatMap((layer) => layer.nodes).map((one) => nodeElement(nodes[one])));
  defaults();
  legend();
  controls();
  update(true);
  showCard(null);
  listen();
  recall();
}

start();
