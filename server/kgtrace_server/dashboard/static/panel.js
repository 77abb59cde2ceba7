// A part of the page that shows the answer of a call, that it is loading, or why there is nothing to show.

import { GRAPHML, Problem, address, get, getFile, hasKey } from "./api.js";
import { csv } from "./csv.js";
import { announce, el } from "./dom.js";
import { png, standalone } from "./pictures.js";

export class Panel {
  /**
   * @param {string} waiting What is said while the answer is computed.
   * @param {() => void} again What "Try again" does.
   */
  constructor(waiting, again) {
    this.element = el("div", { class: "panel" });
    /** Whether the content of the last call is shown. */
    this.done = Promise.resolve(false);
    this._waiting = waiting;
    this._again = again;
    this._key = null;
    this._loading = new AbortController();
  }

  /**
   * Show the content that `load` resolves to, unless the panel shows it already.
   * @param {string} key Names the content.
   * @param {(signal: AbortSignal) => Promise<Node[]>} load Rejects with `Problem`.
   * @param {(problem: Problem) => Node[]} [advice] What can be done about a problem.
   * @returns {boolean} Whether that is another thing than before.
   */
  show(key, load, advice = () => []) {
    if (key === this._key) return false;
    this._key = key;
    this._loading.abort();
    this._loading = new AbortController();
    this.element.setAttribute("aria-busy", "true");
    if (!this.element.hasChildNodes()) this.element.append(el("p", { class: "loading" }, this._waiting));
    this.done = this._load(load, advice, this._loading.signal);
    return true;
  }

  async _load(load, advice, signal) {
    let content;
    let problem = null;
    try {
      content = await load(signal);
    } catch (error) {
      if (signal.aborted) return false;
      if (!(error instanceof Problem)) throw error;
      problem = error;
      content = [problemBox(problem, advice(problem), this._again)];
      announce(`${problem.title}: ${problem.detail}`);
    }
    if (signal.aborted) return false;
    this.element.replaceChildren(...content);
    this.element.removeAttribute("aria-busy");
    return problem === null;
  }
}

/**
 * What was asked, once another panel shows its content; if it does not, null: then it says what is wrong.
 * @template T
 * @param {Promise<boolean>} shown Whether the other shows its content. @param {Promise<T>} asked
 * @returns {Promise<T | null>}
 */
export async function behind(shown, asked) {
  asked.catch(() => {}); // a problem of both is told once
  return (await shown) ? asked : null;
}

/** @param {Problem} problem @param {Node[]} advice @param {() => void} again */
function problemBox(problem, advice, again) {
  return el(
    "div",
    { class: "problem" },
    el("p", { class: "title" }, problem.title),
    el("p", {}, problem.detail),
    advice,
    problem.status !== 422 && el("button", { type: "button", click: again }, "Try again"),
  );
}

/**
 * A section with a heading, and what it shows as files.
 * @param {number} level @param {string} title
 * @typedef {{route: string, parameters: import("./api.js").Parameters, rows: object[], graph?: boolean}} Call
 *   The call that the content comes from, and its rows; whether it answers as GraphML, too.
 * @typedef {{file: string, picture?: () => SVGElement, answer?: object} & Partial<Call>} Source
 *   The answer, where the call has its question in the body and so no link leads to it.
 * @param {Source | null} source
 * @param {...import("./dom.js").Child} children
 */
export function section(level, title, source, ...children) {
  const heading = el(`h${level}`, { tabindex: "-1" }, title);
  return el(
    "section",
    { class: "card" },
    el("div", { class: "head" }, heading, source && downloads(title, source)),
    children,
  );
}

function downloads(title, { route, parameters, answer, rows, graph, picture, file }) {
  const path = route && address(route, parameters);
  const keyed = async (event) => {
    if (!hasKey()) return;
    event.preventDefault(); // the browser would ask without the key
    saveJson(await get(path));
  };
  const saveJson = (content) => save(`${file}.json`, "application/json", JSON.stringify(content, null, 1));
  const button = (name, write) =>
    el("button", { type: "button", click: () => told(write), "aria-label": `${name} of ${title}` }, name);
  return el(
    "span",
    { class: "downloads" },
    route && el("a", { href: path, click: keyed, "aria-label": `JSON of ${title}` }, "JSON"),
    answer && button("JSON", () => saveJson(answer)),
    rows && button("CSV", () => save(`${file}.csv`, "text/csv", csv(rows))),
    graph && button("GraphML", async () => save(`${file}.graphml`, GRAPHML, await getFile(path, GRAPHML))),
    picture && [
      button("SVG", () => save(`${file}.svg`, "image/svg+xml", styled(picture(), standalone))),
      button("PNG", async () => save(`${file}.png`, "image/png", await styled(picture(), png))),
    ],
  );
}

/** Write a file; if the service refuses, say so. */
async function told(write) {
  try {
    await write();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    announce(`${error.title}: ${error.detail}`);
  }
}

/** What becomes of a picture while it is part of the page, and so has its styles. */
function styled(picture, use) {
  if (picture.isConnected) return use(picture);
  const place = el("div", { hidden: true }, picture);
  document.body.append(place);
  const result = use(picture);
  place.remove();
  return result;
}

/** Hand a file to the reader. @param {string} name @param {string} type @param {BlobPart} content */
export function save(name, type, content) {
  const href = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href, download: name }).click();
  URL.revokeObjectURL(href);
}

/**
 * A picture that is drawn once its width is known, and again when that changes much.
 * @param {(width: number) => Element} draw
 */
export function drawn(draw) {
  const box = el("div", { class: "drawn" });
  let width = 0;
  new ResizeObserver(() => {
    if (!box.clientWidth || Math.abs(box.clientWidth - width) < 24) return;
    width = box.clientWidth;
    requestAnimationFrame(() => box.replaceChildren(draw(width))); // what is around it is painted first
  }).observe(box);
  return box;
}
