// CSV files in the columns of the command line's.

/** @param {string} prefix @param {import("./api.js").Named} thing */
function namedColumns(prefix, thing) {
  return { [prefix]: thing.id, [`${prefix}_label`]: thing.label, [`${prefix}_name`]: thing.name };
}

/** Ids, labels and names of a triple by column. @param {string} prefix @param {import("./api.js").Triple} triple */
function tripleColumns(prefix, triple) {
  return Object.assign({}, ...["head", "relation", "tail"].map((field) => namedColumns(prefix + field, triple[field])));
}

/** Rows of an answer to `influences`. */
export function influenceRows({ results }) {
  return results.flatMap((result, test_index) =>
    result.influences.map(({ train_index, triple, path, ...values }, i) => ({
      test_index,
      ...tripleColumns("test_", result.triple),
      certified: result.certified,
      position: i + 1,
      train_index,
      ...tripleColumns("train_", triple),
      ...values,
    })),
  );
}

/** Rows of an answer to `predictions`. */
export function predictionRows({ predictions }) {
  return predictions.map(({ triple, score, rank, in_training }, i) => ({
    position: i + 1,
    ...tripleColumns("", triple),
    score,
    rank,
    in_training,
  }));
}

/** Rows of an answer to `aggregate`. */
export function sumRows({ groups }) {
  return groups.map(({ group, count, sum, positive, negative, error }, i) => ({
    position: i + 1,
    ...namedColumns("group", group),
    count,
    sum,
    positive,
    negative,
    error,
  }));
}

/** Rows of an answer to `self-influence`. */
export function selfInfluenceRows({ self_influences }) {
  return self_influences.map(({ train_index, triple, ...values }, i) => ({
    position: i + 1,
    train_index,
    ...tripleColumns("", triple),
    ...values,
  }));
}

/** Rows of an answer to `explanations` or `what-if`: the training triples of the set. */
export function factRows({ facts }) {
  return facts.map(({ train_index, triple, path, ...values }, i) => ({
    position: i + 1,
    train_index,
    ...tripleColumns("", triple),
    ...values,
  }));
}

/** Rows of the facts that changed from one generation to another, as the view follows them. */
export function changeRows(facts) {
  return facts.map(({ fate, before, after, missing }) => ({
    fate,
    ...tripleColumns("", (after ?? before).triple),
    before_position: before?.place,
    before_influence: before?.influence,
    after_position: after?.place,
    after_influence: after?.influence,
    missing,
    reason: (after ?? before).reason,
  }));
}

/** Rows of several predictions, each with its best training triple or its problem. */
export function severalRows(rows) {
  const empty = { id: null, label: null, name: null };
  const nothing = { head: empty, relation: empty, tail: empty };
  return rows.map(({ number, text, outcome }) => {
    const [best] = outcome.influences ?? [];
    return {
      line: number,
      text,
      ...tripleColumns("", outcome.triple ?? nothing),
      score: outcome.score,
      rank: outcome.rank,
      certified: outcome.certified,
      train_index: best?.train_index,
      ...tripleColumns("train_", best?.triple ?? nothing),
      influence: best?.influence,
      reason: best?.reason,
      because: best?.because,
      problem: outcome.detail,
    };
  });
}

/** Rows of an answer to `generations`. */
export function generationRows({ generations }) {
  return generations.map(({ id, live, built_at, model, counts, bytes, agreement, problem }) => ({
    id,
    live,
    built_at,
    model,
    triples: counts?.triples,
    entities: counts?.entities,
    relations: counts?.relations,
    bytes,
    agreement_with: agreement?.generation,
    agreement: agreement?.overlap,
    problem,
  }));
}

/** A file of RFC 4180. @param {Record<string, any>[]} rows */
export function csv(rows) {
  const columns = Object.keys(rows[0] ?? {});
  return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
    .map((line) => line.map((value) => csvCell(value)).join(",") + "\n")
    .join("");
}

/** A value as a cell, in quotes where it would break the line. @param {any} value @param {string} [separator] */
export function csvCell(value, separator = ",") {
  const text = value === null || value === undefined ? "" : String(value);
  return text.includes(separator) || /["\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
