// What the model is predicted to say without the ticked facts.

import { address, get, post } from "../api.js";
import { factRows } from "../csv.js";
import { announce, el, named, tableHead } from "../dom.js";
import { about, number } from "../format.js";
import { section } from "../panel.js";
import { UNASKED } from "./explaining.js";
import { factTable, ranked, scored, these } from "./facts.js";

const TAILS = 10;

/**
 * @param {import("../main.js").Page} page @param {import("./ticks.js").Ticks} ticks
 * @param {Record<string, string>} question @param {(number | string)[]} without The `train_index` of each.
 * @param {HTMLElement} stale A note that says when other facts are ticked. @param {AbortSignal} signal
 */
export async function whatIf(page, ticks, { head, relation, tail }, without, stale, signal) {
  const parameters = { head, relation, top_k: TAILS, filtered: true };
  const [answer, { predictions }] = await Promise.all([
    post("what-if", { triple: { head, relation, tail }, without, top_k: TAILS }, signal),
    get(address("predictions", parameters), signal),
  ]);
  const { triple, facts, score, rank, measured_on } = answer;
  const table = factTable(page, ticks, answer);
  const text = [`Without ${these(facts.length, "ticked ")} ${ranked(rank)}.`, scored(score, measured_on)];
  announce(text.join(" "));
  return [
    section(
      3,
      "Without the ticked facts",
      { file: "without", answer, rows: factRows(answer) },
      stale,
      text.map((sentence) => el("p", {}, sentence)),
      el("div", { class: "sides" }, table, tails(page, triple.tail, before(predictions, answer), answer.completions)),
    ),
  ];
}

/** The best tails as the model ranks them, with that of the prediction, which is left out if it is a known fact. */
function before(predictions, { triple, score }) {
  const others = predictions.filter(({ entity }) => entity.id !== triple.tail.id);
  const all = [...others, { entity: triple.tail, score: score.before }];
  return all.sort((a, b) => b.score - a.score).slice(0, TAILS);
}

function tails(page, own, before, after) {
  const cell = (member, shown, place) =>
    el(
      "td",
      {},
      member && [
        member.entity.id === own.id
          ? el("strong", {}, named(member.entity))
          : page.change({ ...UNASKED, tail: member.entity.label }, named(member.entity)),
        el("small", { class: "row" }, shown(member.score), place),
      ],
    );
  const place = ({ entity }, i) => {
    const now = before.findIndex((member) => member.entity.id === entity.id);
    return now !== i && `, now ${now < 0 ? `beyond ${before.length}` : now + 1}`;
  };
  const rows = Array.from({ length: Math.max(before.length, after.length) }, (_, i) =>
    el(
      "tr",
      {},
      el("td", { class: "number" }, i + 1),
      cell(before[i], number),
      cell(after[i], (score) => about(score.after), after[i] && place(after[i], i)),
    ),
  );
  return el(
    "table",
    {},
    el("caption", {}, "Best tails that are no known facts"),
    tableHead(["#", "number"], ["Now"], ["Without them"]),
    el("tbody", {}, rows),
  );
}
