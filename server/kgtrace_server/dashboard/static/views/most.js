// Which predictions changed most from one generation to another.

import { address, get, Problem } from "../api.js";
import { explainAll } from "../batch.js";
import { el, tableHead, tripleNames } from "../dom.js";
import { count } from "../format.js";
import { inBoth } from "../generations.js";
import { section } from "../panel.js";
import { labels } from "./facts.js";

const SAMPLE = 20; // triples that are looked at
const SHOWN = 10; // training triples of each that are compared

/**
 * The training triples that the later model strains most to hold, those whose explanations changed most first.
 * @param {import("../main.js").Page} page @param {{from: string, to: string}} chosen @param {AbortSignal} signal
 */
export async function changedMost(page, chosen, signal) {
  const { self_influences } = await get(address("self-influence", { top_k: SAMPLE }), signal, chosen.to);
  const triples = self_influences.map(({ triple }) => triple);
  const ask = (generation, score) =>
    explainAll(triples.map(labels), { top_k: SHOWN, score }, signal, generation);
  const [before, after] = await inBoth(chosen, ask);
  const rows = triples
    .map((triple, i) => compare(triple, before.outcomes[i], after.outcomes[i]))
    .sort((one, other) => one.common - other.common);
  const rank = (outcome) => (outcome instanceof Problem ? "unknown" : count(outcome.rank));
  const row = ({ triple, before, after, common }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, page.change(labels(triple), tripleNames(triple))),
      el("td", { class: "number" }, `${rank(before)} → ${rank(after)}`),
      el("td", { class: "number" }, `${common} of ${after.influences.length}`),
    );
  return [
    section(
      2,
      "What changed most",
      null,
      el(
        "p",
        {},
        `The ${triples.length} training triples that the later model strains most to hold, and how many of the first `,
        `${SHOWN} facts that speak for each both generations name. Choose one, or name a prediction above.`,
      ),
      el(
        "table",
        {},
        tableHead(["Triple"], ["Rank", "number"], ["In common", "number"]),
        el("tbody", {}, rows.map(row)),
      ),
    ),
  ];
}

/** How many of the training triples that the later generation names the earlier one names, too. */
function compare(triple, before, after) {
  const text = (influence) => JSON.stringify(labels(influence.triple));
  const known = new Set(before instanceof Problem ? [] : before.influences.map(text));
  return { triple, before, after, common: after.influences.filter((influence) => known.has(text(influence))).length };
}
