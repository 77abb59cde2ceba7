"""An author's table: necessary and sufficient explanations of one fact and of up to four, tried by training again.

    python -m benchmarks.truth.paper --problems UMLS-ComplEx               # minutes on one core
    python -m benchmarks.truth.paper --problems WN18RR-ComplEx --output FOLDER
    python -m benchmarks.truth.paper --pipeline FILE                       # any data and model of PyKEEN's
    python -m benchmarks.truth.paper --pipeline FILE --model FOLDER

As Kelpie (Rossi et al., 2022, https://doi.org/10.1145/3514221.3517887) does it, for tails that a model ranks first:
*necessary* facts of all predictions are taken away together; *sufficient* facts of a prediction's head are told of other
entities, with which the model does not rank the tail first, and those of all predictions are added together. What
publications lack stands beside it: *controls*, models of the same seeds that were trained on all facts and no others, and
as many random facts of the same heads.

Writes ``benchmarks/results/paper-PROBLEM-cpu.json``, the table in ``docs/truth/deletion.md``, and into a folder for each
problem ``table.csv``, ``table.md``, ``table.tex``, and each explanation with what training again did to it in the form of Kelpie's
files: ``MODE-METHOD-K.csv``. What was trained is kept in ``.bench/truth``.

FILE is a configuration as `pykeen.pipeline.pipeline_from_path` takes it, JSON or YAML: its data are read, and PyKEEN's
pipeline trains every model by it, for seeds of our own. With ``--model`` one that it trained earlier is explained, a
folder of ``save_to_directory`` or its ``trained_model.pkl``, in the place of a new one. All results, ``results.json`` beside
the other files, go into the folder alone, which is named after FILE.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.fb15k237 import machine
from benchmarks.peers.environments import ROOT
from benchmarks.truth.command import arguments, cell, measured
from benchmarks.truth.deletion import effect, measures, ranked_first, without
from benchmarks.truth.graphs import Graph
from benchmarks.truth.pipeline import Pipeline
from benchmarks.truth.published import MOST
from benchmarks.truth.retraining import Job, retrain
from benchmarks.truth.scores import indexed
from benchmarks.truth.whole import Explained, Whole
from kgtrace_indexer import BuildConfig
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_store.errors import BadRequest, KgtraceError

OUTPUT = ROOT / ".bench" / "paper"
"""Where an author's files go, unless they are asked for elsewhere."""
SIZES = (1, MOST)
"""Most facts of an explanation."""
NUMBERS = {"seeds": 3, "predictions": 100, "entities": 10}
"""Options, and what they are by default."""
OURS, RANDOM = "kgtrace", "random facts of the head"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Facts of a prediction's head, taken away from it or told of another entity."""

    triple: tuple[int, int, int]
    """The prediction that is explained."""
    head: int
    """Its head, or the other entity."""
    facts: np.ndarray
    """(m, 3): as they are taken away, or added."""

    @property
    def prediction(self) -> tuple[int, int, int]:
        """What is looked at after training again."""
        return (self.head, *self.triple[1:])

    @classmethod
    def of(cls, triple: Sequence[int], head: int, facts: np.ndarray) -> "Explanation":
        """Tell facts (m, 3) of the triple's head of a head, which may be the same."""
        own, relation, tail = map(int, triple)
        told = facts.copy()
        told[:, [0, 2]] = np.where(facts[:, [0, 2]] == own, head, facts[:, [0, 2]])
        return cls((own, relation, tail), int(head), told)


@dataclass(frozen=True, slots=True)
class Row:
    """What a method named."""

    mode: str
    """``necessary`` or ``sufficient``."""
    method: str
    k: int
    """Most facts of an explanation."""
    seconds: float | None
    """Of one prediction."""
    explanations: list[Explanation]

    @property
    def facts(self) -> np.ndarray:
        """Return the distinct facts of all explanations, (m, 3)."""
        return np.unique(np.concatenate([each.facts for each in self.explanations]), axis=0)

    def jobs(self, explained: Explained, seeds: int) -> list[Job]:
        """Return training runs without the facts, or with them."""
        rows = {tuple(triple): row for row, triple in enumerate(explained.graph.train.tolist())}
        there = np.array([rows.get(tuple(fact), -1) for fact in self.facts.tolist()], np.int64)
        if self.mode == "necessary":
            return without(self.looked_at(explained), there, seeds)
        return without(self.looked_at(explained), there[:0], seeds, added=self.facts[there < 0])

    def looked_at(self, explained: Explained) -> Explained:
        """Return the predictions that are looked at."""
        return Explained(explained.whole, np.array([each.prediction for each in self.explanations]))


