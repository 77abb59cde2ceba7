"""Deletion: what happens to predictions when the training triples that explain them are taken away?

    python -m benchmarks.truth.deletion                       # all problems; hours on two cores
    python -m benchmarks.truth.deletion --problems UMLS --seeds 3

As Kelpie (Rossi et al., 2022) and AttributionAttack (Bhardwaj et al., 2021) do it: tails that a model ranks first are explained, the
k best training triples of every one of them are taken away together, and the model is trained again, with several seeds. What
they leave out is the control: models of the same seeds that were trained on everything. An effect is the difference to these,
prediction by prediction; its interval is of a bootstrap over predictions. The least effect that this design can tell from none
is computed from the controls alone, before anything is deleted.

What was trained is kept in ``.bench/truth``, so that an interrupted run goes on. Writes
``benchmarks/results/deletion-PROBLEM-cpu.json`` and the tables in ``docs/truth.md``.
"""

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.truth.command import cell, run
from benchmarks.truth.graphs import Graph
from benchmarks.truth.retraining import Job, retrain
from benchmarks.truth.scores import same_pair, shared_entities, similar_embeddings
from benchmarks.truth.statistics import mean
from benchmarks.truth.training import tail_scores
from benchmarks.truth.whole import Explained, Whole
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING
from kgtrace_store.errors import BadRequest

COUNTS = (1, 4)
"""Facts deleted for each prediction: one, and about as many as Kelpie's explanations have."""
LARGE = 10_000
"""Training triples beyond which methods are `FEW`: every training takes longer there."""
FEW = (
    "bce, forward", "removal, forward", "preconditioned", "preconditioned, default", "Data Poisoning",
    "embeddings alike", "same (h, r) or (r, t)", "shared entities", "random, sharing an entity", "random",
)  # fmt: skip
LARGER = 50_000
"""Training triples beyond which methods are `FEWER` for ConvE, whose training takes longest."""
FEWER = (
    "removal, forward", "preconditioned, default", "Data Poisoning", "embeddings alike", "shared entities",
    "random, sharing an entity",
)  # fmt: skip
MEASURES = {"logit": "logit", "MRR": "mrr", "Hits@1": "hits@1"}
"""By their titles."""
DETECTABLE = 1.96 + 0.84
"""Standard errors that an effect must have to be found in four of five experiments at the 5 % level."""
_DAMPING = 1.0
"""σ² of the preconditioned method, in units of the mean ‖g‖²."""
_POISON = 1.0
"""Length of the step that Data Poisoning moves the head's embedding."""

Method = Callable[[Explained], np.ndarray]


def measure(name: str, graph: Graph, *, seeds: int, predictions: int) -> dict[str, Any]:
    """Delete, train again, and compare."""
    explained = ranked_first(Whole(name, graph), predictions)
    control = np.stack(retrain(without(explained, np.empty(0, np.int64), seeds)))
    print(f"{name}: changes of the logit beyond ±{detectable(control):.3f} would be found", flush=True)
    rows = list(deletions(explained))
    happened = np.stack(retrain([job for row in rows for job in without(explained, row["deleted"], seeds)]))
    for row, outcomes in zip(rows, happened.reshape(len(rows), seeds, *control.shape[1:]), strict=True):
        row |= effect(outcomes, control) | {"deleted": len(row["deleted"])}
    return {
        "predictions": len(explained.test), "reverse": int(reverses(graph.train, explained.test).any(0).sum()),
        "triples": len(graph.train), "mrr": explained.whole.mrr(),
        "control": measures(control), "detectable": detectable(control), "rows": rows,
    }  # fmt: skip


def ranked_first(whole: Whole, predictions: int, *, filtered: bool = True) -> Explained:
    """Explain at most so many test triples whose tails a model ranks first; `filtered` is as in `Whole.outcome`.

    Raises `BadRequest` where it ranks none.
    """
    test = whole.graph.test
    first = np.flatnonzero(whole.outcome(test, filtered=filtered)[2] == 1)
    if not len(first):
        raise BadRequest(f"{whole.name}: the model ranks no test triple's tail first: there is nothing to delete for")
    return Explained(whole, test[np.random.default_rng(0).permutation(first)[:predictions]])


def without(explained: Explained, deleted: np.ndarray, seeds: int, added: np.ndarray | None = None) -> list[Job]:
    """Return training runs without some rows of the training triples, and what they will say of the predictions.

    `added` (m, 3) are further triples to train on.
    """
    whole = explained.whole
    kept = np.ones(len(whole.graph.train), bool)
    kept[deleted] = False
    folder = whole.folder / "deletion"
    return [Job(whole.graph, whole.recipe, kept, seed, explained.test, folder, added) for seed in range(seeds)]


def deletions(explained: Explained) -> Iterator[dict[str, Any]]:
    """Yield what each method deletes: rows of the training triples, for all predictions together."""
    train, test = explained.graph.train, explained.test
    near = (train[:, [0, 2]][:, :, None] == test[:, 0]).any(1)  # (n, q): facts of the prediction's head
    reverse = reverses(train, test)
    for title in titles(explained):
        method = methods()[title]
        start = perf_counter()
        score = method(explained)
        seconds = perf_counter() - start
        for restricted in (False, True):
            allowed = np.where(near, score, -np.inf) if restricted else score
            ranked = np.argsort(-allowed, axis=0, kind="stable")
            for k in COUNTS:
                best = np.isfinite(np.take_along_axis(allowed, ranked[:k], 0))
                yield {
                    "method": title, "restricted": restricted, "k": k, "seconds": seconds,
                    "reverse": int(np.take_along_axis(reverse, ranked[:k], 0).any(0).sum()),
                    "deleted": np.unique(ranked[:k][best]),
                }  # fmt: skip


