// How training triples are related to the prediction: badges, and lists that are filtered and grouped by reason.

import { el } from "../dom.js";

/** What stands in the choice for each reason, in the order of the service. */
const REASONS = {
  itself: "the prediction itself",
  inverse: "says it the other way round",
  "same-pair": "the same two entities",
  path: "on a path from head to tail",
  "same-head-relation": "the same head and relation",
  "same-relation-tail": "the same relation and tail",
  "shares-head": "has the head",
  "shares-tail": "has the tail",
  "same-relation": "the same relation alone",
  none: "nothing in common",
};

/** The tag, and the same in words. @param {{reason: string, because: string}} influence */
export function because({ reason, because }) {
  return el("small", { class: "row" }, el("span", { class: "badge known" }, reason), ` ${because}`);
}

/**
 * Fields that choose which reasons are shown, and whether the lists are grouped by them.
 * @param {{reason: string}[]} influences All that there are. @param {Record<string, string>} question
 * @param {(chosen: {reason: string, group: string}) => void} choose Called with what is chosen, empty where it is not.
 */
export function reasonFields(influences, question, choose) {
  const counted = ([reason, words]) => {
    const many = influences.filter((influence) => influence.reason === reason).length;
    return (many > 0 || reason === question.reason) && el("option", { value: reason }, `${reason}: ${words} (${many})`);
  };
  const only = el(
    "select",
    { id: "reason", change },
    el("option", { value: "" }, `any (${influences.length})`),
    Object.entries(REASONS).map(counted),
  );
  const group = el("input", { id: "group", type: "checkbox", change });
  only.value = Object.hasOwn(REASONS, question.reason ?? "") ? question.reason : "";
  group.checked = question.group === "reason";

  function change() {
    choose({ reason: only.value, group: group.checked ? "reason" : "" });
  }

  return el(
    "div",
    { class: "choose" },
    el("label", { for: "reason" }, "Reason"),
    only,
    el("label", { for: "group" }, group, "Group by reason"),
  );
}

/** Whether a training triple is of the chosen reason. */
export function chosen({ reason }, question) {
  return !Object.hasOwn(REASONS, question.reason ?? "") || reason === question.reason;
}

/**
 * The bodies of a table: one, or one for each reason below its name.
 * @param {{reason: string}[]} influences @param {HTMLElement[]} rows One for each.
 * @param {Record<string, string>} question
 */
export function bodies(influences, rows, question) {
  if (question.group !== "reason") return el("tbody", {}, rows);
  return Object.entries(REASONS).map(([reason, words]) => {
    const members = rows.filter((_, i) => influences[i].reason === reason);
    const head = el("th", { scope: "rowgroup", colspan: 3 }, `${reason}: ${words}`);
    return members.length > 0 && el("tbody", {}, el("tr", { class: "group" }, head), members);
  });
}
