"""Training again without some triples, side by side, each result kept on disk so that an interrupted run goes on."""

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pykeen.models import ERModel

from benchmarks.peers.environments import ROOT
from benchmarks.truth.graphs import Graph
from benchmarks.truth.pipeline import Pipeline
from benchmarks.truth.training import Recipe

FOLDER = ROOT / ".bench" / "truth"
OUTCOMES = ("logit", "log-probability", "rank")
"""What is kept of each prediction: its score, the log of its softmax over all tails, and its filtered rank."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run."""

    graph: Graph
    recipe: Recipe | Pipeline
    kept: np.ndarray
    """(n,) bool: the training triples trained on."""
    seed: int
    predictions: np.ndarray
    """(q, 3): looked at afterwards."""
    folder: Path
    added: np.ndarray | None = None
    """(m, 3): further triples that are trained on; ranks are filtered as without them."""

    @property
    def file(self) -> Path:
        """Where the outcome goes, (3, q): named after all that it depends on."""
        asked = hashlib.sha256(f"{self.recipe} {self.seed}".encode())
        graph = self.graph
        for each in (self.kept, graph.train, graph.test, self.predictions, graph.validation):
            asked.update(np.ascontiguousarray(each))
        if self.added is not None:
            asked.update(np.ascontiguousarray(self.added))
        return self.folder / f"{asked.hexdigest()[:24]}.npy"


def retrain(jobs: Sequence[Job]) -> list[np.ndarray]:
    """Return the outcomes (3, q) of all jobs; one process a core that is ours works on those that are not done."""
    open_jobs = {job.file: job for job in jobs if not job.file.exists()}
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(_run, open_jobs.values(), chunksize=1)
        pool.close()
        pool.join()  # else locks of tqdm's are reported as leaked
    return [np.load(job.file) for job in jobs]


def _run(job: Job) -> None:
    torch.set_num_threads(1)
    triples = job.graph.train[job.kept]
    if job.added is not None:
        triples = np.concatenate([triples, job.added])
    model = job.recipe.train(job.graph, triples, job.seed).model
    job.folder.mkdir(parents=True, exist_ok=True)
    scratch = job.folder / f"{os.getpid()}.npy"
    np.save(scratch, outcome(model, job.recipe, job.graph, job.predictions))
    scratch.replace(job.file)


def outcome(model: ERModel, recipe: Recipe | Pipeline, graph: Graph, predictions: np.ndarray) -> np.ndarray:
    """Return what a model that was trained by a recipe says of predicted tails (q, 3), (3, q)."""
    head, relation, tail = torch.from_numpy(predictions).T
    with torch.inference_mode():
        scores = recipe.scores(model, head, relation)
    own = scores.gather(1, tail[:, None])
    better = (scores > own) & ~torch.from_numpy(_known(graph, predictions))
    rows = [own[:, 0], own[:, 0] - scores.logsumexp(1), better.sum(1) + 1.0]
    return torch.stack(rows).numpy()


def _known(graph: Graph, predictions: np.ndarray) -> np.ndarray:
    """Return which tails make a triple of the graph, (q, E) bool."""
    found = np.zeros((len(predictions), len(graph.vocabulary.entities)), bool)
    for triples in (graph.train, graph.test, graph.validation):
        for known, (head, relation, _) in zip(found, predictions, strict=True):
            known[triples[(triples[:, 0] == head) & (triples[:, 1] == relation), 2]] = True
    return found
