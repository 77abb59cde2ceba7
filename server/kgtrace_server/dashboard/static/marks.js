// What a reader thinks of training triples: wrong, fine, or to be looked at later. Kept in this browser alone.

import { csvCell } from "./csv.js";
import { local } from "./storage.js";

const KEY = "kgtrace-marks";

/** What a triple can be marked as, and the words for it. */
export const MARKS = { wrong: "wrong", fine: "fine", later: "later" };

/** Every marked triple: labels and mark, in the order of marking. @returns {[string, string, string, string][]} */
function read() {
  return JSON.parse(local.getItem(KEY) ?? "[]");
}

function isOf({ head, relation, tail }) {
  return ([h, r, t]) => h === head.label && r === relation.label && t === tail.label;
}

/** The mark of a triple, or nothing. @param {import("./api.js").Triple} triple */
export function markOf(triple) {
  return read().find(isOf(triple))?.[3] ?? "";
}

/** Mark a triple, or with nothing take its mark away. @param {import("./api.js").Triple} triple @param {string} mark */
export function setMark(triple, mark) {
  const same = isOf(triple);
  const others = read().filter((entry) => !same(entry));
  const labels = [triple.head.label, triple.relation.label, triple.tail.label];
  local.setItem(KEY, JSON.stringify(mark ? [...others, [...labels, mark]] : others));
}

/** How many triples have a mark. @param {string} mark */
export function marked(mark) {
  return read().filter(([, , , other]) => other === mark).length;
}

/** Triples of a mark as `kgtrace build --skip` reads them: labels with tabs between. @param {string} mark */
export function marksAsTsv(mark) {
  const lines = read().filter(([, , , other]) => other === mark);
  return lines.map((labels) => `${labels.slice(0, 3).map((label) => csvCell(label, "\t")).join("\t")}\n`).join("");
}

/** All marks as JSON. */
export function marksAsJson() {
  return JSON.stringify(read().map(([head, relation, tail, mark]) => ({ head, relation, tail, mark })), null, 1);
}
