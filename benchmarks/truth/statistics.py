"""Rank correlations of test triples, and how sure they are."""

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
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
