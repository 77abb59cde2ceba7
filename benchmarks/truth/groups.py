"""Groups: influences of several training triples add up by definition. Do the effects of deleting them?

    python -m benchmarks.truth.groups --problems UMLS UMLS-ComplEx

The four training triples that a method names first for each prediction are deleted as in `deletion`: the first of all
predictions, the second of all, and so on, with a training of its own each, and all four together. If effects added up, as
influences do, then the four alone would make the effect of all together. A method's scores of everything deleted are summed
for each prediction, too, and compared with the change: Spearman's correlation over predictions. What changes is the logit, or,
where a softmax leaves the common level of logits free, the log-probability among all tails.

*One after another* is the greedy choice: the first triple is deleted for all predictions, a model is trained without them,
the second is what the method then says of that model, and so on.

What was trained is kept in ``.bench/truth``, with that of `deletion`. Writes ``benchmarks/results/groups-PROBLEM-cpu.json``
and the tables in ``docs/truth.md``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.truth.command import cell, run
from benchmarks.truth.deletion import Method, methods, ranked_first, without
from benchmarks.truth.graphs import Graph
from benchmarks.truth.retraining import OUTCOMES, retrain
from benchmarks.truth.statistics import correlation, mean, ratio
from benchmarks.truth.whole import Explained, Whole

NAMED = ("removal, forward", "preconditioned", "embeddings alike")
K = 4
"""Facts of a group."""


def measure(name: str, graph: Graph, *, seeds: int, predictions: int) -> dict[str, Any]:
    """Delete one by one, together and one after another, and compare."""
    explained = ranked_first(Whole(name, graph), predictions)
    control = np.stack(retrain(without(explained, np.empty(0, np.int64), seeds)))
    place = OUTCOMES.index("log-probability" if explained.whole.recipe.softmax else "logit")
    rows = {title: row(explained, methods()[title], control, place) for title in NAMED}
    return {
        "predictions": len(explained.test), "triples": len(graph.train), "outcome": OUTCOMES[place], "rows": rows
    }  # fmt: skip


def row(explained: Explained, method: Method, control: np.ndarray, outcome: int) -> dict[str, Any]:
    """Return how deleting a method's facts compares with controls (seeds, 3, q), in one of the `OUTCOMES`."""
    score = method(explained)
    best = np.argsort(-score, axis=0, kind="stable")[:K]
    plans = {"together": best, "one after another": one_after_another(explained, method, best[0])}
    plans |= {str(place): facts for place, facts in enumerate(best)}
    deleted = {title: np.unique(facts) for title, facts in plans.items()}
    seeds = len(control)
    happened = np.stack(retrain([job for each in deleted.values() for job in without(explained, each, seeds)]))
    changes = happened[:, outcome].reshape(len(deleted), seeds, -1) - control[:, outcome]
    change = dict(zip(deleted, changes.mean(1).astype(np.float64), strict=True))
    alone = np.sum([change[str(place)] for place in range(K)], 0)
    return {
        "four alone, added": mean(alone),
        "together": mean(change["together"]),
        "ratio": ratio(change["together"], alone),
        "one after another": mean(change["one after another"]),
        "one foretold": foretold(score, deleted["0"], change["0"]),
        "four foretold": foretold(score, deleted["together"], change["together"]),
        "deleted": {title: len(rows) for title, rows in deleted.items()},
    }


def foretold(score: np.ndarray, deleted: np.ndarray, change: np.ndarray) -> dict[str, float]:
    """Return how well sums of what a method says (n, q) of deleted rows (d,) foretell losses, changes (q,)."""
    return correlation(score[deleted].sum(0, dtype=np.float64), -change)


def one_after_another(explained: Explained, method: Method, first: np.ndarray) -> np.ndarray:
    """Return rows of the training triples: the first of each prediction (q,), and after each training the next, (K, q)."""
    chosen, graph = [first], explained.graph
    while len(chosen) < K:
        left = np.setdiff1d(np.arange(len(graph.train)), np.concatenate(chosen))
        whole = Whole(explained.whole.name, replace(graph, train=graph.train[left]), folder="groups")
        score = method(Explained(whole, explained.test))
        chosen.append(left[score.argmax(0)])
    return np.stack(chosen)


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for each problem."""
    return "\n\n".join(table(name, each) for name, each in found.items())


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return what groups do in one problem."""
    columns = {"four alone, added": "+", "together": "+", "ratio": "", "one after another": "+"}
    columns |= {"one foretold": "", "four foretold": ""}
    lines = [
        f"**{name}**: {found['predictions']} predictions, {found['seeds']} seeds, {found['outcome']}",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for title, each in found["rows"].items():
        lines.append(f"| {title} | {' | '.join(cell(each[column], sign) for column, sign in columns.items())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "groups", measure, shown, page="truth/groups.md", seeds=3, predictions=100)
