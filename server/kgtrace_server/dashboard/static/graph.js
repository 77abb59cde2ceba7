// The neighbourhood of a prediction: entities as nodes, the prediction and the triples that influenced it as edges.

import d3 from "./d3.js";
import { el, nameOf, svg, tripleString } from "./dom.js";
import { signed } from "./format.js";
import { side } from "./charts.js";

const CHARACTER = 6.7; // pixels, of the labels' font
const LONGEST = 26; // characters of a label
const RADIUS = 7;
const ROW = 16; // height of a label
const TICKS = 400;
const NARROW = 560; // pixels: below, fewer triples are drawn

/** How many influences of each sign are drawn in so much room. @param {number} width */
export function most(width) {
  return width < NARROW ? 4 : 7;
}

/**
 * Draw the graph. It can be dragged, zoomed with the buttons, or with Ctrl and the wheel.
 * @param {import("./api.js").Triple} prediction
 * @param {{triple: import("./api.js").Triple, influence: number, rank: string}[]} influences `rank` is written on the edge.
 * @param {number} width In pixels.
 */
export function graph(prediction, influences, width) {
  const height = width < NARROW ? 400 : 460;
  const { nodes, edges } = laidOut(prediction, influences, width, height);
  const thickness = d3.scaleSqrt([0, d3.max(influences, ({ influence }) => Math.abs(influence)) || 1], [1, 7]);
  const scene = svg("g", {}, edges.map((edge) => drawnEdge(edge, thickness)), nodes.map(drawnNode));
  const picture = svg(
    "svg",
    { class: "graph", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(prediction, edges) },
    svg("defs", {}, ["positive", "negative", "prediction"].map(arrow)),
    scene,
  );
  const zoom = d3.zoom().scaleExtent([0.5, 4]).on("zoom", ({ transform }) => scene.setAttribute("transform", transform))
    .filter((event) => event.type !== "wheel" || event.ctrlKey);
  const zoomed = d3.select(picture).call(zoom);
  const button = (text, name, act) => el("button", { type: "button", click: act, "aria-label": name, title: name }, text);
  return el(
    "div",
    { class: "graph-box" },
    picture,
    el(
      "div",
      { class: "zoom", role: "group", "aria-label": "Zoom" },
      button("+", "Zoom in", () => zoomed.call(zoom.scaleBy, 1.4)),
      button("−", "Zoom out", () => zoomed.call(zoom.scaleBy, 1 / 1.4)),
      button("⟲", "Whole graph", () => zoomed.call(zoom.transform, d3.zoomIdentity)),
    ),
  );
}

/** What the colours, lines and widths mean. */
export function legend() {
  const sample = (kind) => svg("svg", { class: "graph sample", viewBox: "0 0 36 10", "aria-hidden": "true" }, svg("line", { class: `edge ${kind}`, x1: 1, x2: 35, y1: 5, y2: 5 }));
  return el(
    "ul",
    { class: "legend" },
    el("li", {}, sample("prediction"), "the prediction"),
    el("li", {}, sample("positive"), "speaks for it"),
    el("li", {}, sample("negative"), "speaks against it"),
    el("li", {}, "numbers as in the tables; thicker: more influence"),
  );
}

function summary(prediction, edges) {
  const signs = edges.filter(({ influence }) => influence !== null).map(({ influence }) => side(influence));
  const counted = (sign) => signs.filter((other) => other === sign).length;
  return `Graph of ${tripleString(prediction)}, with ${counted("positive")} training triples that speak for it and ${counted("negative")} against it; listed below.`;
}

/** Nodes and edges with places. The prediction's two entities are held apart, all others find theirs. */
function laidOut(prediction, influences, width, height) {
  const nodes = new Map();
  const node = (thing) => {
    if (!nodes.has(thing.id)) nodes.set(thing.id, { id: thing.id, thing, text: shortened(nameOf(thing)) });
    return nodes.get(thing.id);
  };
  const edge = ({ triple, influence, rank }) => ({ triple, influence, rank, source: node(triple.head), target: node(triple.tail) });
  const edges = [{ triple: prediction, influence: null, rank: "" }, ...influences].map(edge);
  bend(edges);
  const [head, tail] = [node(prediction.head), node(prediction.tail)];
  for (const end of [head, tail]) end.asked = true;
  head.fx = head === tail ? width / 2 : width * 0.3;
  tail.fx = head === tail ? width / 2 : width * 0.7;
  head.fy = tail.fy = height / 2;
  const placed = [...nodes.values()];
  d3.forceSimulation(placed)
    .force("edges", d3.forceLink(edges).distance(width / 5).strength(0.25))
    .force("charge", d3.forceManyBody().strength(-700))
    .force("x", d3.forceX(width / 2).strength(0.04))
    .force("y", d3.forceY(height / 2).strength(0.06 * Math.max(1, width / height)))
    .force("labels", () => separate(placed))
    .force("frame", () => placed.forEach((place) => keepWithin(place, width, height)))
    .stop()
    .tick(TICKS);
  return { nodes: placed, edges };
}

