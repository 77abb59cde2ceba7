// A text field that completes entities or relations: the combobox with a list box of the ARIA Authoring Practices.

import { Problem, address, get } from "./api.js";
import { announce, el, nameOf, named } from "./dom.js";

const SHOWN = 8;
const PAUSE = 120; // milliseconds between the last key and the call

let fields = 0;

export class Combobox {
  /**
   * @param {string} label @param {"entities" | "relations"} route
   * @param {{required?: boolean, hint?: string}} [options]
   */
  constructor(label, route, { required = false, hint = "" } = {}) {
    const id = `field-${++fields}`;
    this._route = route;
    /** @type {import("./api.js").Named | null} */
    this._chosen = null;
    this._options = [];
    this._active = -1;
    this._timer = 0;
    this._request = new AbortController();
    this._input = el("input", {
      id,
      role: "combobox",
      required,
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      placeholder: hint,
      "aria-autocomplete": "list",
      "aria-expanded": "false",
      "aria-controls": `${id}-list`,
      "aria-describedby": `${id}-label`,
      input: () => this._later(),
      keydown: (event) => this._keydown(event),
      blur: () => this._close(),
    });
    this._list = el("ul", { id: `${id}-list`, role: "listbox", "aria-label": label, hidden: true });
    this._label = el("span", { id: `${id}-label`, class: "label" });
    this.element = el("div", { class: "field" }, el("label", { for: id }, label), this._input, this._list, this._label);
  }

  /** @param {import("./api.js").Named | null} thing What the field holds. */
  set(thing) {
    this._choose(thing);
  }

  /** Make sure that the field holds something of this label, by its name where that is known. @param {string} label */
  hold(label) {
    if (this._chosen?.label !== label || this._input.value !== nameOf(this._chosen))
      this.set(label ? { id: -1, label, name: null } : null);
  }

  /** The label of the chosen thing, or the text where no thing has such a label or name. */
  async resolve() {
    const text = this._input.value.trim();
    if (!text) return "";
    if (this._chosen && this._input.value === nameOf(this._chosen)) return this._chosen.label;
    let things;
    try {
      things = await this._find(text);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      return text; // the request with this text will meet the same problem, and say so
    }
    const same = (other) => other?.toLowerCase() === text.toLowerCase();
    const thing =
      things.find(({ label }) => label === text) ?? things.find(({ label, name }) => same(label) || same(name));
    return thing ? thing.label : text;
  }

  async _find(q, signal) {
    return (await get(address(this._route, { q, limit: SHOWN }), signal))[this._route];
  }

  _later() {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._open(), PAUSE);
  }

  async _open() {
    const text = this._input.value;
    this._request.abort();
    this._request = new AbortController();
    let things = [];
    let nothing = "Nothing matches";
    try {
      things = await this._find(text.trim(), this._request.signal);
    } catch (error) {
      if (!(error instanceof Problem)) return; // another call took its place
      nothing = error.detail;
    }
    if (document.activeElement !== this._input || text !== this._input.value) return;
    this._options = things;
    this._list.replaceChildren(...things.map((thing, i) => this._option(thing, i)));
    const empty = { class: "none", role: "option", "aria-disabled": "true" };
    if (!things.length) this._list.append(el("li", empty, nothing));
    this._list.hidden = false;
    this._input.setAttribute("aria-expanded", "true");
    this._activate(-1);
    announce(things.length ? `${things.length} suggestion${things.length === 1 ? "" : "s"}` : nothing);
  }

  _option(thing, i) {
    const keep = (event) => event.preventDefault(); // the focus, which would close the list before the click
    const choose = () => {
      this._choose(thing);
      this._close();
    };
    return el(
      "li",
      { id: `${this._list.id}-${i}`, role: "option", "aria-selected": "false", mousedown: keep, click: choose },
      named(thing),
    );
  }

  _choose(thing) {
    clearTimeout(this._timer);
    this._chosen = thing;
    this._input.value = thing ? nameOf(thing) : "";
    this._label.textContent = thing?.name ? thing.label : "";
  }

  _activate(i) {
    this._active = i;
    [...this._list.children].forEach((option, j) => option.setAttribute("aria-selected", String(i === j)));
    if (i < 0) this._input.removeAttribute("aria-activedescendant");
    else {
      this._input.setAttribute("aria-activedescendant", `${this._list.id}-${i}`);
      this._list.children[i].scrollIntoView({ block: "nearest" });
    }
  }

  _close() {
    clearTimeout(this._timer);
    this._request.abort();
    this._list.hidden = true;
    this._input.setAttribute("aria-expanded", "false");
    this._activate(-1);
  }

  _keydown(event) {
    const open = !this._list.hidden;
    const many = this._options.length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) this._open();
      else if (many && event.key === "ArrowDown") this._activate((this._active + 1) % many);
      else if (many) this._activate((Math.max(this._active, 0) + many - 1) % many);
    } else if (event.key === "Enter" && open && this._active >= 0) {
      event.preventDefault();
      this._choose(this._options[this._active]);
      this._close();
    } else if (event.key === "Escape" && open) {
      event.preventDefault();
      this._close();
    }
  }
}
