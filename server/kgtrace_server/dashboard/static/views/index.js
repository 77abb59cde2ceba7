// What is served, how old it is, and how far explanations drift from one generation to the next.

import { address, get, Problem } from "../api.js";
import { line } from "../charts.js";
import { generationRows } from "../csv.js";
import { el, tableHead } from "../dom.js";
import { ago, count, megabytes, moment, percent } from "../format.js";
import { Panel, drawn, section } from "../panel.js";

/** @param {import("../main.js").Page} page */
export function indexView(page) {
  const served = new Panel("Asking what is served…", page.refresh);
  const kept = new Panel("Looking at what is on disk…", page.refresh);
  return {
    element: el(
      "div",
      {},
      el("h1", { tabindex: "-1" }, "The index"),
      el("div", { class: "stack" }, served.element, kept.element),
    ),
    update() {
      served.show(`${page.epoch}`, facts);
      kept.show(`${page.epoch}`, (signal) => generations(page, signal));
      return { title: "Index", focus: served };
    },
  };
}

async function facts(signal) {
  const index = await get(address("index"), signal);
  const { projection, counts, sample_rate } = index;
  const rows = [
    ["Generation", el("code", {}, index.generation)],
    ["Built", `${moment(index.built_at)} (${ago(index.age_seconds)})`],
    ["Model", index.model ?? "unknown"],
    ["Loss", index.loss ?? "unknown"],
    ["Layers", (index.layers ?? ["unknown"]).join(", ")],
    ["Training triples", `${count(counts.triples)}${sample_rate < 1 ? `, a sample of ${percent(sample_rate)}` : ""}`],
    ["Entities", count(counts.entities)],
    ["Relations", count(counts.relations)],
    [
      "Projection",
      Object.values(projection)[0] +
        Object.entries(projection)
          .slice(1)
          .map(([name, value]) => `, ${name} ${value}`)
          .join(""),
    ],
    ["Fingerprint", el("code", {}, index.fingerprint.slice(0, 16))],
  ];
  const source = { route: "index", parameters: {}, rows: [flat(index)], file: "index" };
  return [
    section(
      2,
      "What is served",
      source,
      el(
        "dl",
        { class: "facts wide" },
        rows.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))),
      ),
    ),
  ];
}

function flat({ configuration, projection, counts, layers, ...rest }) {
  return { ...rest, ...counts, layers: layers?.join(" ") };
}

async function generations(page, signal) {
  let answer;
  try {
    answer = await get(address("generations"), signal);
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 409) throw error;
    return [section(2, "Generations", null, el("p", { class: "empty" }, error.detail))];
  }
  const source = { route: "generations", parameters: {}, rows: generationRows(answer), file: "generations" };
  return [drift(page, answer.generations), section(2, "Generations on disk", source, table(page, answer))];
}

/** A way to what changed from the generation before to another, if both are on disk. */
function changes(page, all, { id, agreement }, text) {
  const both = all.some((other) => other.id === agreement.generation);
  return both ? page.link({ view: "changes", from: agreement.generation, to: id }, text) : text;
}

/** Agreement of each generation with the one that was live before it. */
function drift(page, all) {
  const points = all
    .filter(({ agreement }) => agreement && agreement.overlap !== null)
    .map((generation) => {
      const { id, built_at, agreement } = generation;
      return {
        at: built_at,
        share: agreement.overlap,
        text:
          `${id}: ${percent(agreement.overlap)} of the top ${agreement.top_k} of ${agreement.triples} triples ` +
          `as in ${agreement.generation}`,
        href: changes(page, all, generation, null)?.getAttribute("href"),
      };
    });
  const explained = el(
    "p",
    {},
    "Share of the top training triples that a generation names as the one before it did, for the same test triples. ",
    "A low value: last night’s training changed the model’s mind. A point leads to what changed.",
  );
  if (!points.length)
    return section(
      2,
      "Drift over nights",
      null,
      el("p", { class: "empty" }, "Drift shows once a second generation has been built."),
    );
  return section(
    2,
    "Drift over nights",
    null,
    explained,
    drawn((width) => line(points, width)),
  );
}

function table(page, { serving, generations: all }) {
  const row = ({ id, live, problem, built_at, counts, bytes, agreement, model }) =>
    el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        el("code", {}, id),
        live && [" ", el("span", { class: "badge certified" }, "live")],
        id === serving && !live && [" ", el("span", { class: "badge known" }, "still answers")],
      ),
      problem
        ? el("td", { colspan: "5" }, el("span", { class: "badge uncertified" }, "unreadable"), ` ${problem}`)
        : [
            el("td", {}, moment(built_at)),
            el("td", {}, model ?? "unknown"),
            el("td", { class: "number" }, count(counts.triples ?? 0)),
            el("td", { class: "number" }, megabytes(bytes)),
            el(
              "td",
              { class: "number" },
              agreement && agreement.overlap !== null
                ? changes(page, all, { id, agreement }, percent(agreement.overlap))
                : "–",
            ),
          ],
    );
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Generations on disk" },
    el(
      "table",
      {},
      tableHead(
        ["Generation"],
        ["Built"],
        ["Model"],
        ["Triples", "number"],
        ["Size", "number"],
        ["Agreement", "number"],
      ),
      el("tbody", {}, [...all].reverse().map(row)),
    ),
  );
}
