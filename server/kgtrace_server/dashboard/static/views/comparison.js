// The same explanation by both scores, side by side, with the place of each training triple in the other list.

import { address, get } from "../api.js";
import { el, tableHead, tripleNames } from "../dom.js";
import { count, signed } from "../format.js";
import { section } from "../panel.js";
import { UNASKED } from "./explaining.js";
import { because } from "./reasons.js";

const SHOWN = 10;
const DEEP = 200; // places of the other list that are looked at
const SCORES = { preconditioned: "By the preconditioned score", tracin: "By TracIn" };
const ORDERS = { proponents: "for it", opponents: "against it" };

/** Which side an option of the address names. @param {string | undefined} order */
export function sideOf(order) {
  return Object.hasOwn(ORDERS, order ?? "") ? order : "proponents";
}

/**
 * Links to the training triples of either side.
 * @param {import("../main.js").Page} page @param {string} option That holds the side. @param {string} shown
 */
export function sideTabs(page, option, shown) {
  const choice = ([order, words]) => {
    const link = page.change({ [option]: order }, words);
    if (order === shown) link.setAttribute("aria-current", "true");
    return el("li", {}, link);
  };
  return el("ul", { class: "tabs", "aria-label": "Training triples that speak" }, Object.entries(ORDERS).map(choice));
}

/**
 * @param {import("../main.js").Page} page @param {import("./ticks.js").Ticks} ticks
 * @param {Record<string, string>} question @param {AbortSignal} signal
 */
export async function comparison(page, ticks, question, signal) {
  const { head, relation, tail, exact } = question;
  const order = sideOf(question.compare);
  const lists = await Promise.all(
    Object.keys(SCORES).map(async (score) => {
      const parameters = { head, relation, tail, order, top_k: DEEP, exact, score };
      return (await get(address("influences", parameters), signal)).results[0];
    }),
  );
  const places = lists.map(({ influences }) => new Map(influences.map(({ train_index }, i) => [train_index, i + 1])));
  const both = lists[0].influences.slice(0, SHOWN).filter(({ train_index }) => places[1].get(train_index) <= SHOWN);
  return [
    section(
      3,
      "Both scores",
      null,
      sideTabs(page, "compare", order),
      el(
        "p",
        { class: "certificate" },
        `${both.length} training triples are among the first ${SHOWN} by both scores. “Other” is the place in the `,
        `list by the other score, of which ${DEEP} are looked at. `,
        page.change({ compare: "" }, "Close"),
      ),
    ),
    el(
      "div",
      { class: "sides" },
      Object.keys(SCORES).map((score, i) => list(page, ticks, score, lists[i], places[1 - i])),
    ),
  ];
}

function list(page, ticks, score, { triple: prediction, influences, certified }, other) {
  const row = ({ triple, train_index, influence, ...reason }, i) => {
    const place = other.get(train_index);
    const { head, relation, tail } = triple;
    const asked = { ...UNASKED, head: head.label, relation: relation.label, tail: tail.label };
    return el(
      "tr",
      {},
      el("td", { class: "number" }, i + 1, ticks.box(train_index, triple)),
      el("th", { scope: "row" }, page.change(asked, tripleNames(triple, prediction)), because(reason)),
      el("td", { class: "number" }, signed(influence)),
      el("td", { class: "number" }, place ? count(place) : `> ${count(other.size)}`),
    );
  };
  return section(
    3,
    SCORES[score],
    null,
    el(
      "p",
      { class: "certificate" },
      certified
        ? el("span", { class: "badge certified" }, "✓ certified")
        : el("span", { class: "badge uncertified" }, "≈ not certified"),
    ),
    el(
      "table",
      { class: "influences" },
      tableHead(["#", "number"], ["Training triple"], ["Influence", "number"], ["Other", "number"]),
      el("tbody", {}, influences.slice(0, SHOWN).map(row)),
    ),
  );
}
