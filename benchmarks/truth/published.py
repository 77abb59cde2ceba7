"""Published explanations and ours, of the same predictions, deleted from the same training triples.

    python -m benchmarks.truth.published --problems WN18RR-ComplEx     # some minutes on one core
    python -m benchmarks.truth.published                               # hours
    python -m benchmarks.truth.published --predictions FILE --problems WN18RR-ComplEx

Kelpie's authors (Rossi et al., 2022) released the predictions that they explained, and the facts that four methods named for
each: Kelpie, up to four and one, Data Poisoning and CRIAGE, one each. Theirs are the facts of another model of the same
kind. Of these predictions those are kept that our model ranks first, too. What each method names for all of them is
deleted together, and models of several seeds are trained without it; *controls* are models of these seeds that were
trained on everything, which the publications do not have.

FILE has a prediction a line, and the facts of one method behind it, as these files do: ``head;relation;tail`` and three
fields for each of up to four facts; it is shown as *file*. The released files are looked for in ``data/kelpie`` of
KGTRACE_SHARED. What was trained is kept in ``.bench/truth``. Writes ``benchmarks/results/published-PROBLEM-cpu.json`` and
the table in ``docs/truth/deletion.md``.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fb15k237 import SHARED
from benchmarks.truth.command import cell, run
from benchmarks.truth.deletion import effect, measures, without
from benchmarks.truth.graphs import Graph
from benchmarks.truth.retraining import retrain
from benchmarks.truth.scores import indexed
from benchmarks.truth.whole import PROBLEMS, Explained, Whole
from kgtrace_indexer import BuildConfig
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_store.errors import BadRequest

FOLDER = SHARED / "data" / "kelpie"
NAMED = {"kelpie": "Kelpie, up to 4", "k1": "Kelpie, 1", "dp": "Data Poisoning, 1", "criage": "CRIAGE, 1"}
"""Methods by how their files begin."""
ASKED = tuple(name for name, (graph, _) in PROBLEMS.items() if graph in ("WN18RR", "FB15k-237"))
MOST = 4
"""Facts of a set, at most, as in the publications."""

Explanations = Mapping[tuple[int, int, int], list[int]]
"""By prediction, rows of the training triples."""


def measure(name: str, graph: Graph, *, seeds: int, predictions: str | None) -> dict[str, Any]:
    """Delete what each method names, train again, and compare; `predictions` is a file of another one."""
    whole = Whole(name, graph)
    rows = {tuple(triple): row for row, triple in enumerate(graph.train.tolist())}
    files = {title: FOLDER / f"{method}_necessary_{stem(name)}.csv" for method, title in NAMED.items()}
    named = {title: dict(read(file, graph, rows)) for title, file in files.items() if file.exists()}
    if predictions is not None:
        named["file"] = dict(read(Path(predictions), graph, rows))
    common = np.array(sorted(set.intersection(*map(set, named.values()))))
    explained = Explained(whole, common[whole.outcome(common)[2] == 1])
    named |= ours(explained)
    deleted = {title: np.unique([f for p in explained.test for f in each[tuple(p)]]) for title, each in named.items()}
    jobs = [np.empty(0, np.int64), *(facts.astype(np.int64) for facts in deleted.values())]
    found = np.stack(retrain([job for facts in jobs for job in without(explained, facts, seeds)]))
    control, *happened = found.reshape(len(jobs), seeds, *found.shape[1:])
    return {
        "predictions": len(explained.test), "published": len(common), "mrr": whole.mrr(),
        "control": measures(control),
        "rows": {
            title: {**effect(outcomes, control), "deleted": len(facts), "lost": 1 - measures(outcomes)["hits@1"]}
            for (title, facts), outcomes in zip(deleted.items(), happened, strict=True)
        },
    }  # fmt: skip


def stem(name: str) -> str:
    """Return how the released files name a problem's model and graph."""
    graph, recipe = PROBLEMS[name]
    return f"{recipe.model}_{graph.replace('-', '')}".lower()


def read(
    file: Path, graph: Graph, rows: Mapping[tuple[int, ...], int]
) -> Iterator[tuple[tuple[int, int, int], list[int]]]:
    """Yield predictions and the rows of their facts; predictions of entities that training lacks are passed over."""
    entities, relations = ({label: i for i, label in enumerate(labels)} for labels in (
        graph.vocabulary.entities, graph.vocabulary.relations,
    ))  # fmt: skip

    def ids(head: str, relation: str, tail: str) -> tuple[int, int, int]:
        return entities[head], relations[relation], entities[tail]

    with file.open(newline="") as lines:
        for fields in csv.reader(lines, delimiter=";"):
            triples = [fields[at : at + 3] for at in range(0, min(len(fields), 3 * (MOST + 1)), 3)]
            if any(label not in entities for label in (triples[0][0], triples[0][2])):
                continue
            yield ids(*triples[0]), [rows[ids(*fact)] for fact in triples[1:] if all(fact)]


def ours(explained: Explained) -> dict[str, Explanations]:
    """Return what kgtrace names: sets, and training triples of large influence."""
    sets: dict[tuple[int, int, int], list[int]] = {}
    with indexed(explained.whole.model, explained.graph, BuildConfig(device="cpu")) as attributor:
        explainer = SetExplainer(attributor)
        influences = {
            "logit": attributor.query(explained.test, top_k=MOST).attributions,
            "probability": attributor.query(explained.test, top_k=MOST, outcome="probability").attributions,
        }
        for prediction in explained.test:
            try:
                facts = explainer.necessary(prediction, max_facts=MOST, candidates="head").what_if.train_index
            except BadRequest:  # no fact of the head was indexed
                facts = np.empty(0, np.int64)
            sets[tuple(prediction)] = facts.tolist()
    found: dict[str, Explanations] = {f"kgtrace explain, up to {MOST}": sets}
    for explained_by, attributions in influences.items():
        for count in (1, MOST):
            found[f"kgtrace, {explained_by}, {count}"] = {
                tuple(p): one.train_index[:count].tolist() for p, one in zip(explained.test, attributions, strict=True)
            }
    return found


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for each problem."""
    return "\n\n".join(_table(name, each) for name, each in found.items())


def _table(name: str, found: Mapping[str, Any]) -> str:
    control = found["control"]
    lines = [
        f"**{name}**: {found['predictions']} of {found['published']} published predictions, {found['seeds']} seeds. "
        f"Controls: MRR {control['mrr']:.3f}, Hits@1 {control['hits@1']:.2f}.",
        "",
        "| | facts deleted | MRR, against controls | Hits@1, against controls | share that lost rank one |",
        "|---|---|---|---|---|",
        f"| nothing | 0 |  |  | {1 - control['hits@1']:.2f} |",
    ]
    for title, row in found["rows"].items():
        cells = (cell(row["mrr"], "+"), cell(row["hits@1"], "+"), f"{row['lost']:.2f}")
        lines.append(f"| {title} | {row['deleted']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = "truth/deletion.md"
    run(__doc__, "published", measure, shown, page=page, problems=ASKED, files=("predictions",), seeds=3)
