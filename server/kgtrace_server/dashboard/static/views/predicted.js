// What the model predicts of an entity: the best new tails of its relations and, where it is the tail, the best heads.

import { address, get } from "../api.js";
import { predictionRows } from "../csv.js";
import { breakable, el, nameOf, named, tableHead } from "../dom.js";
import { count, number } from "../format.js";
import { section } from "../panel.js";
import { labels } from "./facts.js";

const EACH = 3; // completions of a relation
const SIDES = {
  head: { title: "Predicted tails", heading: "Tail", note: "" },
  tail: { title: "Predicted heads", heading: "Head", note: " Ranks are among heads; an explanation ranks the tail." },
};

/** @param {import("../main.js").Page} page @param {string} label Of the entity. @param {AbortSignal} signal */
export async function predicted(page, label, signal) {
  const cards = Object.keys(SIDES).map((side) => card(page, label, side, signal));
  return el("div", { class: "sides" }, await Promise.all(cards));
}

async function card(page, label, side, signal) {
  const { title, heading, note } = SIDES[side];
  const parameters = { [side]: label, top_k: EACH, filtered: true };
  const refused = (text) => section(3, title, null, el("p", { class: "empty" }, text));
  let answer;
  try {
    answer = await get(address("predictions", parameters), signal);
  } catch (error) {
    if (error.status !== 422) throw error;
    return refused(`None: ${error.detail}.`); // as of the heads of some models
  }
  const { predictions, relations } = answer;
  if (!predictions.length) return refused("None.");
  const groups = Map.groupBy(predictions, ({ triple }) => triple.relation.id);
  const row = ({ entity, triple, score, rank }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, page.link(labels(triple), named(entity))),
      el("td", { class: "number" }, number(score)),
      el("td", { class: "number" }, count(rank)),
    );
  const body = (members) => {
    const { relation } = members[0].triple;
    const head = el("th", { scope: "rowgroup", colspan: 3 }, breakable(nameOf(relation)));
    return el("tbody", {}, el("tr", { class: "group" }, head), members.map(row));
  };
  return section(
    3,
    title,
    { route: "predictions", parameters, rows: predictionRows(answer), file: title.toLowerCase().replace(" ", "-") },
    el(
      "table",
      {},
      tableHead([heading], ["Score", "number"], ["Rank", "number"]),
      [...groups.values()].map(body),
    ),
    el(
      "p",
      { class: "note" },
      `Best ${EACH} that are no known facts, for ${groups.size} of ${count(relations)} relations that it is ${side} of, `,
      `those of most facts first.${note}`,
    ),
  );
}
