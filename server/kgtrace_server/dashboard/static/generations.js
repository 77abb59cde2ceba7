// Questions to two generations of the index.

import { Problem } from "./api.js";

/**
 * Which two generations are compared: those that are named, else the live one, and the one that it was compared with
 * when it was built or, if that is gone, the one before it.
 * @param {{live: string | null, generations: object[]}} answer To `generations`.
 * @param {{from?: string, to?: string}} named
 * @returns {{from: string, to: string} | null} Null where there is one alone.
 */
export function compared({ live, generations }, named) {
  const readable = generations.filter(({ problem }) => !problem);
  const to = named.to || live || readable.at(-1)?.id;
  const older = readable.filter(({ id }) => id < to).map(({ id }) => id);
  const before = readable.find(({ id }) => id === to)?.agreement?.generation;
  const from = named.from || (older.includes(before) ? before : older.at(-1));
  return from && to ? { from, to } : null;
}

/**
 * Ask both generations by the same score: the one that they answer by, or where that is not the same, TracIn. One is
 * asked after the other, since the service holds one besides the live one.
 * @template {{score: string | undefined}} Answer
 * @param {{from: string, to: string}} chosen
 * @param {(generation: string, score: string | undefined) => Promise<Answer>} ask
 * @returns {Promise<[Answer, Answer]>}
 */
export async function inBoth({ from, to }, ask, score) {
  const before = await asked(from, ask, score);
  const after = await asked(to, ask, score);
  return before.score === after.score || score ? [before, after] : inBoth({ from, to }, ask, "tracin");
}

/** Ask one of them; a problem says which one has it. */
async function asked(generation, ask, score) {
  try {
    return await ask(generation, score);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    throw new Problem({ ...error, title: `${error.title}, generation ${generation}` });
  }
}
