"""How far two generations name the same training triples: the drift from one night to the next."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kgtrace_indexer.query.attributor import Attributor
from kgtrace_store.errors import UnknownLabel

_TRIPLES = 32
"""Test triples that both generations explain."""
_TOP_K = 10
_SEED = 0
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ over the golden ratio, the usual odd multiplier for hashing (Knuth)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of the top training triples that two generations have in common."""

    generation: str
    """The other one's id."""
    top_k: int
    triples: int
    """How many test triples both could explain."""
    overlap: float | None
    """Mean share; None when there was no triple to compare."""
    reason: str | None = None
    """Why the comparison could not be made."""


def agreement(new: Attributor, old: Attributor) -> Agreement:
    """Compare the `_TOP_K` proponents of a fixed set of training triples of `new`.

    Triples are compared by their labels, for ids may differ between two trainings.
    """
    pairs = []
    for triple in new.training.triples[fixed_sample(new, _TRIPLES)].tolist():
        labels = _labels(new, triple)
        try:
            pairs.append((triple, _ids(old, labels)))
        except UnknownLabel:
            continue
    shares = [
        len(a & b) / max(len(a), len(b))
        for a, b in zip(_named(new, [a for a, _ in pairs]), _named(old, [b for _, b in pairs]), strict=True)
    ]
    overlap = sum(shares) / len(shares) if shares else None
    return Agreement(old.manifest.generation, _TOP_K, len(shares), overlap)


def fixed_sample(attributor: Attributor, count: int) -> np.ndarray:
    """Return the rows of `count` training triples, (count,) int64: those whose labels have the smallest hashes.

    The same triples are drawn night after night for as long as they are training triples, whatever comes or goes
    besides, and whatever their ids are.
    """
    vocabulary = attributor.vocabulary
    entities, relations = _hashes(vocabulary.entities), _hashes(vocabulary.relations)
    head, relation, tail = attributor.training.triples.T
    hashes = _mixed(_mixed(_mixed(entities[head]) ^ relations[relation]) ^ entities[tail])
    _, rows = np.unique(hashes, return_index=True)  # ascending, each triple once
    return rows[:count]


def _hashes(labels: Sequence[str]) -> np.ndarray:
    digests = (hashlib.blake2b(f"{_SEED}\t{label}".encode(), digest_size=8).digest() for label in labels)
    return np.frombuffer(b"".join(digests), "<u8")


def _mixed(x: np.ndarray) -> np.ndarray:
    product: np.ndarray = (x ^ (x >> np.uint64(32))) * _MIX  # modulo 2⁶⁴
    mixed: np.ndarray = product ^ (product >> np.uint64(29))
    return mixed


def _labels(attributor: Attributor, triple: Sequence[int]) -> tuple[str, str, str]:
    head, relation, tail = triple
    entities = attributor.vocabulary.entities
    return entities[head], attributor.vocabulary.relations[relation], entities[tail]


def _ids(attributor: Attributor, labels: tuple[str, str, str]) -> list[int]:
    head, relation, tail = labels
    vocabulary = attributor.vocabulary
    return [vocabulary.entity_id(head), vocabulary.relation_id(relation), vocabulary.entity_id(tail)]


def _named(attributor: Attributor, triples: list[list[int]]) -> list[set[tuple[str, str, str]]]:
    """Return the labels of the training triples that most influenced each test triple."""
    if not triples:
        return []
    answer = attributor.query(np.array(triples, np.int64), top_k=_TOP_K)
    return [{_labels(attributor, row) for row in attribution.triples.tolist()} for attribution in answer.attributions]
