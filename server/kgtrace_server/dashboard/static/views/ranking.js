// Training triples by self-influence: where the model strains, and where errors in the data are worth looking for.

import { address, get } from "../api.js";
import { bar, barScale } from "../charts.js";
import { Combobox } from "../combobox.js";
import { selfInfluenceRows } from "../csv.js";
import { announce, el, tableHead, tripleNames } from "../dom.js";
import { byOtherScore, count, number } from "../format.js";
import { Panel, section } from "../panel.js";
import { advice } from "./advice.js";
import { workList } from "./worklist.js";

const ROWS = 25;
const MORE = 100;

/** @param {import("../main.js").Page} page */
export function rankingView(page) {
  const relation = new Combobox("Relation (optional)", "relations", { hint: "any" });
  const order = el(
    "select",
    { id: "ranking-order" },
    el("option", { value: "" }, "Largest first"),
    el("option", { value: "ascending" }, "Smallest first"),
  );
  const panel = new Panel("Ranking…", page.refresh);

  async function submit(event) {
    event.preventDefault();
    page.go({ view: "self-influence", relation: await relation.resolve(), order: order.value });
  }

  async function ranking(question, signal) {
    const many = question.top_k === String(MORE);
    const parameters = { top_k: many ? MORE : ROWS, order: question.order, relation: question.relation };
    const answer = await get(address("self-influence", parameters), signal);
    const selfInfluences = answer.self_influences;
    if (question.relation && selfInfluences.length) relation.set(selfInfluences[0].triple.relation);
    const scale = barScale(selfInfluences.map(({ self_influence }) => self_influence));
    announce(`${selfInfluences.length} training triples`);
    const work = workList(
      page,
      question,
      selfInfluences.map(({ triple }) => triple),
    );
    const row = ({ train_index, triple, self_influence, ...values }, i) =>
      el(
        "tr",
        {},
        el("td", { class: "number" }, i + 1),
        el(
          "th",
          { scope: "row" },
          page.link(
            { head: triple.head.label, relation: triple.relation.label, tail: triple.tail.label },
            tripleNames(triple),
          ),
          el(
            "small",
            { class: "row" },
            `row ${count(train_index)}`,
            byOtherScore(answer.score, values, number),
          ),
        ),
        el("td", { class: "mark" }, work.fields[i]),
        el(
          "td",
          { class: "influence" },
          el("span", { class: "number" }, number(self_influence)),
          self_influence !== null && bar(self_influence, scale),
        ),
      );
    const rows = selfInfluences.map(row);
    work.show(rows);
    return [
      section(
        2,
        question.order === "ascending" ? "Smallest self-influence" : "Largest self-influence",
        { route: "self-influence", parameters, rows: selfInfluenceRows(answer), file: "self-influence" },
        work.bar,
        selfInfluences.length
          ? el(
              "table",
              { class: "influences wide" },
              tableHead(["#", "number"], ["Training triple"], ["Mark"], ["Self-influence", "influence"]),
              el("tbody", {}, rows),
            )
          : el("p", { class: "empty" }, "No training triple has this relation."),
        el(
          "p",
          { class: "note" },
          page.change({ top_k: many ? "" : String(MORE) }, many ? `Show ${ROWS}` : `Show ${MORE}`),
        ),
      ),
    ];
  }

  const element = el(
    "div",
    {},
    el("h1", { tabindex: "-1" }, "Suspicious training triples"),
    el(
      "p",
      { class: "lead" },
      "The model strains most to hold these: their gradients are the longest. Rare facts, and wrong ones, come first. ",
      "Marks stay in this browser; ",
      el("code", {}, "kgtrace build --skip wrong.tsv"),
      " leaves out the triples marked wrong.",
    ),
    el(
      "form",
      { class: "ask", submit },
      relation.element,
      el("div", { class: "field" }, el("label", { for: "ranking-order" }, "Order"), order),
      el("button", {}, "Rank"),
    ),
    panel.element,
  );
  return {
    element,
    update(question) {
      relation.hold(question.relation ?? "");
      order.value = question.order === "ascending" ? "ascending" : "";
      panel.show(
        JSON.stringify([page.epoch, question.relation, question.order, question.top_k]),
        (signal) => ranking(question, signal),
        (problem) => advice(page, question, problem),
      );
      return { title: "Suspicious triples", focus: panel };
    },
  };
}
