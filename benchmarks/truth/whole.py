"""The model of all training triples, which every method looks at."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from pykeen.models import ERModel

from benchmarks.peers.environments import ROOT, python_of
from benchmarks.truth.fisher import Fisher
from benchmarks.truth.graphs import Graph
from benchmarks.truth.pipeline import Pipeline
from benchmarks.truth.retraining import FOLDER, outcome
from benchmarks.truth.scores import Influences, influences
from benchmarks.truth.training import Recipe, Sampled, Trained, saved
from kgtrace_indexer.inputs.model_reader import with_checkpoints

_SMALL = Recipe(checkpoints=(25, 50, 75, 100))
_COMPLEX = Recipe(model="ComplEx", rate=0.01, epochs=48, checkpoints=(12, 24, 36, 48))
_TRANSE = replace(_COMPLEX, model="TransE", softmax=True)
_SAMPLED = Sampled(model="ComplEx", softmax=True, rate=0.1, epochs=6, batch=512)
_SMALLER = replace(_SAMPLED, epochs=20, batch=256, random=1024)
PROBLEMS = {
    "UMLS": ("UMLS", _SMALL),
    "Kinships": ("Kinships", _SMALL),
    "CoDEx-S": ("CoDEx-S", Recipe(epochs=60, batch=256, checkpoints=(15, 30, 45, 60))),
    "UMLS-ComplEx": ("UMLS", _COMPLEX),
    "Kinships-ComplEx": ("Kinships", _COMPLEX),
    "UMLS-TransE": ("UMLS", _TRANSE),
    "Kinships-TransE": ("Kinships", _TRANSE),
    "CoDEx-S-ComplEx": ("CoDEx-S", _SMALLER),
    "CoDEx-S-TransE": ("CoDEx-S", replace(_SMALLER, model="TransE", rate=0.2, spread=0.4)),
    "CoDEx-S-ConvE": ("CoDEx-S", replace(_SMALLER, model="ConvE", channels=16, spread=0.1)),
    "WN18RR-ComplEx": ("WN18RR", _SAMPLED),
    "WN18RR-TransE": ("WN18RR", replace(_SAMPLED, model="TransE", rate=0.5, epochs=10, spread=0.4)),
    "WN18RR-ConvE": ("WN18RR", replace(_SAMPLED, model="ConvE", epochs=10, channels=16, spread=0.1)),
    "FB15k-237-ComplEx": ("FB15k-237", replace(_SAMPLED, epochs=3)),
    "FB15k-237-ComplEx-longer": ("FB15k-237", replace(_SAMPLED, epochs=8, rate=0.05)),
    "FB15k-237-ConvE": ("FB15k-237", replace(_SAMPLED, model="ConvE", epochs=4, channels=16, spread=0.1)),
    "FB15k-237-TransE": ("FB15k-237", replace(_SAMPLED, model="TransE", rate=0.2, epochs=3, spread=0.2)),
}
"""By name: a graph, and how a model of it is trained; ConvE where the name has no other."""
SEED = 1000
"""Of the model that is explained, and the first of several; no model that they are compared with has it."""


class Whole:
    """A trained model, and its files."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        seed: int = SEED,
        folder: str = ".",
        *,
        recipe: Recipe | Pipeline | None = None,
        trained: Trained | None = None,
    ) -> None:
        """Train it on a graph by a recipe, that of `PROBLEMS` by default, unless it was `trained` by it before."""
        self.name, self.graph = name, graph
        self.recipe = PROBLEMS[name][1] if recipe is None else recipe
        self.folder = FOLDER / name / folder
        self.folder.mkdir(parents=True, exist_ok=True)
        trained = self.recipe.train(graph, graph.train, seed) if trained is None else trained
        self.module: ERModel = trained.model
        self.model = saved(self.module, self.folder)
        states = []
        for i, state in enumerate(trained.checkpoints):
            states.append(self.folder / f"checkpoint-{i}.pt")
            torch.save(state, states[-1])
        self.checkpoints = with_checkpoints(self.model, states, [1.0])

    def losses(self, asked: Sequence[str]) -> list[str]:
        """Return those of some losses that the model's score allows; those over all tails need one linear in the tail."""
        return [loss for loss in asked if self.recipe.model != "TransE" or not loss.endswith("all")]

    def outcome(self, predictions: np.ndarray, *, filtered: bool = True) -> np.ndarray:
        """Return what it says of predicted tails (q, 3), (3, q).

        In ranks other known tails are passed over; if not `filtered`, those known from training triples alone are.
        """
        none = self.graph.test[:0]
        graph = self.graph if filtered else replace(self.graph, test=none, validation=none)
        return outcome(self.module, self.recipe, graph, predictions)

    def mrr(self) -> float:
        """Return the filtered mean reciprocal rank of the test triples' tails."""
        return float((1 / self.outcome(self.graph.test)[2]).mean())


class Explained:
    """What the methods say of some test triples."""

    def __init__(self, whole: Whole, test: np.ndarray) -> None:
        """Explain the tails of test triples (q, 3)."""
        self.whole, self.graph, self.test = whole, whole.graph, test
        self.influences = cache(self._influences)

    def _influences(self, loss: str, *, checkpoints: bool = False, **how: Any) -> Influences:
        """Return the influence of all training triples on the test triples; each is computed once."""
        model = self.whole.checkpoints if checkpoints else self.whole.model
        return influences(model, self.graph, self.test, loss=loss, **how)

    @cached_property
    def fisher(self) -> Fisher:
        """The second moment of the logit's gradients."""
        return Fisher.of(influences(self.whole.model, self.graph, self.graph.train, loss="removal").of)

    def trak(self, dim: int) -> np.ndarray:
        """Return TRAK's scores (n, q), by traker in its own environment."""
        folder = self.whole.folder / "trak"
        folder.mkdir(exist_ok=True)
        torch.save(self.whole.module.state_dict(), folder / "model.pt")
        for part, triples in (("train", self.graph.train), ("test", self.test)):
            np.save(folder / f"{part}.npy", triples * [1, 2, 1])
        recipe = self.whole.recipe
        (folder / "asked.json").write_text(json.dumps({"dim": dim, "height": recipe.height, "width": recipe.width}))
        python = python_of("traker", ROOT / ".bench")
        subprocess.run([python, "-m", "benchmarks.truth.runners.trak", folder], check=True, cwd=ROOT)
        found: np.ndarray = np.load(folder / "scores.npy")
        return found
