// The neighbourhood of a prediction: entities as nodes, the prediction and the triples that influenced it as edges.

import d3 from "./d3.js";
import { el, nameOf, svg, tripleString } from "./dom.js";
import { signed } from "./format.js";
import { side } from "./charts.js";

const CHARACTER = 6.7; // pixels, of the labels' font
const LONGEST = 26; // characters of a label
const RADIUS = 7;
const ROW = 16; // height of a label
const LOOP = 42; // how far a loop reaches
const TICKS = 400;
const NARROW = 560; // pixels: below, fewer triples are drawn

/** How many influences of each sign are drawn in so much room. @param {number} width */
export function most(width) {
  return width < NARROW ? 3 : 7;
}

/**
 * @typedef {import("./api.js").Triple} Triple
 * Draw the graph. It can be dragged, zoomed with the buttons, or with Ctrl and the wheel.
 * @param {Triple} prediction
 * @param {{triple: Triple, influence: number, rank: string, path: Triple[]}[]} influences
 *   `rank` is written on the edge; other training triples of the `path` from head to tail are drawn as thin lines.
 * @param {number} width In pixels.
 */
export function graph(prediction, influences, width) {
  const height = width < NARROW ? 400 : 460;
  const { nodes, edges } = laidOut(prediction, influences, width, height);
  const thickness = d3.scaleSqrt([0, d3.max(influences, ({ influence }) => Math.abs(influence)) || 1], [1, 7]);
  const scene = svg(
    "g",
    { class: "scene" },
    edges.toReversed().map((edge) => drawnEdge(edge, thickness)), // the prediction above all
    nodes.map(drawnNode),
  );
  const picture = svg(
    "svg",
    { class: "graph", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(prediction, edges) },
    svg("defs", {}, ["positive", "negative", "prediction", "step"].map(arrow)),
    scene,
  );
  const zoom = d3
    .zoom()
    .scaleExtent([0.5, 4])
    .on("zoom", ({ transform }) => scene.setAttribute("transform", transform))
    .filter((event) => event.type !== "wheel" || event.ctrlKey);
  const zoomed = d3.select(picture).call(zoom);
  const button = (text, name, act) =>
    el("button", { type: "button", click: act, "aria-label": name, title: name }, text);
  return el(
    "div",
    {},
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
  const sample = (kind) =>
    svg(
      "svg",
      { class: "graph sample", viewBox: "0 0 36 10", "aria-hidden": "true" },
      svg("line", { class: `edge ${kind}`, x1: 1, x2: 35, y1: 5, y2: 5 }),
    );
  return el(
    "ul",
    { class: "legend" },
    el("li", {}, sample("prediction"), "the prediction"),
    el("li", {}, sample("positive"), "speaks for it"),
    el("li", {}, sample("negative"), "speaks against it"),
    el("li", {}, sample("step"), "completes a path from head to tail"),
    el("li", {}, "numbers as in the tables; thicker: more influence"),
  );
}

function summary(prediction, edges) {
  const counted = (sign) => edges.filter(({ kind }) => kind === sign).length;
  const sides = `${counted("positive")} training triples that speak for it and ${counted("negative")} against it`;
  return `Graph of ${tripleString(prediction)}, with ${sides}; listed below.`;
}

/**
 * Nodes and edges with places. The prediction stands in the middle, all else finds its place. The middle of each edge
 * is a place, too, which others keep away from: edges run clear of names, and numbers can be read.
 */
function laidOut(prediction, influences, width, height) {
  const nodes = new Map();
  const node = (thing) => {
    if (!nodes.has(thing.id)) {
      const text = shortened(nameOf(thing));
      nodes.set(thing.id, {
        thing,
        text,
        half: (text.length * CHARACTER) / 2 + 6,
        above: RADIUS + 4,
        below: RADIUS + ROW + 4,
      });
    }
    return nodes.get(thing.id);
  };
  const edge = ({ triple, kind, influence = null, rank = "" }) => {
    const middle = { half: 14, above: 9, below: 9 };
    return { triple, kind, influence, rank, source: node(triple.head), target: node(triple.tail), middle };
  };
  const named = [
    { triple: prediction, kind: "prediction" },
    ...influences.map((influence) => ({ ...influence, kind: side(influence.influence) })),
  ];
  const edges = [...named, ...steps(named)].map(edge);
  const [{ source: head, target: tail, middle }] = edges;
  const pin = (place, share) => {
    const [x, y] = width < NARROW ? [0.5, share] : [share, 0.5];
    Object.assign(place, { explained: true, fx: width * x, fy: height * y });
  };
  pin(head, head === tail ? 0.5 : 0.3);
  if (head !== tail) [pin(tail, 0.7), pin(middle, 0.5)];
  const numbered = edges.filter(({ kind }) => kind !== "step");
  const places = [...nodes.values(), ...numbered.map(({ middle }) => middle)];
  spread(places, width, height);
  bend(edges);
  const room = (width * height) / places.length; // for each
  d3.forceSimulation(places)
    .force(
      "edges",
      d3
        .forceLink(edges)
        .distance(Math.sqrt(room) * 1.3)
        .strength(({ kind }) => (kind === "step" ? 0.05 : 0.3)),
    )
    .force("middles", () => numbered.forEach(straighten))
    .force(
      "charge",
      d3
        .forceManyBody()
        .strength(({ thing }) => (thing ? -room / 20 : -room / 80))
        .distanceMax(width / 2),
    )
    .force("x", d3.forceX(width / 2).strength(0.03))
    .force("y", d3.forceY(height / 2).strength(0.05 * Math.max(1, width / height)))
    .force("separate", () => separate(places))
    .force("frame", () => places.forEach((place) => keepWithin(place, width, height)))
    .stop()
    .tick(TICKS);
  for (const edge of edges) if (edge.kind === "step") Object.assign(edge.middle, straight(edge));
  return { nodes: [...nodes.values()], edges };
}

/** The triples of paths that are neither the prediction nor an influence, each once. */
function steps(named) {
  const key = ({ head, relation, tail }) => [head.id, relation.id, tail.id].join();
  const known = new Set(named.map(({ triple }) => key(triple)));
  const others = new Map(named.flatMap(({ path = [] }) => path).map((triple) => [key(triple), triple]));
  return [...others].filter(([key]) => !known.has(key)).map(([, triple]) => ({ triple, kind: "step" }));
}

/** Where places are before any force moves them: around the middle. */
function spread(places, width, height) {
  places.forEach((place, i) => {
    const angle = i * Math.PI * (3 - Math.sqrt(5));
    Object.assign(place, { x: width * (0.5 + 0.3 * Math.cos(angle)), y: height * (0.5 + 0.3 * Math.sin(angle)) });
  });
}

/** Edges between the same two nodes are bent to different sides. */
function bend(edges) {
  const between = d3.group(edges, ({ source, target }) =>
    [source.thing.id, target.thing.id].sort((a, b) => a - b).join(),
  );
  for (const parallel of between.values()) {
    parallel.forEach((edge, i) => {
      const side = edge.source.thing.id <= edge.target.thing.id ? 1 : -1;
      edge.aside = 24 * (i - (parallel.length - 1) / 2) * side;
    });
  }
}

/** A force: the middle of an edge is drawn to where the edge is straight; that of a loop is above its node. */
function straighten(edge) {
  const { source, middle, target } = edge;
  const { x, y } = straight(edge);
  if (source === target) Object.assign(middle, { x, y, vx: 0, vy: 0 });
  else {
    middle.vx += (x - middle.x) * 0.2;
    middle.vy += (y - middle.y) * 0.2;
  }
}

/** Where the middle of an edge is that is as straight as others beside it allow. */
function straight({ source, target, aside }) {
  if (source === target) return { x: source.x + 2 * aside, y: source.y - LOOP };
  const [dx, dy] = [target.x - source.x, target.y - source.y];
  const length = Math.hypot(dx, dy) || 1;
  return {
    x: (source.x + target.x) / 2 - (dy / length) * aside,
    y: (source.y + target.y) / 2 + (dx / length) * aside,
  };
}

/** A force: no place covers another, with the name below it. */
function separate(places) {
  places.forEach((a, i) => {
    for (let j = i + 1; j < places.length; j += 1) apart(a, places[j]);
  });
}

function apart(a, b) {
  const overlapX = a.half + b.half - Math.abs(a.x - b.x);
  if (overlapX <= 0) return;
  const upper = a.y <= b.y ? a : b;
  const lower = upper === a ? b : a;
  const overlapY = upper.below + lower.above - (lower.y - upper.y);
  if (overlapY <= 0) return;
  const share = upper.explained ? 0 : lower.explained ? 1 : 0.5; // the explained prediction stays in its place
  upper.y -= overlapY * share;
  lower.y += overlapY * (1 - share);
}

function keepWithin(place, width, height) {
  place.x = Math.max(place.half, Math.min(width - place.half, place.x));
  place.y = Math.max(place.above, Math.min(height - place.below, place.y));
}

function shortened(text) {
  return text.length <= LONGEST ? text : `${text.slice(0, LONGEST - 1)}…`;
}

function arrow(kind) {
  const marker = {
    id: `arrow-${kind}`,
    class: `arrow ${kind}`,
    viewBox: "0 0 10 10",
    refX: 9,
    refY: 5,
    markerWidth: 12,
    markerHeight: 12,
    markerUnits: "userSpaceOnUse",
    orient: "auto",
  };
  return svg("marker", marker, svg("path", { d: "M0 0 10 5 0 10z" }));
}

function drawnEdge(edge, thickness) {
  const { kind } = edge;
  const widths = { prediction: 3, step: 1.5 };
  const titles = { prediction: "the prediction", step: "completes a path" };
  const title = titles[kind] ?? `influence ${signed(edge.influence)}`;
  return svg(
    "g",
    {},
    svg("title", {}, `${tripleString(edge.triple)}: ${title}`),
    svg("path", {
      class: `edge ${kind}`,
      d: edge.source === edge.target ? loop(edge) : arc(edge),
      "stroke-width": widths[kind] ?? thickness(Math.abs(edge.influence)),
      "marker-end": `url(#arrow-${kind})`,
    }),
    svg("text", { class: `rank ${kind}`, x: edge.middle.x, y: edge.middle.y + 4 }, edge.rank),
  );
}

/** From rim to rim through the edge's middle. */
function arc({ source, middle, target }) {
  const control = ["x", "y"].map((axis) => 2 * middle[axis] - (source[axis] + target[axis]) / 2);
  return `M${rim(source, control)} Q${control} ${rim(target, control)}`;
}

function rim({ x, y }, [toX, toY]) {
  const [dx, dy] = [toX - x, toY - y];
  const share = (RADIUS + 3) / (Math.hypot(dx, dy) || 1);
  return [x + dx * share, y + dy * share];
}

/** From a node through the edge's middle and back. */
function loop({ source: { x, y }, middle }) {
  const [dx, dy] = [(middle.x - x) * (4 / 3), (middle.y - y) * (4 / 3)]; // so far are the controls of such a curve
  const there = [x + dx - dy / 2, y + dy + dx / 2];
  const back = [x + dx + dy / 2, y + dy - dx / 2];
  return `M${rim({ x, y }, there)} C${there} ${back} ${rim({ x, y }, back)}`;
}

function drawnNode({ x, y, thing, text, explained }) {
  return svg(
    "g",
    { class: explained ? "node explained" : "node", transform: `translate(${x},${y})` },
    svg("title", {}, thing.name ? `${thing.name} (${thing.label})` : thing.label),
    svg("circle", { r: RADIUS }),
    svg("text", { y: RADIUS + ROW - 3 }, text),
  );
}
