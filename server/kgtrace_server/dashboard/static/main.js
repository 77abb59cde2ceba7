// The page: which view an address means, moving between views, the key, the theme, and news of another generation.

import { address, events, forgetGeneration, get, Problem, setKey } from "./api.js";
import { el } from "./dom.js";
import { ago, count } from "./format.js";
import { local } from "./storage.js";

/**
 * The page as views use it.
 * @typedef {object} Page
 * @property {number} epoch Grows when every panel must ask the service anew.
 * @property {(question: Record<string, string>) => void} go Show another view.
 * @property {(question: Record<string, string>, ...children: import("./dom.js").Child[]) => HTMLElement} link
 *   To another view.
 * @property {(changes: Record<string, string>, ...children: import("./dom.js").Child[]) => HTMLElement} change
 *   To this view with other options: what else is chosen stays, also what is chosen later.
 * @property {(changes: Record<string, string>) => void} keep Change the address of the view that is shown.
 * @property {() => void} refresh Ask everything anew.
 */

/** By name in the address; each is loaded when it is first shown, or a little later. */
const VIEWS = {
  explain: async () => (await import("./views/explain.js")).explainView,
  several: async () => (await import("./views/several.js")).severalView,
  entity: async () => (await import("./views/entity.js")).entityView,
  "self-influence": async () => (await import("./views/ranking.js")).rankingView,
  index: async () => (await import("./views/index.js")).indexView,
  changes: async () => (await import("./views/changes.js")).changesView,
};
const LATER = 3_000; // milliseconds after which views that were not asked for are loaded
const LOOK = 60_000; // milliseconds between looks at which generation answers

const EMBEDDED = document.documentElement.classList.contains("embedded");

const main = document.getElementById("main");
const notice = document.getElementById("notice");
const served = document.getElementById("served");

/** @type {Page} */
const page = { epoch: 0, go, link, change, keep, refresh };
const views = {};
let drawnSearch = null;

/** @param {Record<string, string>} question */
function search(question, embedded = EMBEDDED) {
  const kept = { ...question, embed: embedded ? "1" : "" };
  return `?${new URLSearchParams(Object.entries(kept).filter(([, value]) => value))}`;
}

function link(question, ...children) {
  return el("a", { href: search(question) }, children);
}

function go(question) {
  const target = search(question);
  if (target !== location.search) history.pushState(null, "", target);
  draw(true);
}

function current() {
  return Object.fromEntries(new URLSearchParams(location.search));
}

function change(changes, ...children) {
  const anchor = link({ ...current(), ...changes }, children);
  anchor.dataset.changes = JSON.stringify(changes);
  return anchor;
}

function keep(changes) {
  history.replaceState(null, "", search({ ...current(), ...changes }));
  drawnSearch = location.search;
  follow();
}

/** Let links that change the view start from what is shown now. */
function follow() {
  for (const anchor of main.querySelectorAll("a[data-changes]"))
    anchor.href = search({ ...current(), ...JSON.parse(anchor.dataset.changes) });
}

function refresh() {
  page.epoch += 1;
  forgetGeneration();
  notice.replaceChildren();
  draw(false);
  about();
}

