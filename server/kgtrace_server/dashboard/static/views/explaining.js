// Which facts a prediction needs, and which suffice to give its tail to other entities.

import { Problem, post } from "../api.js";
import { factRows } from "../csv.js";
import { announce, el, nameOf, named } from "../dom.js";
import { about, count } from "../format.js";
import { behind, section } from "../panel.js";
import { factTable, ranked, scored, these } from "./facts.js";

/** What a link to another prediction says of these questions: they cost time, and were asked of this one. */
export const UNASKED = { necessary: "", sufficient: "" };

const BUDGET = 1000; // milliseconds that the explanation waits for a necessary set that nobody asked for
const MOST = 4; // facts of a set

/**
 * The smallest set without which the prediction falls. Unless it was asked for, it has to come within the budget.
 * @param {import("../main.js").Page} page @param {import("./ticks.js").Ticks} ticks
 * @param {Record<string, string>} question @param {(choice: Record<string, string>) => void} ask
 * @param {AbortSignal} signal @param {Promise<boolean>} explained Whether the explanation is shown.
 */
export async function necessary(page, ticks, question, ask, signal, explained) {
  const button = (choice, text) => el("button", { type: "button", class: "quiet", click: () => ask(choice) }, text);
  const card = (source, text, buttons, ...rest) => [
    section(
      3,
      "Necessary facts",
      source,
      text.map((sentence) => el("p", {}, sentence)),
      rest,
      el("p", { class: "note" }, "Tick facts anywhere on this page to read what the model would say without them."),
      el(
        "div",
        { class: "choose" },
        buttons,
        button({ sufficient: "1" }, "Find facts that would give this tail to other entities"),
      ),
    ),
  ];
  const candidates = question.necessary === "both" ? "both" : "head";
  const limit = question.necessary ? signal : AbortSignal.any([signal, after(explained, BUDGET)]);
  let answer;
  try {
    const body = { ...asked(question), mode: "necessary", candidates };
    answer = await behind(explained, post("explanations", body, limit));
  } catch (error) {
    if (question.necessary || signal.aborted) throw error;
    if (error.status === 422) return card(null, [`None: ${error.detail}.`], null);
    if (!(error instanceof Problem) && error.name !== "TimeoutError") throw error;
    return card(null, [], button({ necessary: "head" }, "Find the smallest set of facts that it cannot do without"));
  }
  if (!answer) return [];
  const { facts, suffices, score, rank, triple, measured_on } = answer;
  const table = factTable(page, ticks, answer);
  const [head, tail] = [nameOf(triple.head), nameOf(triple.tail)];
  const many = `${count(answer.candidates)} facts of ${candidates === "both" ? `${head} or ${tail}` : head}`;
  const text = [
    suffices
      ? `Without ${these(facts.length)} ${ranked(rank)}; ${nameOf(answer.rival)} is then first.`
      : `No set of up to ${MOST} of the ${many} is predicted to take it from rank 1. ${drop(answer)}`,
    facts.length > 0 && scored(score, measured_on),
  ].filter(Boolean);
  if (question.necessary) announce(text.join(" "));
  const proved = suffices
    ? ` Proved: no smaller set of the ${many} is predicted to do it, and no other of this size by more.`
    : " Proved: no other of these sets is predicted to bring another tail nearer.";
  return card(
    { file: "necessary", answer, rows: factRows(answer) },
    text,
    candidates === "head" && !suffices && button({ necessary: "both" }, `Search the facts of ${tail}, too`),
    table && [
      el("p", { class: "certificate" }, el("span", { class: "badge certified" }, "✓ certified"), proved),
      el(
        "details",
        { open: suffices || Boolean(question.necessary) },
        el(
          "summary",
          {},
          facts.length === 1 ? "The fact and its reason" : `The ${facts.length} facts and their reasons`,
        ),
        table,
      ),
    ],
  );
}

/** A signal so many milliseconds after something has happened. @param {Promise<unknown>} start */
function after(start, milliseconds) {
  const controller = new AbortController();
  const late = () => controller.abort(new DOMException("not in time", "TimeoutError"));
  start.then(() => setTimeout(late, milliseconds));
  return controller.signal;
}

/** How near another tail comes without the set, where none suffices. */
function drop({ facts, rival, margin }) {
  if (!facts.length) return "";
  return `The largest drop is without ${these(facts.length)}: ${nameOf(rival)} comes within ${about(-margin)}.`;
}

/** Facts of the head that would give its tail to other entities. */
export async function sufficient(page, ticks, question, signal) {
  const answer = await post("explanations", { ...asked(question), mode: "sufficient" }, signal);
  const table = factTable(page, ticks, answer);
  const { triple, facts, entities, rank, candidates } = answer;
  const first = entities.filter((entity) => entity.rank.after === 1).length;
  const [head, tail] = [nameOf(triple.head), nameOf(triple.tail)];
  const text = facts.length
    ? `Told ${these(facts.length)} of ${head}, ${first} of ${entities.length} other entities are predicted to have ` +
      `${tail} first. Its mean rank with them goes from ${about(rank.before)} to ${about(rank.after)}.`
    : `No fact of ${head} is predicted to raise the rank of ${tail} with ${entities.length} other entities.`;
  announce(text);
  const line = ({ entity, rank: { before, after } }) =>
    el("li", {}, named(entity), `: rank ${count(before)} → ${count(after)}`);
  return [
    section(
      3,
      "Sufficient facts",
      { file: "sufficient", answer, rows: factRows(answer) },
      el("p", {}, text),
      el(
        "p",
        { class: "certificate" },
        el("span", { class: "badge uncertified" }, "≈ not certified"),
        ` Chosen one by one among ${count(candidates)} training triples: a smaller set may exist. `,
        "Not calibrated: no such set was tried by training.",
      ),
      table,
      el("details", {}, el("summary", {}, `The ${entities.length} other entities`), el("ul", {}, entities.map(line))),
    ),
  ];
}

function asked({ head, relation, tail }) {
  return { triple: { head, relation, tail }, max_facts: MOST };
}
