"""What a method expects of each training triple: (n, q) numbers, large where the training triple speaks for the test one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.truth.graphs import Graph
from kgtrace_indexer import Attributor, BuildConfig, Direction, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.names import Outcome

_TESTS = 2048
"""Test triples explained together."""


@dataclass(frozen=True, slots=True)
class Influences:
    """Exact influences, as `kgtrace query --exact` computes them."""

    of: np.ndarray
    """(n, q) float32."""
    self_influence: np.ndarray
    """(n,) float32: ‖g‖² of each training triple."""

    def cosine(self) -> np.ndarray:
        """Return the influences over ‖g‖; the test triple's norm changes no order."""
        return self.of / np.sqrt(np.maximum(self.self_influence, 1e-30))[:, None]


def influences(
    model: ModelFile,
    graph: Graph,
    test: np.ndarray,
    *,
    loss: str = "removal",
    layers: Sequence[str] = ("all",),
    directions: str = "forward",
    sides: Iterable[Direction] = ("tail",),
    damping: float | None = None,
    outcome: Outcome = "logit",
) -> Influences:
    """Return the influence of all training triples on test triples (q, 3), summed over directions of these.

    With a `damping` they are preconditioned, and of an `outcome`.
    """
    count = len(graph.train)
    projection, score = ("none", "tracin") if damping is None else ("pca", "preconditioned")
    config = BuildConfig(loss=loss, layers=tuple(layers), directions=directions, projection=projection, device="cpu")
    with indexed(model, graph, config) as attributor:
        order = np.asarray(attributor.training.train_index)
        found, norms = np.zeros((count, len(test)), np.float32), np.empty(count, np.float32)
        for start in range(0, len(test), _TESTS):
            these = slice(start, start + _TESTS)
            for side in sides:
                found[order, these] += attributor.exact_influences(
                    test[these], np.arange(count), side, score=score, damping=damping, outcome=outcome
                )
        norms[order] = attributor.training.squared_norm[score]
    return Influences(found, norms)


def preconditioned_self_influences(model: ModelFile, graph: Graph, loss: str) -> np.ndarray:
    """Return what `kgtrace self-influence` ranks all training triples by, in both directions, (n,) float32.

    With ``removal`` P is of that loss and the gradient of ``bce``, as in a default index.
    """
    found = np.empty(len(graph.train), np.float32)
    config = BuildConfig(loss=None if loss == "removal" else loss, directions="both", device="cpu")
    with indexed(model, graph, config) as attributor:
        found[attributor.training.train_index] = attributor.training.self_influence["preconditioned"]
    return found


@contextmanager
def indexed(model: ModelFile, graph: Graph, config: BuildConfig) -> Iterator[Attributor]:
    """Index the training triples for as long as the block runs."""
    table = TripleTable(graph.train.astype(np.int32), np.arange(len(graph.train)), 0)
    with TemporaryDirectory() as folder:
        build(Path(folder), model, graph.vocabulary, table, config)
        yield open_index(Path(folder), device="cpu", verify=False)


def same_pair(graph: Graph, test: np.ndarray) -> np.ndarray:
    """Return how many of (h, r) and (r, t) each training triple shares with a test triple."""
    (h, r, t), (head, relation, tail) = graph.train.T[:, :, None], test.T[:, None]
    return (r == relation) * ((h == head).astype(np.float32) + (t == tail))


def shared_entities(graph: Graph, test: np.ndarray) -> np.ndarray:
    """Return how many entities a training triple shares with a test triple."""
    (h, _, t), (head, _, tail) = graph.train.T[:, :, None], test.T[:, None]
    return np.add(*(((each == head) | (each == tail)).astype(np.float32) for each in (h, t)))


def similar_embeddings(model: ModelFile, graph: Graph, test: np.ndarray) -> np.ndarray:
    """Return the cosine of the embeddings of head, relation and tail, side by side."""
    entities = model.tensors["entity_representations.0._embeddings.weight"]
    relations = model.tensors["relation_representations.0._embeddings.weight"]

    def rows(triples: np.ndarray) -> Tensor:
        h, r, t = torch.from_numpy(triples).T
        return torch.nn.functional.normalize(torch.cat([entities[h], relations[2 * r], entities[t]], 1))

    return (rows(graph.train) @ rows(test).T).numpy()
