// Several triples explained by one call, in which no wrong label is the others' loss.

import { Problem, post } from "./api.js";

/**
 * @typedef {{head: string, relation: string, tail: string}} Labels
 * @param {Labels[]} triples @param {object} options Of the question, beside its triples.
 * @param {AbortSignal} signal @param {string} [generation] The one that is to answer, if not the live one.
 * @returns {Promise<{score: string | undefined, outcomes: (object | Problem)[]}>}
 *   For each triple its result, or the problem of a label in it; by which score, where any has a result.
 */
export async function explainAll(triples, options, signal, generation) {
  const outcomes = triples.map(() => null);
  let left = [...triples.keys()];
  while (left.length) {
    try {
      const question = { ...options, triples: left.map((i) => triples[i]) };
      const { score, results } = await post("influences", question, signal, generation);
      left.forEach((i, place) => (outcomes[i] = results[place]));
      return { score, outcomes };
    } catch (error) {
      const wrong = left.filter((i) => error instanceof Problem && error.unknown && holds(triples[i], error));
      if (!wrong.length) throw error;
      for (const i of wrong) outcomes[i] = error;
      left = left.filter((i) => outcomes[i] === null);
    }
  }
  return { score: undefined, outcomes };
}

/** The fields of a triple that an unknown label stands in. @param {Labels} triple @param {Problem} problem */
export function unknownFields(triple, { title, unknown }) {
  const fields = title === "Unknown relation" ? ["relation"] : ["head", "tail"];
  return fields.filter((field) => triple[field] === unknown);
}

function holds(triple, problem) {
  return unknownFields(triple, problem).length > 0;
}
