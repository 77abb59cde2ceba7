"""Rank correlations of test triples, and how sure they are."""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

_RESAMPLES = 10_000


def spearman(expected: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column of (m, q) and (m, q), (q,); 0 for a column without differences."""
    x, y = (rankdata(each, axis=0) for each in (expected, happened))
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.divide((x * y).sum(0), size, out=np.zeros_like(size), where=size > 0)


def mean(values: np.ndarray) -> dict[str, float]:
    """Return the mean of values (q,) with its 95 % interval, ``low`` to ``high``, from a bootstrap of these."""
    return _bootstrap(lambda drawn: drawn.mean(1), values)


def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """Return the ratio of the means of (q,) and (q,) with its interval, likewise."""
    return _bootstrap(lambda a, b: a.mean(1) / b.mean(1), above, below)


def correlation(expected: np.ndarray, happened: np.ndarray) -> dict[str, float]:
    """Return Spearman's correlation of (q,) and (q,) with its interval, likewise."""
    return _bootstrap(lambda x, y: spearman(x.T, y.T), expected, happened)


def _bootstrap(statistic: Callable[..., np.ndarray], *values: np.ndarray) -> dict[str, float]:
    """Return a statistic, which takes each of the values (q,) as samples (m, q), under ``mean``, and its interval."""
    count = len(values[0])
    drawn = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    low, high = np.quantile(statistic(*(each[drawn] for each in values)), (0.025, 0.975))
    return {"mean": float(statistic(*(each[None] for each in values))[0]), "low": float(low), "high": float(high)}
