"""Samples of training triples: proportional, complete over strata, repeatable."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from kgtrace_indexer.inputs.sampling import sample_rows
from kgtrace_store.errors import BadRequest

TRIPLES = arrays(np.int32, st.tuples(st.integers(1, 200), st.just(3)), elements=st.integers(0, 6))
RATES = st.floats(0.001, 1)
COLUMNS = {"head": 0, "relation": 1, "tail": 2}


@given(TRIPLES, RATES, st.sampled_from(sorted(COLUMNS)), st.integers(0, 5))
def test_every_stratum_gives_its_share(triples: np.ndarray, rate: float, by: str, seed: int) -> None:
    """Each stratum gives rate · its size within one, at least one triple, and never the same row twice."""
    rows = sample_rows(triples, rate, by, seed)
    assert (np.diff(rows) > 0).all()
    column = triples[:, COLUMNS[by]]
    sizes, drawn = np.bincount(column), np.bincount(column[rows], minlength=column.max() + 1)
    present = sizes > 0
    assert (drawn[present] >= 1).all()
    assert (drawn <= sizes).all()
    assert (np.abs(drawn - rate * sizes)[present] <= 1).all()
    total = round(rate * len(triples))
    lifted = (rate * sizes[present] < 1).any()
    assert len(rows) >= total if lifted else len(rows) == max(1, total)


@given(TRIPLES, RATES, st.integers(0, 5))
def test_without_strata_the_share_is_of_all(triples: np.ndarray, rate: float, seed: int) -> None:
    """A plain sample has rate · n rows, rounded, and at least one."""
    rows = sample_rows(triples, rate, None, seed)
    assert len(rows) == max(1, round(rate * len(triples)))
    assert (np.diff(rows) > 0).all()


@given(TRIPLES, st.sampled_from([None, *sorted(COLUMNS)]))
def test_a_rate_of_one_takes_all(triples: np.ndarray, by: str | None) -> None:
    """Nothing is left out of a whole sample."""
    np.testing.assert_array_equal(sample_rows(triples, 1.0, by, 0), np.arange(len(triples)))


def test_samples_are_repeatable_and_differ_between_seeds(umls: tuple) -> None:
    """One seed gives one sample, another seed another."""
    ids = umls[2].ids
    first = sample_rows(ids, 0.1, "relation", 7)
    np.testing.assert_array_equal(first, sample_rows(ids, 0.1, "relation", 7))
    assert len(np.intersect1d(first, sample_rows(ids, 0.1, "relation", 8))) < len(first) / 2


def test_every_row_is_as_likely(umls: tuple) -> None:
    """Over many seeds every row of a stratum is drawn as often as any other, within five standard errors."""
    triples = np.zeros((40, 3), np.int32)
    times = np.bincount(np.concatenate([sample_rows(triples, 0.25, "relation", seed) for seed in range(400)]))
    assert (np.abs(times - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_rates_outside_0_to_1_are_refused(rate: float) -> None:
    """The message names the rate."""
    with pytest.raises(BadRequest, match=r"sample rate is .*, must be above 0 and at most 1"):
        sample_rows(np.zeros((3, 3), np.int32), rate, None, 0)


def test_unknown_strata_and_seeds_are_refused() -> None:
    """The message lists the strata, or names the seed."""
    with pytest.raises(BadRequest, match="stratify by 'degree' is not one of relation, head, tail"):
        sample_rows(np.zeros((3, 3), np.int32), 0.5, "degree", 0)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="seed is -1"):
        sample_rows(np.zeros((3, 3), np.int32), 0.5, None, -1)
