// Influence summed over all training triples, by relation, head or tail.

import { address, get } from "../api.js";
import { sumBar, sumScale } from "../charts.js";
import { sumRows } from "../csv.js";
import { el, nameOf, named, tableHead, tripleString } from "../dom.js";
import { count, number, signed } from "../format.js";
import { behind, section } from "../panel.js";
import { barPicture } from "../pictures.js";

const GROUPS = 10;
const BY = ["relation", "head", "tail"];

/**
 * @param {import("../main.js").Page} page @param {Record<string, string>} question @param {AbortSignal} signal
 * @param {Promise<boolean>} explained Whether the explanation is shown, below which the sums stand.
 */
export async function sums(page, question, signal, explained) {
  const { head, relation, tail, exact, score } = question;
  const by = BY.includes(question.by) ? question.by : BY[0];
  const parameters = { head, relation, tail, by, order: "absolute", top_k: GROUPS, exact, score };
  const answer = await behind(explained, get(address("aggregate", parameters), signal));
  if (!answer) return [];
  const finite = answer.groups.filter(({ sum, error }) => sum !== null && error !== null);
  const scale = sumScale(finite);
  const choice = (other) => {
    const link = page.change({ by: other }, `by ${other}`);
    if (other === by) link.setAttribute("aria-current", "true");
    return el("li", {}, link);
  };
  const row = (group) =>
    el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        named(group.group),
        el("small", { class: "row" }, `${count(group.count)} training triples`),
      ),
      el(
        "td",
        { class: "influence" },
        el(
          "span",
          { class: "number" },
          signed(group.sum),
          !answer.exact && el("small", {}, ` ± ${number(group.error)}`),
        ),
        finite.includes(group) && sumBar(group, scale),
      ),
    );
  const title = `Influence summed by ${by}`;
  const picture = () =>
    barPicture(
      `${tripleString(answer.triple)}: ${title.toLowerCase()}`,
      answer.groups.map((group) => ({
        text: nameOf(group.group),
        number: signed(group.sum),
        bar: finite.includes(group) && sumBar(group, scale),
      })),
    );
  return [
    section(
      3,
      title,
      { route: "aggregate", parameters, rows: sumRows(answer), picture, file: `sums-by-${by}` },
      el("ul", { class: "tabs", "aria-label": "Sum by" }, BY.map(choice)),
      certificate(page, answer),
      el(
        "table",
        { class: "sums" },
        tableHead([by[0].toUpperCase() + by.slice(1)], ["Sum, for and against", "influence"]),
        el("tbody", {}, answer.groups.map(row)),
      ),
    ),
  ];
}

function certificate(page, { exact, certified, total, groups }) {
  const order = certified
    ? el("span", { class: "badge certified" }, "✓ order certified")
    : el("span", { class: "badge uncertified" }, "≈ order not certified");
  const all = `${count(total.count)} training triples`;
  if (exact) return el("p", { class: "certificate" }, order, ` Exact sums over all ${all}.`);
  const doubt = certified ? "no error changes" : "errors may change";
  const text =
    ` Estimates over all ${all}: each sum is within its ± error, the thin line in the picture; ` +
    `${doubt} which ${groups.length} come first. `;
  return el("p", { class: "certificate" }, order, text, page.change({ exact: "true" }, "Compute exactly"));
}
