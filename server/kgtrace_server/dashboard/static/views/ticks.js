// Training triples that the reader has ticked, to leave them out: boxes beside them, and a bar that counts them.

import { announce, el, tripleString } from "../dom.js";
import { count } from "../format.js";

const FORM = "ticks";

export class Ticks {
  /**
   * @param {import("../main.js").Page} page
   * @param {{changed: () => void, ask: () => void, cleared: () => void}} told When others are ticked, when the reader
   *   asks what the model says without them, and when none is ticked any more at the reader's wish.
   */
  constructor(page, told) {
    this._page = page;
    this._told = told;
    this._rows = new Set();
    this._count = el("span");
    /** A form that the boxes belong to, wherever they are: Enter in one of them asks. */
    this.bar = el(
      "form",
      { id: FORM, class: "ticks", hidden: true, submit: (event) => this._submit(event) },
      this._count,
      el("button", {}, "Without the ticked"),
      el("button", { type: "button", class: "quiet", click: () => this._clear() }, "Untick all"),
    );
  }

  /** The ticked ones as an address holds them: each `train_index`, in one order. */
  get text() {
    return [...this._rows].sort().join(",");
  }

  /** The same as the service reads them; what is no number is left to it to refuse. */
  get members() {
    return [...this._rows].sort().map((row) => (/^\d+$/.test(row) && Number.isSafeInteger(+row) ? +row : row));
  }

  /** Tick what an address holds. @param {string | undefined} text */
  hold(text = "") {
    this._rows = new Set(text.split(",").filter(Boolean));
    this._show();
  }

  /** A box to tick a training triple. @param {number} train_index @param {import("../api.js").Triple} triple */
  box(train_index, triple) {
    const value = String(train_index);
    const name = `Leave out ${tripleString(triple)}`;
    return el("input", {
      type: "checkbox",
      class: "tick",
      form: FORM,
      value,
      checked: this._rows.has(value),
      title: name,
      "aria-label": name,
      change: (event) => this._tick(value, event.target.checked),
    });
  }

  _tick(value, ticked) {
    if (ticked) this._rows.add(value);
    else this._rows.delete(value);
    this._keep();
    announce(this._count.textContent);
  }

  _clear() {
    this._rows.clear();
    this._keep();
    this._told.cleared();
  }

  _submit(event) {
    event.preventDefault();
    if (this._rows.size) this._told.ask();
  }

  _keep() {
    this._page.keep({ without: this.text });
    this._show();
    this._told.changed();
  }

  /** Let the bar and all boxes say what is ticked: a training triple may have several. */
  _show() {
    this.bar.hidden = this._rows.size === 0;
    this._count.textContent = `${count(this._rows.size)} ticked`;
    for (const box of this.bar.elements) if (box.type === "checkbox") box.checked = this._rows.has(box.value);
  }
}
