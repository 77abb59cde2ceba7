// Two generations of the index side by side: one prediction in both, or the predictions that changed most.

import { address, get } from "../api.js";
import { Combobox } from "../combobox.js";
import { el } from "../dom.js";
import { compared } from "../generations.js";
import { Panel } from "../panel.js";
import { advice } from "./advice.js";
import { changedFacts } from "./changed.js";
import { changedMost } from "./most.js";

/** @param {import("../main.js").Page} page */
export function changesView(page) {
  const fields = {
    head: new Combobox("Head", "entities", { required: true, hint: "an entity" }),
    relation: new Combobox("Relation", "relations", { required: true, hint: "a relation" }),
    tail: new Combobox("Tail", "entities", { required: true, hint: "an entity" }),
  };
  const choices = { from: el("select", { id: "from" }), to: el("select", { id: "to" }) };
  const panel = new Panel("Asking both generations…", page.refresh);

  async function submit(event) {
    event.preventDefault();
    const [head, relation, tail] = await Promise.all(Object.values(fields).map((field) => field.resolve()));
    page.go({ view: "changes", from: choices.from.value, to: choices.to.value, head, relation, tail });
  }

  /** Offer the generations, the newest first. One that is chosen and gone is among them: the service will say so. */
  function offer({ live, generations }, chosen) {
    for (const [name, choice] of Object.entries(choices)) {
      const ids = new Set([chosen[name], ...generations.map(({ id }) => id)]);
      const option = (id) => el("option", { value: id }, id === live ? `${id} (live)` : id);
      choice.replaceChildren(...[...ids].sort().reverse().map(option));
      choice.value = chosen[name];
    }
  }

  async function load(question, signal) {
    const answer = await get(address("generations"), signal);
    const chosen = compared(answer, question);
    if (!chosen)
      return [el("p", { class: "empty" }, "One generation is on disk: there is nothing to compare it with yet.")];
    if (element.isConnected && !signal.aborted) page.keep(chosen); // whoever gets the address tomorrow sees the same
    offer(answer, chosen);
    const { head, relation, tail } = question;
    return head && relation && tail
      ? changedFacts(page, { ...question, ...chosen }, signal)
      : changedMost(page, chosen, signal);
  }

  const choice = (name, text) => el("div", { class: "field half" }, el("label", { for: name }, text), choices[name]);
  const element = el(
    "div",
    {},
    el("h1", { tabindex: "-1" }, "What changed overnight?"),
    el(
      "form",
      { class: "ask", submit },
      choice("from", "Before"),
      choice("to", "After"),
      Object.values(fields).map((field) => field.element),
      el("button", {}, "Compare"),
    ),
    el("div", { class: "stack" }, panel.element),
  );
  return {
    element,
    update(question) {
      const { from, to, head, relation, tail, order } = question;
      for (const [name, field] of Object.entries(fields)) field.hold(question[name] ?? "");
      panel.show(
        JSON.stringify([page.epoch, from, to, head, relation, tail, order]),
        (signal) => load(question, signal),
        (problem) => advice(page, question, problem),
      );
      return { title: ["What changed", head, relation, tail].filter(Boolean).join(" "), focus: panel };
    },
  };
}
