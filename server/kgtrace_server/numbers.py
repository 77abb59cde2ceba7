"""Numbers as answers hold them."""

import math
from collections.abc import Iterable

import numpy as np


def whole(value: float) -> int | float:
    """Return a whole number where a rank is one: 2, not 2.0."""
    return value if value % 1 else int(value)


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def shortest(values: np.ndarray) -> Iterable[float | None]:
    """Return float32 as the shortest decimals that read back the same: 0.83, not 0.8299999833106995."""
    return [finite(float(str(value))) for value in values]


def shortest_or_unknown(values: np.ndarray | None, count: int) -> Iterable[float | None]:
    """Return the values as `shortest` does, or as many unknown ones."""
    return [None] * count if values is None else shortest(values)
