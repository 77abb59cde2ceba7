"""How well estimated influences agree with exact ones: top-k overlap, and correlation of values and of ranks."""

import numpy as np

from kgtrace_indexer.names import Order
from kgtrace_indexer.query.certify import value

_TIED = 1e-5
"""Relative difference of influences that float32 does not tell apart: sums in another order differ by about 1e-6."""


def top(values: np.ndarray, k: int) -> np.ndarray:
    """Return where the k largest of values (n,) stand, (min(k, n),) int64, in no order; ties go to the lower place."""
    k = min(k, len(values))
    if k == 0:
        return np.empty(0, np.int64)
    kth = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > kth)
    places: np.ndarray = np.concatenate([above, np.flatnonzero(values == kth)[: k - len(above)]])
    return places


def overlap(named: np.ndarray, exact: np.ndarray, k: int, order: Order) -> float:
    """Return the share of the exact top k that is among the named training triples.

    A named triple that ties with the k-th best, to float32's rounding, is as right as that one.

    Parameters
    ----------
    named
        Up to k places in `exact`.
    exact
        (n,): influences of all training triples on one test triple.
    """
    values = value(exact, order)
    k = min(k, len(values))
    least = values[top(values, k)].min()
    return float((values[named] >= least - _TIED * abs(least)).sum()) / k


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear correlation of two vectors (n,); 0 where one is constant, for it tells nothing of the other."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (x, y))
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values (n,) from 0, ascending, (n,) float64; equal values share the mean of theirs.

    Spearman's correlation is Pearson's of such ranks.
    """
    order = np.argsort(values)
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]][: len(ranked)])  # of each run of equal values
    ends = np.r_[starts[1:], len(ranked)]
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends - 1) / 2, ends - starts)
    return ranks
