// Why one triple: the training triples that speak for it and against it, as tables and as a graph.

import { address, get } from "../api.js";
import { bar, barScale } from "../charts.js";
import { influenceRows } from "../csv.js";
import { announce, el, tableHead, tripleNames, tripleString, tripleText } from "../dom.js";
import { byOtherScore, count, number, signed } from "../format.js";
import { graph, legend, most } from "../graph.js";
import { behind, drawn, section } from "../panel.js";
import { barPicture } from "../pictures.js";
import { entityLink } from "./entity.js";
import { labels } from "./facts.js";
import { because, bodies, chosen, reasonFields } from "./reasons.js";

const FEW = 10;
const MANY = 50;

/**
 * @param {import("../main.js").Page} page @param {import("./ticks.js").Ticks} ticks
 * @param {Record<string, string>} question @param {AbortSignal} signal
 * @param {Promise<boolean>} predicted Whether the tails are shown, beside which the explanation stands; null if not.
 */
export async function explanation(page, ticks, question, signal, predicted) {
  const { head, relation, tail, exact, score: requested } = question;
  const many = question.top_k === String(MANY);
  const parameters = { head, relation, tail, top_k: many ? MANY : FEW, exact, score: requested };
  const side = async (order) => {
    const given = { ...parameters, order };
    const answer = await get(address("influences", given), signal);
    return {
      answer,
      result: answer.results[0],
      source: { route: "influences", parameters: given, rows: influenceRows(answer), graph: true, file: order },
    };
  };
  const answers = await behind(predicted, Promise.all([side("proponents"), side("opponents")]));
  if (!answers) return null;
  const [proponents, opponents] = answers;
  const { triple } = proponents.result;
  const all = [proponents, opponents].flatMap(({ result }) => result.influences);
  const [forIt, againstIt] = [proponents, opponents].map(({ result }) => result.influences.length);
  announce(`${tripleString(triple)}: ${forIt} training triples for it and ${againstIt} against it`);
  const scale = barScale(all.map(({ influence }) => influence));
  const lists = el("div", { class: "stack" });
  const fields = reasonFields(all, question, (choice) => {
    question = { ...question, ...choice };
    page.keep(choice);
    show();
    announce(`${lists.querySelectorAll("tbody a").length} training triples`);
  });

  function show() {
    const [speaking, opposing] = [proponents, opponents].map(({ result }) =>
      result.influences
        .map((influence, i) => ({ ...influence, position: i + 1 }))
        .filter((influence) => chosen(influence, question)),
    );
    lists.replaceChildren(
      el(
        "div",
        { class: "sides" },
        list(page, ticks, question, "Speaks for it", "proponents", proponents, speaking, scale),
        list(page, ticks, question, "Speaks against it", "opponents", opponents, opposing, scale),
      ),
      el(
        "p",
        { class: "note" },
        "Entities and relations that the prediction has, too, are bold. ",
        page.change({ top_k: many ? "" : String(MANY) }, many ? `Show ${FEW} each` : `Show ${MANY} each`),
        ". ",
        otherScore(page, proponents.answer.score),
        all.some(({ tracin, preconditioned }) => tracin !== null && preconditioned !== null) && [
          ". ",
          page.change({ compare: "proponents" }, "Compare both scores"),
        ],
        ". ",
        page.link({ view: "changes", ...labels(triple) }, "What changed overnight"),
      ),
      neighbourhood(triple, speaking, opposing),
    );
  }

  show();
  return { content: [about(page, proponents.result, fields), lists], triple };
}

/** The prediction, the model's numbers of it, and which reasons are shown. */
function about(page, { triple, rank, score, loss, in_training, notes }, fields) {
  return section(
    2,
    tripleText(triple, (thing) => entityLink(page, thing)),
    null,
    el(
      "dl",
      { class: "facts" },
      fact("Filtered rank", count(rank)),
      fact("Score", number(score)),
      fact("Loss", number(loss)),
      fact("In the training data", in_training ? "yes, a known fact" : "no, a prediction"),
    ),
    notes.map((note) => el("p", { class: "note" }, `Note: ${note}.`)),
    fields,
  );
}

