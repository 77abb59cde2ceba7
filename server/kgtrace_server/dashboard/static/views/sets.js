// Sets of training triples: the smallest that the prediction needs, one that suffices for others, and what-if.

import { el } from "../dom.js";
import { Panel } from "../panel.js";
import { necessary, sufficient } from "./explaining.js";
import { Ticks } from "./ticks.js";
import { whatIf } from "./without.js";

export class Sets {
  /** @param {import("../main.js").Page} page */
  constructor(page) {
    this._page = page;
    this._question = {};
    this._prediction = null;
    this._asked = 0; // times that the reader asked what the ticked change
    this._needed = new Panel("Looking for the smallest set of facts that it needs…", page.refresh);
    this._convincing = new Panel("Telling other entities its facts…", page.refresh);
    this._tried = new Panel("Predicting without the ticked facts…", page.refresh);
    this._stale = el("p", { class: "note", hidden: true }, "Other facts are ticked now than are listed here.");
    this.ticks = new Ticks(page, {
      changed: () => (this._stale.hidden = this.ticks.text === this._answered),
      ask: () => this._try(),
      cleared: () => this._leave(),
    });
    this.element = el(
      "div",
      { class: "stack" },
      this._panels.map(({ element }) => element),
    );
  }

  get _panels() {
    return [this._needed, this._convincing, this._tried];
  }

  /**
   * @param {Record<string, string>} question
   * @param {() => Promise<boolean>} explained Whether the explanation is shown, once that is known.
   */
  update(question, explained) {
    this._question = question;
    this._explained = explained;
    this.ticks.hold(question.without);
    const { head, relation, tail } = question;
    const prediction = JSON.stringify([this._page.epoch, head, relation, tail]);
    if (prediction !== this._prediction) for (const { element } of this._panels) element.replaceChildren();
    this._prediction = prediction;
    this._showSets();
    this._showTried();
  }

  _showSets() {
    const question = this._question;
    const ask = (choice) => this._ask(choice);
    this._needed.show(JSON.stringify([this._prediction, question.necessary]), async (signal) =>
      question.tail ? necessary(this._page, this.ticks, question, ask, signal, this._explained()) : [],
    );
    this._convincing.element.hidden = !question.sufficient;
    this._convincing.show(JSON.stringify([this._prediction, question.sufficient]), async (signal) =>
      question.sufficient && (await this._explained()) ? sufficient(this._page, this.ticks, question, signal) : [],
    );
  }

  _showTried() {
    const { ticks } = this;
    this._tried.element.hidden = !ticks.text;
    this._tried.show(JSON.stringify([this._prediction, ticks.text, this._asked]), async (signal) => {
      this._answered = ticks.text;
      this._stale.hidden = true;
      const asked = ticks.members;
      if (!asked.length || !(await this._explained())) return [];
      return whatIf(this._page, ticks, this._question, asked, this._stale, signal);
    });
  }

  /** Ask for a set. @param {{necessary?: string, sufficient?: string}} choice */
  async _ask(choice) {
    this._question = { ...this._question, ...choice };
    this._page.keep(choice);
    this._showSets();
    await focusOn(choice.sufficient ? this._convincing : this._needed);
  }

  async _try() {
    this._asked += 1;
    this._showTried();
    await focusOn(this._tried);
  }

  _leave() {
    this._showTried();
    this.element.closest(".panel").querySelector("h2").focus(); // the bar, and the button in it, are gone
  }
}

async function focusOn(panel) {
  if (await panel.done) panel.element.querySelector("h3").focus();
}