/** Several edges between two nodes are bent apart. */
function bend(edges) {
  const between = d3.group(edges, ({ source, target }) => [source.id, target.id].sort((a, b) => a - b).join());
  for (const parallel of between.values()) {
    parallel.forEach((edge, i) => {
      const step = i - (parallel.length - 1) / 2;
      edge.bend = step * 26 * (edge.source.id <= edge.target.id ? 1 : -1);
      edge.loop = i;
    });
  }
}

function halfWidth({ text }) {
  return Math.max(RADIUS, (text.length * CHARACTER) / 2) + 8;
}

/** A force: no node, with the label below it, covers another. */
function separate(nodes) {
  for (const [a, b] of d3.cross(nodes, nodes)) {
    if (a.index >= b.index) continue;
    const [dx, dy] = [b.x - a.x, b.y - a.y];
    const overlapX = halfWidth(a) + halfWidth(b) - Math.abs(dx);
    const overlapY = 2 * RADIUS + ROW + 6 - Math.abs(dy);
    if (overlapX <= 0 || overlapY <= 0) continue;
    const sign = dy < 0 ? -1 : 1;
    a.y -= (sign * overlapY) / 2;
    b.y += (sign * overlapY) / 2;
  }
}

function keepWithin(node, width, height) {
  const half = halfWidth(node);
  node.x = Math.max(half, Math.min(width - half, node.x));
  node.y = Math.max(RADIUS + 6, Math.min(height - RADIUS - ROW - 4, node.y));
}

function shortened(text) {
  return text.length <= LONGEST ? text : `${text.slice(0, LONGEST - 1)}…`;
}

function arrow(kind) {
  const marker = { id: `arrow-${kind}`, class: `arrow ${kind}`, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 12, markerHeight: 12, markerUnits: "userSpaceOnUse", orient: "auto" };
  return svg("marker", marker, svg("path", { d: "M0 0 10 5 0 10z" }));
}

function drawnEdge(edge, thickness) {
  const kind = edge.influence === null ? "prediction" : side(edge.influence);
  const title = edge.influence === null ? "the prediction" : `influence ${signed(edge.influence)}`;
  const { path, middle } = edge.source === edge.target ? loop(edge) : arc(edge);
  return svg(
    "g",
    {},
    svg("title", {}, `${tripleString(edge.triple)}: ${title}`),
    svg("path", {
      class: `edge ${kind}`,
      d: path,
      "stroke-width": edge.influence === null ? 3 : thickness(Math.abs(edge.influence)),
      "marker-end": `url(#arrow-${kind})`,
    }),
    svg("text", { class: `rank ${kind}`, x: middle[0], y: middle[1] + 4 }, edge.rank),
  );
}

/** From rim to rim, bent sideways. */
function arc({ source, target, bend }) {
  const [dx, dy] = [target.x - source.x, target.y - source.y];
  const length = Math.hypot(dx, dy) || 1;
  const aside = (by) => [(source.x + target.x) / 2 - (dy / length) * by, (source.y + target.y) / 2 + (dx / length) * by];
  const control = aside(2 * bend);
  return { path: `M${rim(source, control)} Q${control} ${rim(target, control)}`, middle: aside(bend) };
}

function rim({ x, y }, [toX, toY]) {
  const [dx, dy] = [toX - x, toY - y];
  const share = (RADIUS + 3) / (Math.hypot(dx, dy) || 1);
  return [x + dx * share, y + dy * share];
}

function loop({ source: { x, y }, loop }) {
  const size = 22 + loop * 8;
  const path = `M${x - RADIUS} ${y - 4} C${x - size} ${y - size * 1.6} ${x + size} ${y - size * 1.6} ${x + RADIUS} ${y - 4}`;
  return { path, middle: [x, y - size * 1.3] };
}

function drawnNode({ x, y, thing, text, asked }) {
  return svg(
    "g",
    { class: asked ? "node asked" : "node", transform: `translate(${x},${y})` },
    svg("title", {}, thing.name ? `${thing.name} (${thing.label})` : thing.label),
    svg("circle", { r: RADIUS }),
    svg("text", { y: RADIUS + ROW - 3 }, text),
  );
}
