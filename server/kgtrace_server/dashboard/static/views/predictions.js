// The model's best tails; known facts are marked.

import { address, get } from "../api.js";
import { predictionRows } from "../csv.js";
import { el, named, tableHead } from "../dom.js";
import { number } from "../format.js";
import { section } from "../panel.js";
import { UNASKED } from "./explaining.js";

const FEW = 10;
const MANY = 50;
const EXAMPLES = 4;

/** @param {import("../main.js").Page} page @param {Record<string, string>} question @param {AbortSignal} signal */
export async function predictions(page, question, signal) {
  const { head, relation, tail } = question;
  const many = question.tails === String(MANY);
  const parameters = { head, relation, top_k: many ? MANY : FEW };
  const answer = await get(address("predictions", parameters), signal);
  const { triple } = answer.predictions[0];
  const row = ({ entity, score, in_training }, i) => {
    const chosen = entity.label === tail;
    const link = page.change({ ...UNASKED, tail: entity.label }, named(entity));
    if (chosen) link.setAttribute("aria-current", "true");
    return el(
      "tr",
      { class: chosen ? "chosen" : null },
      el("td", { class: "number" }, i + 1),
      el("th", { scope: "row" }, link, in_training && [" ", el("span", { class: "badge known" }, "known")]),
      el("td", { class: "number" }, number(score)),
    );
  };
  const source = { route: "predictions", parameters, rows: predictionRows(answer), file: "predictions" };
  const other = { tails: many ? "" : String(MANY) };
  const card = section(
    2,
    "Best tails",
    source,
    el(
      "p",
      { class: "question" },
      named(triple.head),
      " ",
      el("span", { class: "relation" }, named(triple.relation)),
      " ",
      el("span", { class: "blank" }, "?"),
    ),
    el(
      "table",
      {},
      tableHead(["#", "number"], ["Tail"], ["Score", "number"]),
      el("tbody", {}, answer.predictions.map(row)),
    ),
    el(
      "p",
      { class: "note" },
      el("span", { class: "badge known" }, "known"),
      " is in the training data. ",
      page.change(other, many ? `Show ${FEW}` : `Show ${MANY}`),
    ),
  );
  return { content: [card], triple };
}

/** What to ask, for those who have just come: training triples of large self-influence, without their tails. */
export async function examples(page, signal) {
  const { self_influences } = await get(address("self-influence", { top_k: 50 }), signal);
  const firsts = new Map(self_influences.map(({ triple }) => [triple.relation.id, triple]).reverse());
  const link = ({ head, relation }) =>
    el(
      "li",
      {},
      page.link(
        { head: head.label, relation: relation.label },
        named(head),
        " ",
        el("span", { class: "relation" }, named(relation)),
        " ?",
      ),
    );
  return [
    section(
      2,
      "Ask about a prediction",
      null,
      el(
        "p",
        {},
        "Name a head and a relation. The model says which tails fit best; ",
        "choose one, and read which training triples made it say so.",
      ),
      el("p", {}, "For example:"),
      el("ul", { class: "choices" }, [...firsts.values()].slice(0, EXAMPLES).map(link)),
    ),
  ];
}
