"""Error detection: which of the training triples were made up?

    python -m benchmarks.truth.errors                       # all problems; minutes on two cores
    python -m benchmarks.truth.errors --problems UMLS --seeds 1

One training triple in twenty gets another head or tail, such that the result is in no part of the graph. A model is trained on
them; every method then ranks all training triples by how suspicious they are. Self-influence and the model's score need the
training triples alone; opponents are those that speak against triples known to be right, here the test triples. The model's
score of a triple as it is trained on, in both directions, is the sum of the logits of (h, r, t) and (t, r⁻¹, h).

Writes ``benchmarks/results/errors-PROBLEM-cpu.json`` and the table in ``docs/truth.md``.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.truth.command import run, tables
from benchmarks.truth.graphs import Graph
from benchmarks.truth.scores import preconditioned_self_influences
from benchmarks.truth.training import tail_scores
from benchmarks.truth.whole import Explained, Whole

SHARE = 0.05
VALIDATION = 500
"""Triples known to be right."""
LOSSES = ("bce", "removal", "bce-1vsall", "ce-1vsall")
PRECONDITIONED = {
    "bce": "self-influence, bce, both, preconditioned",
    "removal": "self-influence, bce, both, preconditioned under removal",
}
"""What `kgtrace self-influence` ranks by where the index has such a loss: the latter is its default."""
MEASURES = ("AUC", "average precision", "precision")
"""Area under the ROC curve; of precision over recall; precision among as many as there are errors."""


def measure(name: str, graph: Graph, *, seeds: int) -> dict[str, Any]:
    """Corrupt, train and rank, with several seeds."""
    runs = [ranked(name, graph, seed) for seed in range(seeds)]
    return {"share": SHARE, "rows": {title: summary(runs, title) for title in runs[0]}}


def ranked(name: str, graph: Graph, seed: int) -> dict[str, dict[str, float]]:
    """Corrupt, train and rank: the measures of each method."""
    graph, wrong = corrupted(graph, seed)
    whole = Whole(name, graph, seed, folder=f"errors-{seed}")
    sure = np.random.default_rng([seed, 2]).permutation(graph.test)[:VALIDATION]
    validation, itself = Explained(whole, sure), Explained(whole, graph.train[:1])
    logit, log_probability, _ = whole.outcome(graph.train)
    found = {
        "model score (logit)": -logit,
        "model score (logit), both": -logit - backward(whole, graph.train),
        "model score (log-probability)": -log_probability,
        "random": np.random.default_rng([seed, 3]).random(len(wrong)),
    }
    for loss in whole.losses(LOSSES):
        for directions in ("forward", "both"):
            found[f"self-influence, {loss}, {directions}"] = itself.influences(
                loss, directions=directions
            ).self_influence
        if loss in PRECONDITIONED:
            found[PRECONDITIONED[loss]] = preconditioned_self_influences(whole.model, graph, loss)
        influences = validation.influences(loss)
        found[f"opponents of validation triples, {loss}"] = -influences.of.sum(1)
        found[f"opponents of validation triples, {loss}, cosine"] = -influences.cosine().sum(1)
    return {title: judged(wrong, suspicion) for title, suspicion in found.items()}


def backward(whole: Whole, triples: np.ndarray) -> np.ndarray:
    """Return the logits of (t, r⁻¹, h) for triples (n, 3), (n,)."""
    head, relation, tail = torch.from_numpy(triples).T
    with torch.inference_mode():
        found: np.ndarray = tail_scores(whole.module, tail, 2 * relation + 1).gather(1, head[:, None])[:, 0].numpy()
    return found


def corrupted(graph: Graph, seed: int) -> tuple[Graph, np.ndarray]:
    """Return the graph with some training triples made up, and which these are, (n,) bool."""
    rng = np.random.default_rng([seed, 1])
    true = {tuple(triple) for part in (graph.train, graph.test) for triple in part.tolist()}
    train, wrong = graph.train.copy(), np.zeros(len(graph.train), bool)
    wrong[rng.choice(len(train), round(SHARE * len(train)), replace=False)] = True
    for row in np.flatnonzero(wrong):
        while tuple(train[row].tolist()) in true:
            train[row] = graph.train[row]
            train[row, rng.choice([0, 2])] = rng.integers(len(graph.vocabulary.entities))
        true.add(tuple(train[row].tolist()))
    return replace(graph, train=train), wrong


def judged(wrong: np.ndarray, suspicion: np.ndarray) -> dict[str, float]:
    """Return how well suspicion (n,) finds what is wrong (n,)."""
    most = np.argsort(-suspicion, kind="stable")[: wrong.sum()]
    values = (roc_auc_score(wrong, suspicion), average_precision_score(wrong, suspicion), wrong[most].mean())
    return dict(zip(MEASURES, map(float, values), strict=True))


def summary(runs: list[dict[str, dict[str, float]]], title: str) -> dict[str, dict[str, float]]:
    """Return mean, least and largest of each measure over the seeds."""
    values = {measure: [run[title][measure] for run in runs] for measure in MEASURES}
    return {
        measure: {"mean": float(np.mean(each)), "low": min(each), "high": max(each)} for measure, each in values.items()
    }


if __name__ == "__main__":
    run(__doc__, "errors", measure, partial(tables, columns=MEASURES[:2]), page="truth/errors.md", seeds=3)
