// A head and a relation, the model's best tails, and why one of them.

import { Combobox } from "../combobox.js";
import { el } from "../dom.js";
import { Panel } from "../panel.js";
import { advice } from "./advice.js";
import { comparison } from "./comparison.js";
import { explanation } from "./explanation.js";
import { examples, predictions } from "./predictions.js";
import { Sets } from "./sets.js";
import { sums } from "./sums.js";

const CHOOSE = "Choose a tail to read why the model ranks it there.";

/** @param {import("../main.js").Page} page */
export function explainView(page) {
  const fields = {
    head: new Combobox("Head", "entities", { required: true, hint: "an entity" }),
    relation: new Combobox("Relation", "relations", { required: true, hint: "a relation" }),
    tail: new Combobox("Tail (optional)", "entities", { hint: "predicted where empty" }),
  };
  const tails = new Panel("Asking the model…", page.refresh);
  const why = new Panel("Searching the training triples…", page.refresh);
  const sets = new Sets(page);
  const compared = new Panel("Searching by both scores…", page.refresh);
  const summed = new Panel("Summing over all training triples…", page.refresh);

  async function submit(event) {
    event.preventDefault();
    const [head, relation, tail] = await Promise.all(Object.values(fields).map((field) => field.resolve()));
    page.go({ head, relation, tail });
  }

  /** Write the service's labels into the fields. */
  function hold(triple, names) {
    for (const name of names) fields[name].set(triple[name]);
  }

  /** @param {Record<string, string>} question */
  function update(question) {
    const { head, relation, tail } = question;
    for (const [name, field] of Object.entries(fields)) field.hold(question[name] ?? "");
    columns.classList.toggle("first", !head || !relation);
    const { top_k, exact, score } = question;
    const explained = async () => Boolean(head && relation && tail && (await tails.done) && (await why.done));
    const key = [page.epoch, head, relation];
    const suggest = (problem) => advice(page, question, problem);
    const others = tails.show(JSON.stringify([...key, tail, question.tails]), loadTails, suggest);
    const another = why.show(JSON.stringify([...key, tail, top_k, exact, score]), loadWhy, suggest);
    sets.update(question, explained);
    const resummed = summed.show(JSON.stringify([...key, tail, exact, question.by, score]), loadSums);
    const again = compared.show(JSON.stringify([...key, tail, exact, question.compare]), loadComparison);
    const focus =
      (tail && another && why) ||
      (others && tails) ||
      (another && why) ||
      (question.compare && again && compared) ||
      (resummed && summed) ||
      null;
    return { title: [head, relation, tail].filter(Boolean).join(" "), focus };

    async function loadTails(signal) {
      if (!head || !relation) return examples(page, signal);
      const { content, triple } = await predictions(page, question, signal);
      hold(triple, ["head", "relation"]);
      return content;
    }

    async function loadWhy(signal) {
      if (!head || !relation) return [];
      if (!tail) return (await tails.done) ? [el("p", { class: "empty" }, CHOOSE)] : [];
      const found = await explanation(page, sets.ticks, question, signal, tails.done);
      if (!found) return [];
      hold(found.triple, Object.keys(fields));
      const [about, ...lists] = found.content;
      return [about, sets.element, ...lists];
    }

    async function loadComparison(signal) {
      return question.compare && (await explained()) ? comparison(page, sets.ticks, question, signal) : [];
    }

    async function loadSums(signal) {
      return tail ? sums(page, question, signal, explained()) : [];
    }
  }

  const form = el(
    "form",
    { class: "ask", submit },
    Object.values(fields).map(({ element }) => element),
    el("button", {}, "Explain"),
  );
  const columns = el(
    "div",
    { class: "columns" },
    tails.element,
    el("div", { class: "stack" }, why.element, compared.element, summed.element, sets.ticks.bar),
  );
  const element = el("div", {}, el("h1", { tabindex: "-1" }, "Why does the model say this?"), form, columns);
  return { element, update };
}