function fact(term, ...description) {
  return el("div", {}, el("dt", {}, term), el("dd", {}, description));
}

/** A way to the same explanation by the other score. */
function otherScore(page, score) {
  const [other, text] =
    score === "tracin" ? ["preconditioned", "Preconditioned score"] : ["tracin", "Plain influence (TracIn)"];
  return page.change({ score: other }, text);
}

/** One side of the explanation as a table of the influences that are `shown`. */
function list(page, ticks, question, title, order, { answer, result, source }, shown, scale) {
  const heading = answer.score === "tracin" ? "Influence" : "Preconditioned";
  const row = ({ triple, influence, cosine, train_index, position, ...values }) =>
    el(
      "tr",
      {},
      el("td", { class: "number" }, position, ticks.box(train_index, triple)),
      el(
        "th",
        { scope: "row" },
        page.link(labels(triple), tripleNames(triple, result.triple)),
        el(
          "small",
          { class: "row" },
          `row ${count(train_index)}, cosine ${number(cosine)}`,
          byOtherScore(answer.score, values, signed),
        ),
        because(values),
      ),
      el(
        "td",
        { class: "influence" },
        el("span", { class: "number" }, signed(influence)),
        influence !== null && bar(influence, scale),
      ),
    );
  const picture = () =>
    barPicture(
      `${tripleString(result.triple)}: ${title.toLowerCase()}`,
      shown.map(({ triple, influence, position }) => ({
        text: `${position}  ${tripleString(triple)}`,
        number: signed(influence),
        bar: influence !== null && bar(influence, scale),
      })),
    );
  return section(
    3,
    title,
    { ...source, rows: source.rows.filter((row) => chosen(row, question)), picture },
    certificate(page, question, result, order),
    el(
      "table",
      { class: "influences" },
      tableHead(["#", "number"], ["Training triple"], [heading, "influence"]),
      bodies(shown, shown.map(row), question),
    ),
    shown.length === 0 && el("p", { class: "empty" }, "None of this reason."),
  );
}

/** The certificate of a list; if there is none, the gap, and a link to the exact answer. */
function certificate(page, question, { certified, bound_gap, influences }, order) {
  const many = influences.length;
  if (certified) {
    return el(
      "p",
      { class: "certificate" },
      el("span", { class: "badge certified" }, "✓ certified"),
      ` Proved: no other indexed training triple belongs among these ${many}.`,
    );
  }
  const gap =
    bound_gap === null
      ? "Nothing is known about the training triples that were not looked at."
      : `A training triple that was not looked at could have up to ${number(bound_gap)} more influence ` +
        `than the last of these ${order}.`;
  return el(
    "p",
    { class: "certificate" },
    el("span", { class: "badge uncertified" }, "≈ not certified"),
    ` ${gap} `,
    !question.exact && page.change({ exact: "true" }, "Compute exactly"),
  );
}

function neighbourhood(triple, proponents, opponents) {
  const ranked = (influences, sign) =>
    influences
      .map((member) => ({ ...member, rank: `${sign}${member.position}` }))
      .filter(({ influence }) => influence !== null);
  const [best, worst] = [ranked(proponents, "+"), ranked(opponents, "−")];
  const strongest = (width) => [...best.slice(0, most(width)), ...worst.slice(0, most(width))];
  const picture = drawn((width) => graph(triple, strongest(width), width));
  const line = ({ triple, influence, because }) =>
    el("li", {}, tripleNames(triple), `: ${signed(influence)}; ${because}`);
  return section(
    3,
    "The neighbourhood",
    { file: "neighbourhood", picture: () => picture.querySelector(".graph") },
    legend(),
    picture,
    el(
      "details",
      {},
      el("summary", {}, "The graph in words"),
      el("p", {}, "The prediction: ", tripleNames(triple), ". Its strongest influences:"),
      el("ul", {}, strongest(Infinity).map(line)),
    ),
  );
}
