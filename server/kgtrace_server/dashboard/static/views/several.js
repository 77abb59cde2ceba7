// Several predictions at once: pasted lines, and a table of what the model says of each and its best fact.

import { Problem } from "../api.js";
import { explainAll, unknownFields } from "../batch.js";
import { severalRows } from "../csv.js";
import { announce, el, named, tableHead, tripleNames } from "../dom.js";
import { count, number } from "../format.js";
import { readLines, writeLines } from "../lines.js";
import { Panel, section } from "../panel.js";
import { session } from "../storage.js";
import { labels } from "./facts.js";
import { because } from "./reasons.js";

const MOST = 50; // lines
const LONGEST = 2000; // characters of an address that other programs pass on whole
const KEY = "kgtrace-several";
const FIELDS = ["head", "relation", "tail"];

/** @param {import("../main.js").Page} page */
export function severalView(page) {
  const field = el("textarea", {
    id: "lines",
    rows: 6,
    required: true,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    "aria-describedby": "lines-hint",
  });
  const panel = new Panel("Explaining…", page.refresh);

  function submit(event) {
    event.preventDefault();
    ask(field.value);
  }

  /** Show the answers to a text: from its address where that is short enough, else from what this tab keeps. */
  function ask(text) {
    session.setItem(KEY, text);
    page.go({ view: "several", lines: short(text) ? text : "" });
  }

  const element = el(
    "div",
    {},
    el("h1", { tabindex: "-1" }, "What does the model say of these?"),
    el(
      "form",
      { class: "ask", submit },
      el(
        "div",
        { class: "field" },
        el("label", { for: "lines" }, "Predictions"),
        field,
        el(
          "span",
          { id: "lines-hint", class: "label" },
          `Up to ${MOST} lines: head, relation and tail, with tabs or blanks between. `,
          "Beside blanks, labels that hold blanks stand in quotes.",
        ),
      ),
      el("button", {}, "Explain all"),
    ),
    el("div", { class: "stack" }, panel.element),
  );
  return {
    element,
    update(question) {
      const text = question.lines || session.getItem(KEY) || "";
      session.setItem(KEY, text);
      field.value = text;
      if (text && !question.lines && short(text)) page.keep({ lines: text });
      panel.show(JSON.stringify([page.epoch, text]), (signal) => (text.trim() ? table(page, text, ask, signal) : []));
      return { title: "Several predictions", focus: panel };
    },
  };
}

/** Whether an address can hold a text. @param {string} text */
function short(text) {
  return new URLSearchParams({ view: "several", lines: text }).toString().length <= LONGEST;
}

/**
 * @param {import("../main.js").Page} page @param {string} text @param {(text: string) => void} ask
 * @param {AbortSignal} signal
 */
async function table(page, text, ask, signal) {
  const lines = readLines(text);
  if (lines.length > MOST) {
    const detail =
      `These are ${count(lines.length)} predictions, and up to ${MOST} are explained at once. Leave some out, or let ` +
      "kgtrace query --test FILE read them from a file.";
    throw new Problem({ status: 422, title: "Too many lines", detail });
  }
  const whole = lines.filter(({ fields }) => fields.length === 3 && fields.every(Boolean));
  const triples = whole.map(({ fields: [head, relation, tail] }) => ({ head, relation, tail }));
  const { outcomes } = await explainAll(triples, { top_k: 1 }, signal);
  const rows = lines.map((line) => ({ ...line, outcome: outcomes[whole.indexOf(line)] ?? malformed(line) }));
  const failed = rows.filter(({ outcome }) => outcome instanceof Problem).length;
  announce(`${rows.length - failed} predictions explained, ${failed} not`);

  const correct = (number, field, label) => ask(writeLines(lines.map(corrected(number, field, label))));
  return [
    section(
      2,
      "Explained at once",
      { file: "several", answer: { results: rows.map(({ outcome }) => outcome) }, rows: severalRows(rows) },
      el(
        "div",
        { class: "scroll several", tabindex: "0", role: "region", "aria-label": "Explained at once" },
        el(
          "table",
          {},
          tableHead(
            ["#", "number"],
            ["Prediction"],
            ["Score", "number"],
            ["Rank", "number"],
            ["Proof"],
            ["Best fact and its reason"],
          ),
          el(
            "tbody",
            {},
            rows.map((line) =>
              line.outcome instanceof Problem ? refusedRow(line, correct) : explainedRow(page, line),
            ),
          ),
        ),
      ),
      !short(text) && el("p", { class: "note" }, "These lines are too long for an address: they stay in this tab."),
    ),
  ];
}

function explainedRow(page, { number: place, outcome: { triple, rank, score, certified, influences } }) {
  const [best] = influences;
  return el(
    "tr",
    {},
    el("td", { class: "number" }, place),
    el("th", { scope: "row" }, page.link(labels(triple), tripleNames(triple))),
    el("td", { class: "number" }, number(score)),
    el("td", { class: "number" }, count(rank)),
    el(
      "td",
      {},
      certified
        ? el("span", { class: "badge certified" }, "✓ certified")
        : el("span", { class: "badge uncertified" }, "≈ not certified"),
    ),
    el("td", {}, best ? [tripleNames(best.triple, triple), because(best)] : "none"),
  );
}

/** A line that is no prediction, and labels that its unknown one may have been meant to be. */
function refusedRow({ number: place, text, fields, outcome }, correct) {
  const triple = Object.fromEntries(FIELDS.map((name, i) => [name, fields[i]]));
  const [field] = unknownFields(triple, outcome);
  const suggestion = (thing) =>
    el("button", { type: "button", class: "quiet", click: () => correct(place, field, thing.label) }, named(thing));
  const nearest = outcome.nearest.map(suggestion);
  return el(
    "tr",
    { class: "refused" },
    el("td", { class: "number" }, place),
    el(
      "th",
      { scope: "row", colspan: 5 },
      text.trim(),
      el("p", {}, outcome.detail),
      nearest.length > 0 && el("div", { class: "choose" }, "Did you mean: ", nearest),
    ),
  );
}

/** Puts another label into one field of one line. */
function corrected(number, field, label) {
  const place = FIELDS.indexOf(field);
  return (line) => (line.number === number ? line.fields.with(place, label) : line.fields);
}

function malformed({ fields }) {
  const detail = fields.every(Boolean)
    ? `This line has ${fields.length} fields; a prediction has three: head, relation and tail.`
    : "A field of this line is empty.";
  return new Problem({ status: 422, title: "Malformed line", detail });
}
