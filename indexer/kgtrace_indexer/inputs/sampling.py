"""A part of the training triples, drawn evenly from every relation, head or tail.

An influence ranking over a sample names the sampled triples alone: of the true top k about `rate` · k are among them.
"""

from typing import get_args

import numpy as np

from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.names import Stratum
from kgtrace_store.errors import BadRequest

_COLUMN: dict[Stratum, int] = {"head": 0, "relation": 1, "tail": 2}


def sample_rows(triples: np.ndarray, rate: float, stratify_by: Stratum | None, seed: int) -> np.ndarray:
    """Return the rows of a sample of triples (n, 3), ascending, (m,) int64.

    m is `rate` · n, rounded to the nearest. A stratum of s triples gives `rate` · s of them, rounded by largest
    remainder (ties to the lower id), but at least one; where this lifts many small strata, m is larger than that.
    Without strata, all triples are one. The same arguments give the same rows.

    Raises `BadRequest` for a rate outside (0, 1], an unknown stratum or a negative seed.
    """
    check_sampling(rate, stratify_by, seed)
    count = len(triples)
    strata = np.zeros(count, np.int64) if stratify_by is None else triples[:, _COLUMN[stratify_by]]
    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    counts = _allotted(sizes, rate)  # (strata,)
    shuffled = np.random.default_rng(seed).permutation(count)
    grouped = shuffled[np.argsort(stratum[shuffled], kind="stable")]  # strata one after the other, shuffled inside
    place = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each within its stratum
    return np.sort(grouped[place < np.repeat(counts, sizes)])


def sample_table(table: TripleTable, rate: float, stratify_by: Stratum | None, seed: int) -> TripleTable:
    """Return a sample of a table, as `sample_rows` draws it; triples keep their ``train_index``."""
    check_sampling(rate, stratify_by, seed)
    if rate == 1:
        return table
    rows = sample_rows(table.ids, rate, stratify_by, seed)
    return TripleTable(table.ids[rows], table.train_index[rows], table.skipped)


def check_sampling(rate: float, stratify_by: str | None, seed: int) -> None:
    """Raise `BadRequest` for arguments that `sample_rows` does not take."""
    if not 0 < rate <= 1:  # NaN, too
        raise BadRequest(f"sample rate is {rate}, must be above 0 and at most 1")
    if stratify_by is not None and stratify_by not in get_args(Stratum):
        raise BadRequest(f"stratify by {stratify_by!r} is not one of {', '.join(get_args(Stratum))}")
    if seed < 0:
        raise BadRequest(f"seed is {seed}, must be at least 0")


def _allotted(sizes: np.ndarray, rate: float) -> np.ndarray:
    """Return how many of each stratum are drawn, (strata,) int64."""
    quota = rate * sizes
    whole = np.floor(quota).astype(np.int64)
    allotted = np.maximum(whole, 1)
    left = max(0, round(rate * int(sizes.sum())) - int(allotted.sum()))
    remainder = np.where(whole > 0, quota - whole, -1.0)  # strata that were lifted to one have had theirs
    # Every stratum with whole > 0 has room for one more wherever its remainder is positive.
    allotted[np.argsort(-remainder, kind="stable")[:left]] += 1
    drawn: np.ndarray = np.minimum(allotted, sizes)
    return drawn
