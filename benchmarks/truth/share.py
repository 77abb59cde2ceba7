"""How much of what can be foretold is foretold: by one model, by several, of logits and of log-probabilities?

    python -m benchmarks.truth.share --problems UMLS-ComplEx UMLS-TransE --seeds 4
    python -m benchmarks.truth.share --problems UMLS-ComplEx --seeds 4 --models 16     # how many models are enough
    python -m benchmarks.truth.share --write-only       # only the tables again

Models are trained on random halves of the training triples with several seeds, as for `lds`, and a method's sums over
the halves are compared with what happened; `outcomes` says how, and what no method can pass. Several models are
`kgtrace build --model A --model B ...`: the mean of what single models of other seeds say. For ComplEx the derivative
*through training* is a row, too, the limit of all first-order forecasts for a seed (`unrolled`), which takes longer than
all other rows; for ConvE TRAK, in an environment of its own.

What happened is published in ``releases/retraining``, and trained only where that holds no such halves. What was trained
is kept in ``.bench/truth``, so that an interrupted run goes on. Writes ``benchmarks/results/share-PROBLEM-cpu.json`` and the tables in ``docs/truth/shares.md`` and ``docs/truth.md``.
"""

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from json import dumps
from typing import Any

import numpy as np

from benchmarks.pages import DOCS, replace
from benchmarks.truth.command import cell, results, run
from benchmarks.truth.curvature import Curvature
from benchmarks.truth.directions import directed
from benchmarks.truth.graphs import Graph
from benchmarks.truth.lds import COUNT, TRAK_DIMS, half_of
from benchmarks.truth.outcomes import COMPARED, Outcomes
from benchmarks.truth.retraining import Job, retrain
from benchmarks.truth.scores import influences, same_pair
from benchmarks.truth.statistics import mean
from benchmarks.truth.training import KnownTails
from benchmarks.truth.unrolled import Unrolled
from benchmarks.truth.whole import SEED, Explained, Whole
from kgtrace_indexer import ModelFile
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING
from kgtrace_indexer.names import Outcome

DIRECTED = "P of tails alone, heads' gradients half"
_SMALL = 500
"""Entities of a graph for which methods are tried that take hours on CoDEx-S."""
SEVERAL = 4
"""Models whose mean is looked at by all methods."""


def measure(name: str, graph: Graph, *, halves: int, seeds: int, tests: int, models: int) -> dict[str, Any]:
    """Train on halves of a graph, and correlate."""
    kept = np.stack([half_of(graph, half) for half in range(halves)])  # (m, n)
    return compared(name, graph, kept, name, seeds=seeds, tests=tests, models=models, every=True)


def compared(
    name: str, graph: Graph, kept: np.ndarray, release: str, *, seeds: int, tests: int, models: int, every: bool
) -> dict[str, Any]:
    """Train on parts of a graph (m, n), or take what is published, and correlate; not `every` method takes long."""
    whole = [Whole(name, graph, SEED + i, folder=f"model-{i}") for i in range(models)]
    recipe = whole[0].recipe
    chosen = np.random.default_rng(0).permutation(len(graph.test))[:tests]
    test = graph.test[chosen]
    triples = sha256(np.ascontiguousarray(graph.train, np.int64)).hexdigest()
    outcomes = Outcomes.of_these(release, triples, chosen, kept, dumps(asdict(recipe)), seeds)
    if outcomes is None:
        folder = whole[0].folder.parent / "parts"
        jobs = [Job(graph, recipe, mask, seed, test, folder) for seed in range(seeds) for mask in kept]
        happened = np.stack(retrain(jobs)).reshape(seeds, len(kept), -1, len(test))
        outcomes = Outcomes(triples, chosen, kept, happened, dumps(asdict(recipe)))
        outcomes.write(release)
    ceilings = dict(zip(COMPARED, outcomes.ceilings(), strict=True))
    some = whole[:SEVERAL]
    scores = methods(some, graph, test) | by_direction(some, graph, test) | of_more(whole, graph, test)
    if every and len(graph.vocabulary.entities) <= _SMALL:
        scores |= slow_methods(some, graph, test)
    rows = {
        title: {
            outcome: {**mean(each), "share": float(each.mean() / ceilings[outcome])}
            for outcome, each in zip(COMPARED, outcomes.correlations(score), strict=True)
        }
        for title, score in scores.items()
    }
    return {"triples": len(graph.train), "mrr": whole[0].mrr(), "ceilings": ceilings, "rows": rows}


def of_outcome(whole: list[Whole], graph: Graph, test: np.ndarray, outcome: Outcome) -> np.ndarray:
    """Return the preconditioned score by each model, (models, n, q)."""
    options: dict[str, Any] = {"directions": "both", "damping": AUTO_DAMPING, "outcome": outcome}
    return np.stack([influences(each.model, graph, test, **options).of for each in whole])


