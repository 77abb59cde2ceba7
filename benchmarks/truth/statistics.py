"""Rank correlations of test triples, and how sure they are."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over test triples with its 95 % interval, from a bootstrap of these."""

    mean: float
    low: float
    high: float


def spearman(expected: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column of (m, q) and (m, q), (q,); 0 for a column without differences."""
    x, y = (rankdata(each, axis=0) for each in (expected, happened))
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.divide((x * y).sum(0), size, out=np.zeros_like(size), where=size > 0)


def mean(values: np.ndarray) -> Mean:
    """Return the mean of values (q,) with its interval."""
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return Mean(float(values.mean()), float(low), float(high))
