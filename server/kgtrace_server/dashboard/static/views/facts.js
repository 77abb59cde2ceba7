// The training triples of a set, and what is predicted without them, in words.

import { bar, barScale } from "../charts.js";
import { el, tableHead, tripleNames } from "../dom.js";
import { about, count, signed } from "../format.js";
import { because } from "./reasons.js";

/** @param {import("../api.js").Triple} triple */
export function labels({ head, relation, tail }) {
  return { head: head.label, relation: relation.label, tail: tail.label };
}

/** "this fact", "these 3 facts". @param {number} many */
export function these(many, kind = "") {
  return many === 1 ? `this ${kind}fact` : `these ${count(many)} ${kind}facts`;
}

/** What is predicted of the rank. @param {{before: number, after: number}} rank */
export function ranked({ before, after }) {
  const place = after === before ? `${count(before)}, as before` : `about ${count(after)} instead of ${count(before)}`;
  return `the model is predicted to rank it ${place}`;
}

/** What is predicted of the score, and how far to trust it. */
export function scored({ before, after, low, high }, measured_on) {
  const change = `The score is predicted to go from ${about(before)} to ${about(after)}. `;
  if (low === null) return `${change}Not calibrated: nothing was measured for such indexes, so its size is a guess.`;
  return (
    `${change}With 90 % probability, that of a model trained again is between ${about(low)} and ${about(high)}, ` +
    `calibrated on ${measured_on}. The rank is less certain than the score.`
  );
}

/**
 * A table of the training triples of a set, each with a box, its reason, and the change that it alone makes.
 * @param {import("../main.js").Page} page @param {import("./ticks.js").Ticks} ticks
 * @param {{triple: import("../api.js").Triple, facts: object[]}} answer
 */
export function factTable(page, ticks, { triple: prediction, facts }) {
  if (!facts.length) return null;
  const changes = facts[0].change !== null; // of a sufficient set none is known
  const scale = barScale(facts.map(({ change }) => change));
  const row = ({ train_index, triple, change, ...reason }, i) =>
    el(
      "tr",
      {},
      el("td", { class: "number" }, i + 1, ticks.box(train_index, triple)),
      el(
        "th",
        { scope: "row" },
        page.link(labels(triple), tripleNames(triple, prediction)),
        el("small", { class: "row" }, `row ${count(train_index)}`),
        because(reason),
      ),
      changes && el("td", { class: "influence" }, el("span", { class: "number" }, signed(change)), bar(change, scale)),
    );
  return el(
    "table",
    {},
    tableHead(["#", "number"], ["Training triple"], changes && ["Change of score", "influence"]),
    el("tbody", {}, facts.map(row)),
  );
}