def titles(explained: Explained) -> tuple[str, ...]:
    """Return which methods are asked."""
    if len(explained.graph.train) <= LARGE:
        return tuple(methods())
    slow = explained.whole.recipe.model == "ConvE" and len(explained.graph.train) > LARGER
    return FEWER if slow else FEW


def reverses(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return which training triples (n, 3) say (t, r, h) where a prediction of (q, 3) says (h, r, t), (n, q) bool."""
    found: np.ndarray = (train[:, :, None] == test.T[::-1]).all(1)
    return found


def measures(outcomes: np.ndarray) -> dict[str, float]:
    """Return what papers report of outcomes (seeds, 3, q), averaged over the seeds."""
    rank = outcomes[:, 2]
    return {"logit": float(outcomes[:, 0].mean()), "mrr": float((1 / rank).mean()), "hits@1": float((rank == 1).mean())}


def detectable(control: np.ndarray) -> float:
    """Return the least mean change of the logit that would be found, from controls (seeds, 3, q) of different seeds."""
    noise = control[:, 0].var(0, ddof=1).mean()  # of one model, for one prediction
    seeds, _, predictions = control.shape
    return float(DETECTABLE * np.sqrt(2 * noise / (seeds * predictions)))


def effect(outcomes: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    """Return the mean changes against the control with their intervals; models of the same seed are compared."""
    changes = {
        "logit": outcomes[:, 0] - control[:, 0],
        "mrr": 1 / outcomes[:, 2] - 1 / control[:, 2],
        "hits@1": (outcomes[:, 2] == 1).astype(float) - (control[:, 2] == 1),
    }
    return {name: mean(change.mean(0)) for name, change in changes.items()}


def methods() -> dict[str, Method]:
    """Return the methods by title: what to delete first has the largest score."""
    return {
        "bce, forward": lambda e: e.influences("bce").of,
        "bce, both": lambda e: e.influences("bce", directions="both").of,
        "removal, forward": lambda e: e.influences("removal").of,
        "removal, both": lambda e: e.influences("removal", directions="both").of,
        "removal, forward, cosine": lambda e: e.influences("removal").cosine(),
        "preconditioned": lambda e: e.influences("removal", damping=_DAMPING).of,
        "preconditioned, default": lambda e: e.influences("removal", directions="both", damping=AUTO_DAMPING).of,
        "Data Poisoning": poisoning,
        "embeddings alike": lambda e: similar_embeddings(e.whole.model, e.graph, e.test),
        "same (h, r) or (r, t)": lambda e: same_pair(e.graph, e.test) + _coin(e, 1e-3),
        "shared entities": lambda e: shared_entities(e.graph, e.test) + _coin(e, 1e-3),
        "random, sharing an entity": lambda e: (shared_entities(e.graph, e.test) > 0) + _coin(e, 1e-3),
        "random": lambda e: _coin(e, 1.0),
    }


def _coin(explained: Explained, size: float) -> np.ndarray:
    """Return what decides among equals."""
    shape = len(explained.graph.train), len(explained.test)
    return size * np.random.default_rng(4).random(shape)


def poisoning(explained: Explained) -> np.ndarray:
    """Return a rule after Zhang et al. (2019, https://arxiv.org/abs/1904.12052).

    The head's embedding is moved against the gradient of the prediction's score, a step of length 1; the fact of the head
    that loses most of its score is the one to delete. Other facts score nothing.
    """
    module, graph = explained.whole.module, explained.graph
    table = module.entity_representations[0]._embeddings.weight
    found = np.full((len(graph.train), len(explained.test)), -np.inf)
    for column, (head, relation, tail) in enumerate(explained.test.tolist()):
        score = tail_scores(module, torch.tensor([head]), torch.tensor([2 * relation]))[0, tail]
        (grad,) = torch.autograd.grad(score, table)
        step = _POISON * torch.nn.functional.normalize(grad[head], dim=0)
        facts = np.flatnonzero((graph.train[:, [0, 2]] == head).any(1))
        before = _scores(explained, facts)
        with torch.no_grad():
            kept = table[head].clone()
            table[head] -= step
            after = _scores(explained, facts)
            table[head] = kept
        found[facts, column] = (before - after).numpy()
    return found


def _scores(explained: Explained, rows: np.ndarray) -> torch.Tensor:
    """Return the logits of training triples (m,)."""
    head, relation, tail = torch.from_numpy(explained.graph.train[rows]).T
    with torch.inference_mode():
        return tail_scores(explained.whole.module, head, 2 * relation).gather(1, tail[:, None])[:, 0]


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for each graph."""
    return "\n\n".join(table(name, each) for name, each in found.items())


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return the effects on one graph; what deletes the same facts as a method before it is left out."""
    control = found["control"]
    effects: dict[tuple[str, bool], dict[str, str]] = {}
    for row in found["rows"]:
        cells = {f"{row['k']}: {title}": cell(row[measure], "+") for title, measure in MEASURES.items()}
        effects.setdefault((row["method"], row["restricted"]), {}).update(cells)
    columns = list(next(iter(effects.values())))
    lines = [
        f"**{name}**: {found['predictions']} predictions, {found['seeds']} seeds. Controls: MRR {control['mrr']:.3f}, "
        f"Hits@1 {control['hits@1']:.2f}. Changes of the logit beyond ±{found['detectable']:.2f} would be found.",
        "",
        f"| | candidates | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    seen: list[dict[str, str]] = []
    for (method, restricted), cells in effects.items():
        if cells not in seen:
            lines.append(f"| {method} | {'of its head' if restricted else 'all'} | {' | '.join(cells.values())} |")
            seen.append(cells)
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "deletion", measure, shown, page="truth/deletion.md", seeds=3, predictions=100)