/** Draw the view that the address names. @param {boolean} moved Whether the reader came from another view. */
async function draw(moved) {
  const asked = location.search;
  drawnSearch = asked;
  const question = current();
  const name = Object.hasOwn(VIEWS, question.view ?? "") ? question.view : "explain";
  for (const tab of document.querySelectorAll("nav a")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (!views[name]) {
    const make = await VIEWS[name]().catch(() => null);
    if (asked !== location.search) return; // the reader has gone on
    if (!make) {
      const reload = el("button", { type: "button", click: () => location.reload() }, "Reload the page");
      main.replaceChildren(el("p", { class: "empty" }, "The service sends no pages at the moment. ", reload));
      return;
    }
    views[name] ??= make(page);
  }
  const view = views[name];
  const changed = !main.contains(view.element);
  if (changed) main.replaceChildren(view.element);
  const { title, focus } = view.update(question);
  follow();
  whole.href = search(question, false);
  document.title = title ? `${title} – kgtrace` : "kgtrace";
  if (!moved || !focus) return;
  if (changed) scrollTo(0, 0);
  await focus.done;
  if (drawnSearch === location.search) (focus.element.querySelector("h2, h3") ?? main).focus();
}

/** Show the served index in the header. */
async function about() {
  try {
    const { model, counts, age_seconds, generation } = await get(address("index"));
    served.replaceChildren(`${model ?? "a model"}, ${count(counts.triples)} triples, built ${ago(age_seconds)}`);
    served.title = `generation ${generation}`;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    served.replaceChildren(error.status === 401 ? "a key is needed" : error.title.toLowerCase());
  } finally {
    served.removeAttribute("aria-busy");
  }
}

events.addEventListener("generation", ({ detail: { shown, generation } }) => {
  if (notice.dataset.generation === generation && notice.hasChildNodes()) return;
  notice.dataset.generation = generation;
  notice.replaceChildren(
    el(
      "p",
      {},
      "Another generation of the index answers now: ",
      el("code", {}, generation),
      ". This view shows ",
      el("code", {}, shown),
      ".",
    ),
    el("button", { type: "button", click: refresh }, "Reload the view"),
  );
});

/** In a frame: the answer alone, and a link to the page that holds it. */
const whole = el("a", { target: "_blank", rel: "noopener" }, "Open in kgtrace");
if (EMBEDDED) document.querySelector("footer").replaceChildren(whole);

const keyField = el("input", { id: "key", type: "password", required: true, autocomplete: "off", spellcheck: "false" });
const keyDialog = el(
  "dialog",
  { "aria-labelledby": "key-title" },
  el(
    "form",
    {
      submit(event) {
        event.preventDefault();
        setKey(keyField.value);
        keyField.value = "";
        keyDialog.close();
        refresh();
      },
    },
    el("h2", { id: "key-title" }, "This service asks for a key"),
    el(
      "p",
      {},
      "Whoever runs it has the read key (",
      el("code", {}, "KGTRACE_READ_KEY"),
      "). It is kept in this tab until you close it, and is never part of an address.",
    ),
    el("label", { for: "key" }, "Key"),
    keyField,
    el(
      "div",
      { class: "buttons" },
      el("button", {}, "Use this key"),
      el("button", { type: "button", class: "quiet", click: () => keyDialog.close() }, "Not now"),
    ),
  ),
);
document.body.append(keyDialog);
events.addEventListener("unauthorized", () => {
  if (!keyDialog.open) keyDialog.showModal();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
function currentTheme() {
  return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
}
function labelTheme() {
  themeButton.textContent = currentTheme() === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Use the ${currentTheme() === "dark" ? "light" : "dark"} theme`);
}
themeButton.addEventListener("click", () => {
  const other = currentTheme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = other;
  local.setItem("kgtrace-theme", other);
  labelTheme();
});
dark.addEventListener("change", labelTheme);
labelTheme();

addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href^='?']");
  if (
    !anchor ||
    event.defaultPrevented ||
    event.button ||
    event.metaKey ||
    event.ctrlKey ||
    event.shiftKey ||
    event.altKey
  )
    return;
  event.preventDefault();
  if (anchor.search !== location.search) history.pushState(null, "", anchor.getAttribute("href"));
  draw(true);
});
addEventListener("popstate", () => {
  if (location.search !== drawnSearch) draw(true);
});
setInterval(() => document.hidden || about(), LOOK);
addEventListener("visibilitychange", () => document.hidden || about());

draw(false);
about();
setTimeout(() => Promise.allSettled(Object.values(VIEWS).map((load) => load())), LATER); // what fails is asked for again
