"""Deletion: what happens to predictions when the training triples that explain them are taken away?

    python -m benchmarks.truth.deletion                       # UMLS, Kinships and CoDEx-S; hours on two cores
    python -m benchmarks.truth.deletion --graphs UMLS --seeds 3

As Kelpie (Rossi et al., 2022) and AttributionAttack (Bhardwaj et al., 2021) do it: tails that a model ranks first are explained, the
k best training triples of every one of them are taken away together, and the model is trained again, with several seeds. What
they leave out is the control: models of the same seeds that were trained on everything. An effect is the difference to these,
prediction by prediction; its interval is of a bootstrap over predictions. The least effect that this design can tell from none
is computed from the controls alone, before anything is deleted.

What was trained is kept in ``.bench/truth``, so that an interrupted run goes on. Writes
``benchmarks/results/deletion-GRAPH-cpu.json`` and the tables in ``docs/truth.md``.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.fb15k237 import RESULTS, machine
from benchmarks.pages import DOCS, replace
from benchmarks.truth.graphs import GRAPHS, Graph, read_graph
from benchmarks.truth.retraining import Job, outcome, retrain
from benchmarks.truth.scores import same_pair, shared_entities, similar_embeddings
from benchmarks.truth.statistics import mean
from benchmarks.truth.training import tail_scores
from benchmarks.truth.whole import Explained, Whole

COUNTS = (1, 4)
"""Facts deleted for each prediction: one, and about as many as Kelpie's explanations have."""
DETECTABLE = 1.96 + 0.84
"""Standard errors that an effect must have to be found in four of five experiments at the 5 % level."""
DAMPING = 3.0
_POISON = 1.0
"""Length of the step that Data Poisoning moves the head's embedding."""

Method = Callable[[Explained], np.ndarray]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--predictions", type=int, default=100)
    parser.add_argument("--write-only", action="store_true")
    args = parser.parse_args()
    for name in args.graphs if not args.write_only else ():
        found = measure(name, read_graph(name), args.seeds, args.predictions)
        (RESULTS / f"deletion-{name.lower()}-cpu.json").write_text(json.dumps(found, indent=2) + "\n")
    files = {name: RESULTS / f"deletion-{name.lower()}-cpu.json" for name in GRAPHS}
    shown = "\n\n".join(table(name, json.loads(file.read_text())) for name, file in files.items() if file.exists())
    print(shown)
    replace(DOCS / "truth.md", "deletion", shown)


def measure(name: str, graph: Graph, seeds: int, count: int) -> dict[str, Any]:
    """Delete, train again, and compare."""
    start = time.perf_counter()
    whole = Whole(name, graph)
    first = np.flatnonzero(outcome(whole.module, graph, graph.test)[2] == 1)
    if not len(first):
        raise ValueError(f"{name}: the model ranks no test triple's tail first: there is nothing to delete for")
    predictions = graph.test[np.random.default_rng(0).permutation(first)[:count]]

    def jobs(title: str, deleted: np.ndarray) -> list[Job]:
        kept = np.ones(len(graph.train), bool)
        kept[deleted] = False
        folder = whole.folder / "deletion" / re.sub(r"\W+", "-", title)
        return [Job(graph, whole.recipe, kept, seed, predictions, folder / f"{seed}.npy") for seed in range(seeds)]

    control = np.stack(retrain(jobs("nothing", np.empty(0, np.int64))))
    print(f"{name}: changes of the logit beyond ±{detectable(control):.3f} would be found", flush=True)
    rows = {
        f"{row['method']}, {row['restricted']}, {row['k']}": row for row in deletions(Explained(whole, predictions))
    }
    happened = np.stack(retrain([job for title, row in rows.items() for job in jobs(title, row["deleted"])]))
    for row, outcomes in zip(rows.values(), happened.reshape(len(rows), seeds, *control.shape[1:]), strict=True):
        row |= effect(outcomes, control) | {"deleted": len(row["deleted"])}
    return {
        "machine": machine(), "seeds": seeds, "predictions": len(predictions), "triples": len(graph.train),
        "control": measures(control), "detectable": detectable(control), "rows": rows,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def deletions(explained: Explained) -> Iterator[dict[str, Any]]:
    """Yield what each method deletes: rows of the training triples, for all predictions together."""
    heads = explained.test[:, 0]
    near = (explained.graph.train[:, [0, 2]][:, :, None] == heads).any(1)  # (n, q): facts of the prediction's head
    for title, method in methods().items():
        score = method(explained)
        for restricted in (False, True):
            allowed = np.where(near, score, -np.inf) if restricted else score
            ranked = np.argsort(-allowed, axis=0, kind="stable")
            for k in COUNTS:
                best = np.isfinite(np.take_along_axis(allowed, ranked[:k], 0))
                yield {"method": title, "restricted": restricted, "k": k, "deleted": np.unique(ranked[:k][best])}


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
    return {name: asdict(mean(change.mean(0))) for name, change in changes.items()}


def methods() -> dict[str, Method]:
    """Return the methods by title: what to delete first has the largest score."""
    return {
        "bce, forward": lambda e: e.influences("bce").of,
        "bce, both": lambda e: e.influences("bce", directions="both").of,
        "removal, forward": lambda e: e.removal.of,
        "removal, both": lambda e: e.influences("removal", directions="both").of,
        "removal, forward, cosine": lambda e: e.removal.cosine(),
        "Fisher by blocks": lambda e: e.blocks.scores(DAMPING, dense=True),
        "Data Poisoning": poisoning,
        "embeddings alike": lambda e: similar_embeddings(e.whole.model, e.graph, e.test),
        "same (h, r) or (r, t)": lambda e: same_pair(e.graph, e.test) + _coin(e, 1e-3),
        "random, sharing an entity": lambda e: (shared_entities(e.graph, e.test) > 0) + _coin(e, 1e-3),
        "random": lambda e: _coin(e, 1.0),
    }


def _coin(explained: Explained, size: float) -> np.ndarray:
    """Return what decides among equals."""
    shape = len(explained.graph.train), len(explained.test)
    return size * np.random.default_rng(4).random(shape)


def poisoning(explained: Explained) -> np.ndarray:
    """Return the rule of Zhang et al. (2019, https://arxiv.org/abs/1904.12052), in the form Kelpie's authors give it.

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


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return the effects on one graph."""
    control = found["control"]
    lines = [
        f"**{name}**: {found['predictions']} predictions, {found['seeds']} seeds. Controls: MRR {control['mrr']:.3f}, Hits@1 "
        f"{control['hits@1']:.2f}. Changes of the logit beyond ±{found['detectable']:.2f} would be found.",
        "",
        "| deleted for each prediction | candidates | facts in all | logit | MRR | Hits@1 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['k']} by {row['method']} | {'of its head' if row['restricted'] else 'all'} | {row['deleted']} "
        f"| {cell(row['logit'])} | {cell(row['mrr'])} | {cell(row['hits@1'])} |"
        for row in found["rows"].values()
    ]
    return "\n".join(lines)


def cell(found: Mapping[str, float]) -> str:
    """Return a change with its interval."""
    return f"{found['mean']:+.2f} ({found['low']:+.2f}…{found['high']:+.2f})"


if __name__ == "__main__":
    main()
