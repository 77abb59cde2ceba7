// Triples out of lines of text, as people paste them.

const TABBED = /\t(?:"((?:[^"]|"")*)"(?=\t|$)|([^\t]*))/g;
const BLANKS = /"([^"]*)"|'([^']*)'|(\S+)/g;

/**
 * Read one triple a line; blank lines only count. With a tab in it, a line is one of the files that the command line
 * reads: labels with tabs between, in the quotes of CSV where need be. Without one, it is what follows `--triple`:
 * labels with blanks between, in quotes where they hold blanks.
 * @param {string} text
 * @returns {{number: number, text: string, fields: string[]}[]} With three fields where it is a triple.
 */
export function readLines(text) {
  return text
    .split(/\r?\n/)
    .map((line, i) => ({ number: i + 1, text: line, fields: line.includes("\t") ? tabbed(line) : words(line) }))
    .filter((line) => line.text.trim() !== "");
}

/** Lines as the command line's files have them. @param {string[][]} triples */
export function writeLines(triples) {
  return triples.map((fields) => fields.map(quoted).join("\t")).join("\n");
}

function tabbed(line) {
  return [...`\t${line}`.matchAll(TABBED)].map(([, inside, plain]) => inside?.replaceAll('""', '"') ?? plain);
}

function words(line) {
  return [...line.matchAll(BLANKS)].map(([, double, single, plain]) => double ?? single ?? plain);
}

function quoted(label) {
  return /^"|\t/.test(label) ? `"${label.replaceAll('"', '""')}"` : label;
}
