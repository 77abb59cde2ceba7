// What to do about an unknown label.

import { el, named } from "../dom.js";

/**
 * What it may have been meant to be, as links that put it in its place.
 * @param {import("../main.js").Page} page @param {Record<string, string>} question
 * @param {import("../api.js").Problem} problem
 */
export function advice(page, question, { unknown, nearest }) {
  const field = ["head", "relation", "tail", "entity"].find((name) => unknown && question[name] === unknown);
  if (!field || !nearest.length) return [];
  const links = nearest.map((thing) => el("li", {}, page.link({ ...question, [field]: thing.label }, named(thing))));
  return [el("p", {}, "Did you mean:"), el("ul", { class: "choices" }, links)];
}
