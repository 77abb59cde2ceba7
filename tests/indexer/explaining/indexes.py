"""Small indexes, and what brute force says of them."""

from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_indexer import Attributor, BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_indexer.names import Direction
from kgtrace_store import Vocabulary
from tests.indexer.models.zoo import Save

Data = tuple[Vocabulary, TripleTable]


def alive(save: Save, name: str, inverse: bool) -> ModelFile:
    """Return a small model whose scores depend on its rows: of an untrained ConvE hardly any does."""
    return save(name, inverse, trained=name == "ConvE").model


def indexed(root: Path, model: ModelFile, data: Data, **config: Any) -> Attributor:
    """Build an index of a few triples and open it."""
    build(root, model, *data, BuildConfig(**{"dim": 8, "landmarks": 50, "dtype": "float32", **config}))
    return open_index(root, device="cpu", verify=False)


def changes(attributor: Attributor, triple: np.ndarray, positions: np.ndarray, direction: Direction) -> np.ndarray:
    """Return what each training triple (m,) changes in the score of every completion, (m, E).

    From influences that are computed anew, with the factor that the explainer takes.
    """
    entities = len(attributor.vocabulary.entities)
    completed = np.repeat(triple[None], entities, 0)
    completed[:, 2 if direction == "tail" else 0] = np.arange(entities)
    exact = attributor.exact_influences(completed, positions, direction, score="preconditioned")
    predictor = SetExplainer(attributor).predictor
    sigma = 3.0 * predictor.preconditioner.mean_squares[0]
    scaled: np.ndarray = -predictor.factor / sigma * exact.astype(np.float64)
    return scaled
