// Suspicious triples as work to do: a mark on each, which of them are shown, and the marks to files and from them.

import { announce, el, tripleString } from "../dom.js";
import { count } from "../format.js";
import { MARKS, NoMarks, marked, marksAsJson, marksAsTsv, marksOf, mergeMarks, setMark } from "../marks.js";
import { save } from "../panel.js";

const UNMARKED = "none";

/**
 * Fields that mark triples, and a bar that says which are shown.
 * @param {import("../main.js").Page} page @param {Record<string, string>} question
 * @param {import("../api.js").Triple[]} triples
 */
export function workList(page, question, triples) {
  const only = el("select", { id: "marks", change: choose });
  const wrong = el("button", { type: "button", class: "quiet", click: saveWrong }, "Wrong as TSV");
  const all = el("button", { type: "button", class: "quiet", click: saveAll }, "Marks as JSON");
  const file = el("input", { type: "file", accept: ".tsv,.json", hidden: true, change: readFile });
  const merge = el("button", { type: "button", class: "quiet", click: () => file.click() }, "Read marks from a file");
  const outcome = el("p", { class: "note", hidden: true });
  const fields = triples.map((triple) =>
    el(
      "select",
      { "aria-label": `Mark of ${tripleString(triple)}`, change: (event) => mark(triple, event.target.value) },
      el("option", { value: "" }, "no mark"),
      Object.entries(MARKS).map(([mark, words]) => el("option", { value: mark }, words)),
    ),
  );
  let rows = [];
  let chosen = Object.hasOwn({ ...MARKS, [UNMARKED]: "" }, question.marks ?? "") ? question.marks : "";

  /** Count the marks again, and show the rows that are chosen. */
  function update() {
    const marks = marksOf(triples);
    fields.forEach((field, i) => (field.value = marks[i]));
    rows.forEach((row, i) => (row.hidden = chosen !== "" && (marks[i] || UNMARKED) !== chosen));
    const options = [["", "all"], [UNMARKED, "no mark"], ...Object.entries(MARKS)];
    only.replaceChildren(
      ...options.map(([value, words]) => {
        const many = marks.filter((mark) => value === "" || (mark || UNMARKED) === value).length;
        return el("option", { value }, `${words} (${many})`);
      }),
    );
    only.value = chosen;
    wrong.disabled = marked("wrong") === 0;
    all.disabled = Object.keys(MARKS).every((mark) => marked(mark) === 0);
    wrong.textContent = `Wrong as TSV (${marked("wrong")})`;
  }

  function choose() {
    chosen = only.value;
    page.keep({ marks: chosen });
    update();
    announce(`${rows.filter((row) => !row.hidden).length} training triples`);
  }

  function mark(triple, value) {
    setMark(triple, value);
    update();
    const place = triples.indexOf(triple);
    if (rows[place].hidden) fields.find((_, i) => i > place && !rows[i].hidden)?.focus(); // on to the next one
  }

  function saveWrong() {
    save("wrong.tsv", "text/tab-separated-values", marksAsTsv("wrong"));
  }

  function saveAll() {
    save("marks.json", "application/json", marksAsJson());
  }

  async function readFile() {
    const [{ name }, text] = [file.files[0], await file.files[0].text()];
    file.value = ""; // so that the same file can be read again
    outcome.textContent = merged(name, text);
    outcome.hidden = false;
    announce(outcome.textContent);
    update();
  }

  return {
    fields,
    bar: [
      el("div", { class: "choose" }, el("label", { for: "marks" }, "Show"), only, wrong, all, merge, file),
      outcome,
    ],
    /** @param {HTMLElement[]} shown The row of each triple. */
    show(shown) {
      rows = shown;
      update();
    },
  };
}

/** What became of a file of marks, in words. */
function merged(name, text) {
  try {
    const { read, changed } = mergeMarks(name, text);
    return `${name}: ${count(read)} marks, ${count(changed)} of them new here.`;
  } catch (error) {
    if (!(error instanceof NoMarks)) throw error;
    return `${name} is no file of marks as this page saves them: ${error.message}. No mark was changed.`;
  }
}
