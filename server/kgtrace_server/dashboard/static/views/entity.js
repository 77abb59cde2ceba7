// One entity: the training triples that it is head and tail of, what the model predicts of it, and where else to read.

import { address, get } from "../api.js";
import { bar, barScale } from "../charts.js";
import { selfInfluenceRows } from "../csv.js";
import { breakable, el, nameOf, named, tableHead } from "../dom.js";
import { count, number } from "../format.js";
import { Panel, section } from "../panel.js";
import { advice } from "./advice.js";
import { predicted } from "./predicted.js";

const ROWS = 25;
const MORE = 1000;
const SIDES = { head: "Facts out: it is the head", tail: "Facts in: it is the tail" };
const ADDRESS = document.querySelector("meta[name='kgtrace-entity-url']").content;

/** @param {import("../main.js").Page} page */
export function entityView(page) {
  const facts = new Panel("Looking the entity up…", page.refresh);
  const predictions = new Panel("Asking the model…", page.refresh);
  predictions.element.id = "predicted";
  const stack = el("div", { class: "stack" }, facts.element, predictions.element);
  return {
    element: el("div", {}, el("h1", { tabindex: "-1" }, "An entity"), stack),
    update(question) {
      const { entity: label = "", top_k } = question;
      facts.show(
        JSON.stringify([page.epoch, label, top_k]),
        (signal) => entity(page, question, signal),
        (problem) => advice(page, question, problem),
      );
      predictions.show(JSON.stringify([page.epoch, label]), async (signal) => {
        const [known, shown] = await Promise.all([facts.done, predicted(page, label, signal)]);
        return known ? [shown] : [];
      });
      return { title: label || "Entity", focus: facts };
    },
  };
}

/** A link to the page of an entity. @param {import("../main.js").Page} page @param {import("../api.js").Named} thing */
export function entityLink(page, thing) {
  return page.link({ view: "entity", entity: thing.label }, named(thing));
}

async function entity(page, question, signal) {
  const label = question.entity ?? "";
  const many = question.top_k === String(MORE);
  const sides = await Promise.all(
    Object.keys(SIDES).map(async (side) => {
      const parameters = { [side]: label, top_k: many ? MORE : ROWS };
      return { side, parameters, answer: await get(address("self-influence", parameters), signal) };
    }),
  );
  const matches = await get(address("entities", { q: label, limit: 1 }), signal);
  const thing = matches.entities.find((match) => match.label === label) ?? { id: -1, label, name: null };
  const elsewhere = outside(label);
  const counts = sides.map(({ answer }) => answer.count);
  return [
    section(
      2,
      named(thing),
      null,
      el(
        "dl",
        { class: "facts" },
        fact("Degree", count(counts[0] + counts[1])),
        fact("Facts out", count(counts[0])),
        fact("Facts in", count(counts[1])),
      ),
      el("p", { class: "note" }, el("a", { href: "#predicted" }, "What the model predicts of it")),
      elsewhere &&
        el(
          "p",
          { class: "note" },
          el("a", { href: elsewhere, target: "_blank", rel: "noopener noreferrer" }, breakable(elsewhere)),
        ),
    ),
    el(
      "div",
      { class: "sides" },
      sides.map((side) => list(page, thing, side)),
    ),
    counts.some((size) => size > ROWS) &&
      el(
        "p",
        { class: "note" },
        page.change({ top_k: many ? "" : String(MORE) }, many ? `Show ${ROWS} each` : `Show ${count(MORE)} each`),
      ),
  ].filter(Boolean);
}

function fact(term, description) {
  return el("div", {}, el("dt", {}, term), el("dd", {}, description));
}

/** Where else to read of an entity: at its label if that is an address, or where the service's settings say. */
function outside(label) {
  if (/^https?:\/\//.test(label)) return label;
  return ADDRESS && ADDRESS.replaceAll("{label}", () => encodeURIComponent(label));
}

/** The triples of one side, those of largest self-influence first. */
function list(page, thing, { side, parameters, answer }) {
  const members = answer.self_influences;
  const scale = barScale(members.map(({ self_influence }) => self_influence));
  const row = ({ triple, self_influence }) => {
    const other = side === "head" ? triple.tail : triple.head;
    const asked = { head: triple.head.label, relation: triple.relation.label, tail: triple.tail.label };
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, page.link(asked, breakable(nameOf(triple.relation)))),
      el("td", {}, other.id === thing.id ? named(other) : entityLink(page, other)),
      el(
        "td",
        { class: "influence" },
        el("span", { class: "number" }, number(self_influence)),
        self_influence !== null && bar(self_influence, scale),
      ),
    );
  };
  const cut = `The ${count(members.length)} of largest self-influence, of ${count(answer.count)}.`;
  return section(
    3,
    SIDES[side],
    { route: "self-influence", parameters, rows: selfInfluenceRows(answer), file: `facts-${side}` },
    members.length
      ? el(
          "table",
          {},
          tableHead(["Relation"], [side === "head" ? "Tail" : "Head"], ["Self-influence", "influence"]),
          el("tbody", {}, members.map(row)),
        )
      : el("p", { class: "empty" }, "None."),
    members.length < answer.count && el("p", { class: "note" }, cut),
  );
}
