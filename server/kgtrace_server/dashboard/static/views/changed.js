// One prediction in two generations: its rank and score, and the facts that came, went and moved.

import { address, get, Problem } from "../api.js";
import { explainAll } from "../batch.js";
import { changeRows } from "../csv.js";
import { announce, el, named, tableHead, tripleNames, tripleText } from "../dom.js";
import { count, number, signed } from "../format.js";
import { inBoth } from "../generations.js";
import { section } from "../panel.js";
import { sideOf, sideTabs } from "./comparison.js";
import { labels } from "./facts.js";
import { because } from "./reasons.js";

const SHOWN = 10;
const DEEP = 200; // places of either list that are looked at
const SCORES = { tracin: "TracIn", preconditioned: "the preconditioned score" };

/** What became of a fact among the first ones, in the order of the table. */
const FATES = { came: "Came", went: "Went", moved: "Moved", stayed: "Stayed in its place" };

/**
 * @param {import("../main.js").Page} page
 * @param {{from: string, to: string} & Record<string, string>} question @param {AbortSignal} signal
 */
export async function changedFacts(page, question, signal) {
  const { head, relation, tail } = question;
  const order = sideOf(question.order);
  const answers = await inBoth(question, (generation, score) =>
    get(address("influences", { head, relation, tail, order, top_k: DEEP, score }), signal, generation),
  );
  const [before, after] = answers.map(({ results }) => results[0]);
  const facts = follow(before, after);
  await lookForMissing(facts, question, signal);
  const many = Object.keys(FATES).map((fate) => facts.filter((fact) => fact.fate === fate).length);
  const text =
    `Of the first ${SHOWN} facts, ${many[0]} came, ${many[1]} went, ${many[2]} moved and ${many[3]} stayed. ` +
    `Rank ${count(before.rank)} → ${count(after.rank)}, score ${number(before.score)} → ${number(after.score)}.`;
  announce(text);
  const source = { file: "changes", answer: { before: answers[0], after: answers[1] }, rows: changeRows(facts) };
  return [
    section(2, tripleText(after.triple, named), null, el("p", {}, text), numbers(page, question, before, after)),
    section(
      3,
      "Facts that changed",
      source,
      sideTabs(page, "order", order),
      el(
        "p",
        { class: "certificate" },
        before.certified && after.certified
          ? el("span", { class: "badge certified" }, "✓ certified")
          : el("span", { class: "badge uncertified" }, "≈ not certified"),
        ` Both lists by ${SCORES[answers[0].score]}, of which ${DEEP} places each are looked at.`,
      ),
      table(page, after.triple, facts),
    ),
  ];
}

/** The facts that are among the first in either list, with their places in both; equal labels are one fact. */
function follow(before, after) {
  const [old, young] = [before, after].map(({ influences }) => {
    const places = new Map();
    influences.forEach((influence, i) => {
      const text = JSON.stringify(labels(influence.triple));
      if (!places.has(text)) places.set(text, { ...influence, place: i + 1 });
    });
    return places;
  });
  const first = (places) => [...places].filter(([, { place }]) => place <= SHOWN).map(([text]) => text);
  return [...new Set([...first(young), ...first(old)])].map((text) => {
    const fact = { before: old.get(text) ?? null, after: young.get(text) ?? null };
    return { ...fact, fate: fate(fact.before?.place, fact.after?.place), missing: "" };
  });
}

function fate(before = Infinity, after = Infinity) {
  if (before > SHOWN) return "came";
  if (after > SHOWN) return "went";
  return before === after ? "stayed" : "moved";
}

/** Say of facts that a list lacks whether that generation's training data lack them, too. */
async function lookForMissing(facts, { from, to }, signal) {
  for (const [side, generation] of Object.entries({ before: from, after: to })) {
    const missing = facts.filter((fact) => fact[side] === null);
    const triples = missing.map(({ before, after }) => labels((before ?? after).triple));
    const { outcomes } = await explainAll(triples, { top_k: 1 }, signal, generation);
    outcomes.forEach((outcome, i) => {
      const known = !(outcome instanceof Problem) && outcome.in_training;
      missing[i].missing = known ? `beyond ${DEEP}` : "not in the data";
    });
  }
}

/** What both models say of the prediction. */
function numbers(page, { from, to }, before, after) {
  const known = ({ in_training }) => (in_training ? "a known fact" : "a prediction");
  const rows = [
    ["Generation", el("code", {}, from), el("code", {}, to)],
    ["Filtered rank", count(before.rank), count(after.rank)],
    ["Score", number(before.score), number(after.score)],
    ["In the training data", known(before), known(after)],
  ];
  return [
    el(
      "table",
      { class: "numbers" },
      tableHead(["The model says"], ["Before"], ["After"]),
      el(
        "tbody",
        {},
        rows.map(([name, ...values]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, name),
            values.map((value) => el("td", {}, value)),
          ),
        ),
      ),
    ),
    el("p", { class: "note" }, page.link(labels(after.triple), "Explain it in the live generation")),
  ];
}

function table(page, prediction, facts) {
  const cell = (influence, missing) =>
    influence
      ? el(
          "td",
          { class: "number" },
          count(influence.place),
          el("small", { class: "row" }, signed(influence.influence)),
        )
      : el("td", { class: "missing" }, missing);
  const row = ({ before, after, missing }) => {
    const { triple, ...reason } = after ?? before;
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, page.change(labels(triple), tripleNames(triple, prediction)), because(reason)),
      cell(before, missing),
      cell(after, missing),
    );
  };
  const group = ([fate, words]) => {
    const members = facts.filter((fact) => fact.fate === fate);
    const head = el("th", { scope: "rowgroup", colspan: 3 }, `${words} (${members.length})`);
    return members.length > 0 && el("tbody", {}, el("tr", { class: "group" }, head), members.map(row));
  };
  return el(
    "table",
    { class: "influences" },
    tableHead(["Training triple"], ["Before", "number"], ["After", "number"]),
    Object.entries(FATES).map(group),
  );
}