def methods(whole: list[Whole], graph: Graph, test: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each method says of the training triples, (n, q), by title."""
    count = same_pair(graph, test)
    logit, probability = (of_outcome(whole, graph, test, outcome) for outcome in ("logit", "probability"))
    several = f"{len(whole)} models"
    return {
        "TracIn of removal": influences(whole[0].model, graph, test, directions="both").of,
        "preconditioned": logit[0],
        "preconditioned, outcome probability": probability[0],
        "preconditioned + ½ count": alike(logit[0]) + alike(count) / 2,
        f"preconditioned, {several}": logit.mean(0),
        f"preconditioned, {several}, outcome probability": probability.mean(0),
        f"preconditioned, {several} + ½ count": alike(logit.mean(0)) + alike(count) / 2,
        f"preconditioned, {several}, outcome probability + ½ count": alike(probability.mean(0)) + alike(count) / 2,
        COUNT: count,
    }


def of_more(whole: list[Whole], graph: Graph, test: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of more models than `methods` has, of twice as many, of four times as many."""
    counts = [count for count in (2 * SEVERAL, 4 * SEVERAL) if count <= len(whole)]
    found = dict[str, np.ndarray]()
    for outcome, ending in (("logit", ""), ("probability", ", outcome probability")) if counts else ():
        scores = of_outcome(whole, graph, test, outcome)
        found |= {f"preconditioned, {count} models{ending}": scores[:count].mean(0) for count in counts}
    return found


def by_direction(whole: list[Whole], graph: Graph, test: np.ndarray) -> dict[str, np.ndarray]:
    """Return methods that look at the explained direction before the other, or at no other."""

    def forward(model: ModelFile, outcome: Outcome) -> np.ndarray:
        return influences(model, graph, test, directions="forward", damping=AUTO_DAMPING, outcome=outcome).of

    def half(model: ModelFile, outcome: Outcome) -> np.ndarray:
        return directed(model, graph, test, outcome)

    found = dict[str, np.ndarray]()
    for title, method in (("preconditioned, directions forward", forward), (DIRECTED, half)):
        for outcome, ending in (("logit", ""), ("probability", ", outcome probability")):
            scores = np.stack([method(each.model, outcome) for each in whole])
            found |= {f"{title}{ending}": scores[0], f"{title}, {len(whole)} models{ending}": scores.mean(0)}
    return found


def slow_methods(whole: list[Whole], graph: Graph, test: np.ndarray) -> dict[str, np.ndarray]:
    """Return methods that look at every negative, or at training itself, or that are not ours."""
    several = f"{len(whole)} models"
    pairs = KnownTails.of(graph.train).pairs
    curvatures = [Curvature(each, pairs) for each in whole]
    found = dict[str, np.ndarray]()
    for units in (1.0, 10.0):
        newton = np.stack([each.scores(graph.train, test, units) for each in curvatures])
        found[f"Gauss–Newton, σ² = {units:g}"] = newton[0]
        found[f"Gauss–Newton, σ² = {units:g}, {several}"] = newton.mean(0)
    if whole[0].recipe.model == "ConvE":
        trak = np.stack([Explained(each, test).trak(TRAK_DIMS[-1]) for each in whole])
        found |= {"TRAK": trak[0], f"TRAK, {several}": trak.mean(0)}
    if whole[0].recipe.model == "ComplEx":
        seeds = range(SEED, SEED + len(whole))
        derivatives = np.stack([Unrolled(graph, whole[0].recipe, seed).derivatives(test) for seed in seeds])
        for place, of in enumerate(COMPARED):
            found |= {
                f"through training, {of}": derivatives[0, place],
                f"through training, {of}, {several}": derivatives[:, place].mean(0),
            }
    return found


def alike(score: np.ndarray) -> np.ndarray:
    """Return scores (n, q) with mean 0 and variance 1 for each test triple."""
    spread = score.std(0)
    return (score - score.mean(0)) / np.where(spread > 0, spread, 1)


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for each outcome: methods down, problems across."""
    return "\n\n".join(_table(found, outcome) for outcome in COMPARED)


def brief(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a short table: shares of the logit and of the log-probability, each by the methods that are asked for it."""
    rows = [
        ("plain influence, `removal`", ["TracIn of removal"] * 2),
        ("how many (h, r) and (r, t) are shared", [COUNT] * 2),
    ]
    for count in ("", *(f", {SEVERAL * times} models" for times in (1, 2, 4))):
        title = f"preconditioned{count}"
        rows.append((title, [title, f"{title}, outcome probability"]))
    lines = [f"| logit / log-probability | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for title, methods_asked in rows:
        cells = []
        for each in found.values():
            values = [each["rows"].get(method, {}).get(of) for method, of in zip(methods_asked, COMPARED, strict=True)]
            cells.append(" / ".join(f"{value['share']:.0%}" for value in values if value is not None))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(found: Mapping[str, Mapping[str, Any]], outcome: str) -> str:
    head = [f"{name}: {each['seeds']} seeds, ceiling {each['ceilings'][outcome]:.2f}" for name, each in found.items()]
    lines = [f"| {outcome} | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for title in dict.fromkeys(title for each in found.values() for title in each["rows"]):
        values = [each["rows"].get(title, {}).get(outcome) for each in found.values()]
        cells = ["" if value is None else f"**{value['share']:.0%}**, {cell(value)}" for value in values]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "share", measure, shown, page="truth/shares.md", halves=50, seeds=4, tests=100, models=SEVERAL)
    replace(DOCS / "truth.md", "brief", brief(results("share")))
