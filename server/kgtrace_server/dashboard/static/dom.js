// Elements. What comes from the service becomes text and attributes, never markup.

/** @typedef {Node | string | number | null | undefined | false | Child[]} Child */

/**
 * Make an element. Functions become listeners of the event that their name says, `true` an empty attribute.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...Child} children
 */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...nodes(children));
  return element;
}

/** @param {Child} child */
function nodes(child) {
  if (Array.isArray(child)) return child.flatMap(nodes);
  if (child === null || child === undefined || child === false) return [];
  return [child instanceof Node ? child : String(child)];
}

/**
 * The head of a table.
 * @param {...([string, string?] | null | undefined | false)} columns the text of each, and its class if it has one
 */
export function tableHead(...columns) {
  const column = ([text, kind]) => el("th", { scope: "col", class: kind }, text);
  return el("thead", {}, el("tr", {}, columns.filter(Boolean).map(column)));
}

/** Text that may be broken before slashes and after underscores: `/people/person/place_of_birth`. */
export function breakable(text) {
  return text.split(/(?<=[^/])(?=\/)|(?<=_)(?=[^_])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

/** @param {import("./api.js").Named} thing */
export function nameOf(thing) {
  return thing.name || thing.label;
}

/** Name first, label small. @param {import("./api.js").Named} thing */
export function named(thing) {
  const label = thing.name && thing.name !== thing.label && el("small", { class: "label" }, thing.label);
  return el("span", { class: "named" }, el("span", {}, breakable(nameOf(thing))), label && [" ", label]);
}

/**
 * A triple in a line of text, with labels.
 * @param {import("./api.js").Triple} triple @param {(entity: import("./api.js").Named) => Node} shown
 */
export function tripleText({ head, relation, tail }, shown) {
  return inLine(
    el("span", {}, shown(head)),
    el("span", { class: "relation" }, named(relation)),
    el("span", {}, shown(tail)),
  );
}

/**
 * A triple in a table, by its names alone; names that it shares with another triple are set off.
 * @param {import("./api.js").Triple} triple @param {import("./api.js").Triple} [other]
 */
export function tripleNames({ head, relation, tail }, other) {
  const entities = other && [other.head.id, other.tail.id];
  const part = (thing, shared, attributes) =>
    el(shared ? "strong" : "span", { title: thing.name && thing.label, ...attributes }, breakable(nameOf(thing)));
  return inLine(
    part(head, entities?.includes(head.id)),
    part(relation, relation.id === other?.relation.id, { class: "relation" }),
    part(tail, entities?.includes(tail.id)),
  );
}

function inLine(head, relation, tail) {
  return el("span", { class: "triple" }, head, " ", relation, " ", tail);
}

/** A triple as one string. @param {import("./api.js").Triple} triple */
export function tripleString({ head, relation, tail }) {
  return `${nameOf(head)} ${nameOf(relation)} ${nameOf(tail)}`;
}

/** Tell those who hear the page rather than see it. */
export function announce(text) {
  document.getElementById("live").textContent = text;
}
