"""Published sufficient explanations and ours, told of the same entities.

    python -m benchmarks.truth.convincing --problems WN18RR-ComplEx     # minutes on one core
    python -m benchmarks.truth.convincing --problems WN18RR-ComplEx --predictions FILE

Kelpie's authors (Rossi et al., 2022) released, beside necessary facts, what two methods tell ten other entities each to give
them a prediction. Of their predictions those are kept that our model ranks first, too, and of the entities those with which
it does not. What each method tells for all of them is added to the training triples together, and models of several seeds
are trained with it, beside *controls* that were trained without, and random facts of the same heads.

FILE has facts in the form of these files: ``head;relation;tail``, the same with another entity in the place of the head, and
three fields for each of up to four facts; it is shown as *file*. What was trained is kept in ``.bench/truth``. Writes
``benchmarks/results/convincing-PROBLEM-cpu.json`` and the table in ``docs/truth/deletion.md``.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.truth.command import run
from benchmarks.truth.graphs import Graph
from benchmarks.truth.paper import OURS, SIZES, Explanation, Row, at_random, result, shown, tried
from benchmarks.truth.published import ASKED, FOLDER, MOST, stem
from benchmarks.truth.scores import indexed
from benchmarks.truth.whole import Explained, Whole
from kgtrace_indexer import BuildConfig
from kgtrace_indexer.explaining.explainer import SetExplainer

NAMED = {"kelpie": "Kelpie", "dp": "Data Poisoning"}
"""Methods by how their files begin."""

Pair = tuple[tuple[int, int, int], int]
"""A prediction and another entity, which is to receive it."""


def measure(name: str, graph: Graph, *, seeds: int, predictions: str | None) -> dict[str, Any]:
    """Tell entities what each method says, train again, and compare; `predictions` is a file of another one."""
    whole = Whole(name, graph)
    files = {title: FOLDER / f"{method}_sufficient_{stem(name)}.csv.gz" for method, title in NAMED.items()}
    if predictions is not None:
        files["file"] = Path(predictions)
    told = {title: read(file, graph) for title, file in files.items() if file.exists()}
    pairs = sorted(set.intersection(*map(set, told.values())))
    ranks = whole.outcome(np.array([triple for triple, _ in pairs]))[2]
    others = whole.outcome(np.array([(entity, *triple[1:]) for triple, entity in pairs]))[2]
    kept = [pair for pair, own, other in zip(pairs, ranks, others, strict=True) if own == 1 < other]
    explained = Explained(whole, np.array(sorted({triple for triple, _ in kept})))
    rows = [Row("sufficient", title, MOST, None, [each[pair] for pair in kept]) for title, each in told.items()]
    with indexed(whole.model, graph, BuildConfig(device="cpu")) as attributor:
        ours = [_ours(explained, SetExplainer(attributor), k, kept) for k in SIZES]
    rows += [each for row in ours for each in (row, at_random(explained, row))]
    return {
        "predictions": len(explained.test), "published": len({triple for triple, _ in pairs}), "mrr": whole.mrr(),
        "rows": [result(*each) for each in tried(explained, rows, seeds)],
    }  # fmt: skip


def read(file: Path, graph: Graph) -> dict[Pair, Explanation]:
    """Return what is told of entities; that of entities that training lacks is passed over."""
    entities, relations = ({label: i for i, label in enumerate(labels)} for labels in (
        graph.vocabulary.entities, graph.vocabulary.relations,
    ))  # fmt: skip

    found = {}
    for fields in pd.read_csv(file, sep=";", header=None, dtype=str, keep_default_na=False).to_numpy():
        named = [triple for triple in fields[: 3 * (MOST + 2)].reshape(-1, 3) if all(triple)]
        if all(head in entities and tail in entities for head, _, tail in named):
            triple, (head, _, _), *facts = ((entities[h], relations[r], entities[t]) for h, r, t in named)
            found[triple, head] = Explanation(triple, head, np.array(facts, np.int64).reshape(-1, 3))
    return found


def _ours(explained: Explained, explainer: SetExplainer, k: int, pairs: Sequence[Pair]) -> Row:
    """Return what kgtrace tells the other entities of each prediction."""
    start, told = perf_counter(), dict[Pair, Explanation]()
    for triple, group in groupby(pairs, itemgetter(0)):
        entities = [entity for _, entity in group]
        chosen = explainer.sufficient(np.array(triple), max_facts=k, entities=entities)
        facts = explained.graph.train[chosen.train_index]
        told |= {(triple, entity): Explanation.of(triple, entity, facts) for entity in entities}
    return Row("sufficient", OURS, k, (perf_counter() - start) / len(explained.test), [told[pair] for pair in pairs])


if __name__ == "__main__":
    page = "truth/deletion.md"
    run(__doc__, "convincing", measure, shown, page=page, problems=ASKED, files=("predictions",), seeds=3)