def main() -> None:
    """Make the tables of problems, or of a pipeline."""
    parser = arguments(__doc__, ("output",), NUMBERS)
    parser.add_argument("--pipeline", type=Path, metavar="FILE", help="a configuration of PyKEEN's pipeline")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model that the pipeline trained earlier")
    args = parser.parse_args()
    asked = {option: getattr(args, option) for option in ("output", *NUMBERS)}
    if args.pipeline is None:
        if args.model is not None:
            parser.error("--model needs --pipeline FILE, which says how models are trained again")
        problems = () if args.write_only else args.problems or ("UMLS-ComplEx",)
        measured("paper", measure, shown, asked, "truth/deletion.md", problems)
        return
    if args.problems or args.write_only:
        parser.error("--pipeline is a problem of its own: leave --problems and --write-only out")
    try:
        print(of_pipeline(args.pipeline, args.model, **asked))
    except KgtraceError as e:
        parser.error(str(e))


def of_pipeline(file: Path, model: Path | None, *, output: str | None, **numbers: int) -> str:
    """Write an author's files, with the results, for a model that a pipeline trains or has trained; return the table."""
    recipe = Pipeline.read(file)
    graph = recipe.graph()
    trained = None if model is None else recipe.trained_before(model, graph)
    whole = Whole(file.stem, graph, recipe=recipe, trained=trained)
    asked = {"pipeline": json.loads(recipe.arguments), "model": None if model is None else str(model), **numbers}
    found = {"machine": machine(), **asked, **examine(whole, output=output, **numbers)}
    (folder_of(whole, output) / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    return shown({whole.name: found})


def measure(name: str, graph: Graph, **asked: Any) -> dict[str, Any]:
    """Write an author's files for a problem, and return the results; what is asked is as `examine` takes it."""
    return examine(Whole(name, graph), **asked)


def folder_of(whole: Whole, output: str | None) -> Path:
    """Return where a model's files go."""
    return Path(output or OUTPUT) / whole.name


def examine(whole: Whole, *, output: str | None, seeds: int, predictions: int, entities: int) -> dict[str, Any]:
    """Explain, train again, compare, and write an author's files but the results, which are returned."""
    graph, explained = whole.graph, ranked_first(whole, predictions, filtered=False)  # as an index, which has no others
    with indexed(whole.model, graph, BuildConfig(device="cpu")) as attributor:
        explainer = SetExplainer(attributor)
        ours = [_necessary(explained, explainer, k) for k in SIZES]
        ours += [_sufficient(explained, explainer, k, entities) for k in SIZES]
    some = [row for row in ours if row.explanations]  # no other entity may be left to tell facts of
    rows = [each for row in some for each in (row, at_random(explained, row))]
    found = tried(explained, rows, seeds)
    folder = folder_of(whole, output)
    folder.mkdir(parents=True, exist_ok=True)
    for row, control, happened in found:
        file = folder / f"{row.mode}-{row.method.split()[0]}-{row.k}.csv"
        write(file, row, graph, control.mean(0), happened.mean(0))
    results = {
        "predictions": len(explained.test), "mrr": whole.mrr(), "rows": [result(*each) for each in found],
    }  # fmt: skip
    frame = table(results)
    frame.to_csv(folder / "table.csv", index=False)
    (folder / "table.md").write_text(frame.to_markdown(index=False) + "\n")
    (folder / "table.tex").write_text(frame.to_latex(index=False, escape=True))
    return results


Tried = tuple[Row, np.ndarray, np.ndarray]
"""What was named, and the outcomes (seeds, 3, q) of control models and of models without it, or with it."""


def tried(explained: Explained, rows: Sequence[Row], seeds: int) -> list[Tried]:
    """Train without the facts of rows, or with them, and without either."""
    controls = [without(row.looked_at(explained), np.empty(0, np.int64), seeds) for row in rows]
    runs = [row.jobs(explained, seeds) for row in rows]
    outcomes = iter(retrain([job for jobs in (*controls, *runs) for job in jobs]))
    before, after = ([np.stack([next(outcomes) for _ in jobs]) for jobs in each] for each in (controls, runs))
    return list(zip(rows, before, after, strict=True))


def _necessary(explained: Explained, explainer: SetExplainer, k: int) -> Row:
    start, found = perf_counter(), list[Explanation]()
    for triple in explained.test:
        try:
            facts = explainer.necessary(triple, max_facts=k, candidates="head").what_if.train_index
        except BadRequest:  # no fact of the head was indexed
            facts = np.empty(0, np.int64)
        found.append(Explanation.of(triple, triple[0], explained.graph.train[facts]))
    return Row("necessary", OURS, k, (perf_counter() - start) / len(explained.test), found)


def _sufficient(explained: Explained, explainer: SetExplainer, k: int, entities: int) -> Row:
    start, found = perf_counter(), list[Explanation]()
    for seed, triple in enumerate(explained.test):  # other entities each: facts of several would compete for one
        try:
            chosen = explainer.sufficient(triple, max_facts=k, entities=entities, seed=seed)
        except BadRequest:  # the model says the same of all entities
            continue
        facts = explained.graph.train[chosen.train_index]
        found += [Explanation.of(triple, entity, facts) for entity in chosen.entities]
    return Row("sufficient", OURS, k, (perf_counter() - start) / len(explained.test), found)


def at_random(explained: Explained, row: Row) -> Row:
    """Return as many random facts of the same heads, the same for all other entities."""
    train, random = explained.graph.train, np.random.default_rng(0)
    drawn: dict[tuple[int, int, int], np.ndarray] = {}
    for each in row.explanations:
        if each.triple not in drawn:
            of_head = np.flatnonzero((train[:, [0, 2]] == each.triple[0]).any(1))
            drawn[each.triple] = train[random.permutation(of_head)[: len(each.facts)]]
    found = [Explanation.of(each.triple, each.head, drawn[each.triple]) for each in row.explanations]
    return Row(row.mode, RANDOM, row.k, None, found)


def result(row: Row, control: np.ndarray, happened: np.ndarray) -> dict[str, Any]:
    """Return what happened to a row's predictions."""
    return {
        "mode": row.mode, "method": row.method, "k": row.k, "seconds": row.seconds, "facts": len(row.facts),
        "looked at": len(row.explanations), "control": measures(control), "measures": measures(happened),
        "effect": effect(happened, control),
    }  # fmt: skip


def write(file: Path, row: Row, graph: Graph, before: np.ndarray, after: np.ndarray) -> None:
    """Write each explanation as Kelpie does, with logits and ranks of outcomes (3, q) without and with it.

    ``head;relation;tail``, in sufficient mode the same with the entity that is to receive the prediction, three fields for
    each of up to four facts, logit before and after, rank before and after.
    """
    entities, relations = graph.vocabulary.entities, graph.vocabulary.relations
    with file.open("w", newline="") as out:
        lines = csv.writer(out, delimiter=";", lineterminator="\n")
        for number, each in enumerate(row.explanations):
            names = [[entities[h], relations[r], entities[t]] for h, r, t in (each.triple, *each.facts)]
            names += [[""] * 3] * (MOST - len(each.facts))
            other = [entities[each.head], *names[0][1:]] if row.mode == "sufficient" else []
            numbers = [before[0, number], after[0, number], before[2, number], after[2, number]]
            lines.writerow([*names[0], *other, *chain.from_iterable(names[1:]), *(f"{x:.4g}" for x in numbers)])


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for each problem."""
    return "\n\n".join(
        f"**{name}**: {each['predictions']} predictions, {each['seeds']} seeds, MRR {each['mrr']:.3f}.\n\n"
        f"{table(each).to_markdown(index=False)}"
        for name, each in found.items()
    )


def table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Return a line for each row."""
    return pd.DataFrame(
        {
            "mode": row["mode"],
            "method": row["method"],
            "facts, at most": row["k"],
            "all facts": row["facts"],
            "s a prediction": "" if row["seconds"] is None else f"{row['seconds']:.2f}",
            "looked at": row["looked at"],
            "MRR, controls": f"{row['control']['mrr']:.3f}",
            "MRR, change": cell(row["effect"]["mrr"], "+"),
            "Hits@1, controls": f"{row['control']['hits@1']:.2f}",
            "Hits@1, change": cell(row["effect"]["hits@1"], "+"),
        }
        for row in found["rows"]
    )


if __name__ == "__main__":
    main()
