// What a reader thinks of training triples: wrong, fine, or to be looked at later. Kept in this browser, and in files.

import { csvCell } from "./csv.js";
import d3 from "./d3.js";
import { local } from "./storage.js";

const KEY = "kgtrace-marks";

/** What a triple can be marked as, and the words for it. */
export const MARKS = { wrong: "wrong", fine: "fine", later: "later" };

/**
 * A marked triple: labels and mark.
 * @typedef {[string, string, string, string]} Entry
 */

/** Every marked triple, by its labels, in the order of marking. @returns {Map<string, Entry>} */
function read() {
  return byLabels(JSON.parse(local.getItem(KEY) ?? "[]"));
}

/** @param {Entry[]} entries */
function byLabels(entries) {
  return new Map(entries.map((entry) => [JSON.stringify(entry.slice(0, 3)), entry]));
}

/** @param {Map<string, Entry>} marks */
function write(marks) {
  local.setItem(KEY, JSON.stringify([...marks.values()]));
}

/** @param {import("./api.js").Triple} triple */
function labelsOf({ head, relation, tail }) {
  return [head.label, relation.label, tail.label];
}

/** The mark of each triple, or nothing. @param {import("./api.js").Triple[]} triples */
export function marksOf(triples) {
  const marks = read();
  return triples.map((triple) => marks.get(JSON.stringify(labelsOf(triple)))?.[3] ?? "");
}

/** Mark a triple, or with nothing take its mark away. @param {import("./api.js").Triple} triple @param {string} mark */
export function setMark(triple, mark) {
  const labels = labelsOf(triple);
  const marks = read();
  marks.delete(JSON.stringify(labels));
  write(mark ? new Map([...marks, ...byLabels([[...labels, mark]])]) : marks);
}

/** How many triples have a mark. @param {string} mark */
export function marked(mark) {
  return of(mark).length;
}

function of(mark) {
  return [...read().values()].filter(([, , , other]) => other === mark);
}

/** Triples of a mark as `kgtrace build --skip` reads them: labels with tabs between. @param {string} mark */
export function marksAsTsv(mark) {
  const line = (labels) => `${labels.map((label) => csvCell(label, "\t")).join("\t")}\n`;
  return of(mark)
    .map((entry) => line(entry.slice(0, 3)))
    .join("");
}

/** All marks as JSON. */
export function marksAsJson() {
  const entries = [...read().values()].map(([head, relation, tail, mark]) => ({ head, relation, tail, mark }));
  return JSON.stringify(entries, null, 1);
}

/** A file that holds no marks. */
export class NoMarks extends Error {}

/**
 * Take over the marks of a file that was saved here; triples that it does not name keep theirs.
 * @param {string} name Of the file: `.json` with a mark for each triple, or else lines of triples marked wrong.
 * @param {string} text
 * @returns {{read: number, changed: number}} Its triples, and how many of them had another mark, or none.
 *   Throws `NoMarks`, and then no mark is taken over.
 */
export function mergeMarks(name, text) {
  const entries = byLabels(name.toLowerCase().endsWith(".json") ? entriesOfJson(text) : entriesOfTsv(text));
  if (!entries.size) throw new NoMarks("it is empty");
  const marks = read();
  const changed = [...entries].filter(([labels, [, , , mark]]) => marks.get(labels)?.[3] !== mark).length;
  try {
    write(new Map([...marks, ...entries]));
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    throw new NoMarks("it holds more than this browser keeps");
  }
  return { read: entries.size, changed };
}

/** @returns {Entry[]} */
function entriesOfJson(text) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    throw new NoMarks("it is not JSON");
  }
  if (!Array.isArray(document)) throw new NoMarks("it is not a list of marks");
  return document.map((entry, i) => {
    const { head, relation, tail, mark } = entry ?? {};
    if (![head, relation, tail].every((label) => typeof label === "string"))
      throw new NoMarks(`entry ${i + 1} has no head, relation and tail`);
    if (!Object.hasOwn(MARKS, mark)) throw new NoMarks(`entry ${i + 1} is not marked wrong, fine or later`);
    return [head, relation, tail, mark];
  });
}

/** @returns {Entry[]} */
function entriesOfTsv(text) {
  return d3.tsvParseRows(text, (labels, i) => {
    if (labels.length === 1 && !labels[0]) return null; // an empty line
    if (labels.length !== 3) throw new NoMarks(`line ${i + 1} is not head, relation and tail with tabs between`);
    return [...labels, "wrong"];
  });
}
