"""Does the model rank its training triples better than chance?

A model that does not is untrained, or its rows were given other meanings: ids that were made anew lie within its
tables, and pass every other check.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kgtrace_indexer.query.attributor import Attributor

_MOST_ROWS, _FEWEST_ROWS = 512, 64
"""Training triples that are looked at."""
_SCORES = 1 << 26
"""Entities are scored at most so often, unless the fewest rows take more."""
_BLOCK = 1 << 22
"""Scores in memory at a time, unless one row has more."""
_OTHERS = 4096
"""Entities that a tail is compared with."""
_FEWEST_TAILS = 8
"""Below so many distinct tails, chance alone ranks them well too often."""
_DEVIATIONS = 3.0
"""Chance exceeds it once in 700 times."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well tails of training triples rank, beside swapped tails by the same scores."""

    triples: int
    """Training triples that were looked at."""
    tails: int
    """Distinct tails among them."""
    outranked: float
    """Mean share of the entities that make no training triple that the tail outranks; ties count half."""
    deviations: float
    """How far the mean lies above that of swapped tails, in standard deviations of the latter."""

    @property
    def chance(self) -> bool:
        """True if the ranks are no better than the ranks of swapped tails; False if there are too few tails to tell."""
        return self.tails >= _FEWEST_TAILS and self.deviations < _DEVIATIONS


def fit(attributor: Attributor, *, seed: int = 0) -> Fit:
    """Rank the tails of random training triples among random entities.

    The tails of all triples are then permuted, equal ones together, as new ids would permute them. The mean
    share is a linear statistic of the permutation, Σₖ A[k, π(k)] with A[k, l] the sum of the shares of tail l in the
    triples of tail k; its mean and variance over all permutations are known (Hoeffding 1951, *A combinatorial central
    limit theorem*), so none is drawn.
    """
    entities = len(attributor.vocabulary.entities)
    rng = np.random.default_rng(seed)
    rows = min(len(attributor), int(np.clip(_SCORES // entities, _FEWEST_ROWS, _MOST_ROWS)))
    triples = np.asarray(
        attributor.training.triples[np.sort(rng.choice(len(attributor), rows, replace=False))], np.int64
    )
    others = np.sort(rng.choice(entities, min(entities, _OTHERS), replace=False))
    tails, column = np.unique(triples[:, 2], return_inverse=True)
    sums = np.zeros((len(tails), len(tails)))  # A
    for k, shares in zip(column, _shares(attributor, triples, tails, others), strict=True):
        sums[k] += shares
    mean = sums.trace() / rows
    centred = sums - sums.mean(0) - sums.mean(1, keepdims=True) + sums.mean()
    deviation = np.sqrt((centred**2).sum() / max(len(tails) - 1, 1)) / rows
    above = mean - sums.sum() / len(tails) / rows
    return Fit(rows, len(tails), float(mean), float(above / deviation) if deviation > 1e-9 else 0.0)


def _shares(attributor: Attributor, triples: np.ndarray, tails: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for each triple the share of `others` that make no training triple with it and that each tail outranks."""
    step = max(1, _BLOCK // len(attributor.vocabulary.entities))
    for start in range(0, len(triples), step):
        block = triples[start : start + step]
        for (head, relation, _), scores in zip(block.tolist(), attributor.candidate_scores(block), strict=True):
            known = attributor.training.tails_of(head, relation)
            unknown = np.sort(scores[others[~np.isin(others, known)]])
            low, high = (np.searchsorted(unknown, scores[tails], side) for side in ("left", "right"))
            yield (low + high) / (2 * len(unknown)) if len(unknown) else np.full(len(tails), 0.5)
