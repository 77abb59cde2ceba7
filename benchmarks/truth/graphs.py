"""Knowledge graphs small enough to train on hundreds of times."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from pykeen.datasets import UMLS, Kinships
from pykeen.triples import TriplesFactory

from benchmarks.fb15k237 import SHARED
from kgtrace_store import Vocabulary


@dataclass(frozen=True, slots=True)
class Graph:
    """A data set by ids."""

    train: np.ndarray
    """(n, 3) int64: head, relation, tail."""
    test: np.ndarray
    """(q, 3) int64."""
    vocabulary: Vocabulary
    validation: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    """(v, 3) int64: no prediction is outranked by tails known from it, as from the other two."""

    @classmethod
    def of(cls, training: TriplesFactory, testing: TriplesFactory, validation: TriplesFactory | None = None) -> "Graph":
        """Take PyKEEN's triples and ids."""
        parts = {} if validation is None else {"validation": validation.mapped_triples.numpy()}
        return cls(
            training.mapped_triples.numpy(),
            testing.mapped_triples.numpy(),
            Vocabulary(_by_id(training.entity_to_id), _by_id(training.relation_to_id)),
            **parts,
        )


def read_graph(name: str) -> Graph:
    """Return UMLS or Kinships, which PyKEEN brings along, or a folder of the data in KGTRACE_SHARED."""
    if name in ("UMLS", "Kinships"):
        data = {"UMLS": UMLS, "Kinships": Kinships}[name]()
        training, testing = data.training, data.testing
    else:
        folder = SHARED / "data" / name
        training = TriplesFactory.from_path(folder / "train.txt")
        testing = TriplesFactory.from_path(
            folder / "test.txt", entity_to_id=training.entity_to_id, relation_to_id=training.relation_to_id
        )
    return Graph.of(training, testing)


def _by_id(ids: Mapping[str, int]) -> list[str]:
    return sorted(ids, key=ids.__getitem__)
