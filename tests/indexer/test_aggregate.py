"""Sums of influence by group, against sums by hand; bounds of sums, against what they bound."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kgtrace_indexer import Attributor, Restriction, open_attributor
from kgtrace_indexer.aggregate import GroupSums
from kgtrace_store.errors import Abandoned, BadRequest

ORDERS = ("proponents", "opponents", "absolute")
TEST = np.array([3, 5, 9])


def value(sums: np.ndarray, order: str) -> np.ndarray:
    return {"proponents": sums, "opponents": -sums, "absolute": np.abs(sums)}[order]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
    st.integers(1, 6),
    st.sampled_from(ORDERS),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.01, 0.5]),
)
@settings(deadline=None, max_examples=300)
def test_bounds_of_sums_hold(seed: int, rows: int, size: int, order: Any, top_k: int, slack: float) -> None:
    """Whatever the true influences within the slack: sums are within the errors, and certified rankings are theirs."""
    rng = np.random.default_rng(seed)
    groups, estimate = rng.integers(0, size, rows), rng.standard_normal(rows).astype(np.float32)
    slacks = (slack * rng.random(rows)).astype(np.float32)
    truth = estimate.astype(np.float64) + slacks * rng.uniform(-1, 1, rows)
    sums = GroupSums(size)
    for part in np.array_split(np.arange(rows), 3):
        sums.add(*(torch.from_numpy(array[part]) for array in (groups, estimate, slacks)))
    found = sums.best(order, top_k)
    members = [truth[groups == group] for group in found.groups]
    assert found.sums.counts.tolist() == [len(part) for part in members]
    for exactly, estimated in (
        ([part.sum() for part in members], found.sums.sums),
        ([part[part > 0].sum() for part in members], found.sums.positive),
        ([part[part < 0].sum() for part in members], found.sums.negative),
    ):
        assert (np.abs(exactly - estimated) <= found.sums.errors + 1e-9).all()
    np.testing.assert_allclose(found.total.sums, estimate.astype(np.float64).sum(), atol=1e-9)
    present = np.unique(groups)
    assert len(found.groups) == min(top_k, len(present))
    if found.certified:
        exactly = value(np.array([truth[groups == group].sum() for group in present]), order)
        np.testing.assert_allclose(
            value(np.array([part.sum() for part in members]), order), np.sort(exactly)[::-1][:top_k]
        )
    if not slack:
        assert found.certified


@pytest.fixture(scope="module")
def attributor(umls_index: Path) -> Attributor:
    return open_attributor(umls_index, device="cpu")


@pytest.fixture(scope="module")
def influences(attributor: Attributor) -> np.ndarray:
    """(n,) float64: of every training triple on the test triple."""
    return attributor.exact_influences(TEST[None], np.arange(len(attributor)))[:, 0].astype(np.float64)


@pytest.mark.parametrize("by", ["relation", "head", "tail"])
def test_sums_are_those_of_all_influences(attributor: Attributor, influences: np.ndarray, by: Any) -> None:
    """Exact ones to the last digits of float32; estimates within their errors."""
    column = np.asarray(attributor.training.triples[:, ("head", "relation", "tail").index(by)])
    every = np.unique(column)
    for order in ORDERS:
        estimated = attributor.aggregate(TEST, by, top_k=1000, order=order)
        for group, total, error in zip(estimated.groups, estimated.sums.sums, estimated.sums.errors, strict=True):
            assert abs(influences[column == group].sum() - total) <= error
        assert set(estimated.groups) == set(every)
        assert estimated.total.counts == len(attributor)
    exact = attributor.aggregate(TEST, by, top_k=5, exact=True)
    truth = np.array([influences[column == group].sum() for group in every])
    np.testing.assert_allclose(exact.sums.sums, np.sort(truth)[::-1][:5], rtol=1e-4, atol=1e-5)
    assert exact.certified
    assert not exact.sums.errors.any()
    np.testing.assert_allclose(exact.total.sums, influences.sum(), rtol=1e-4)


def test_only_training_triples_that_may_be_named_count(attributor: Attributor, influences: np.ndarray) -> None:
    """Fields and neighbourhood restrict sums as they restrict queries."""
    triples = attributor.training.triples
    restriction = Restriction(must_not={"relation": [int(triples[0, 1])]}, within_hops=1)
    count = (triples[:, 1] != triples[0, 1]) & np.isin(triples[:, [0, 2]], TEST[[0, 2]]).any(1)
    for exact in (False, True):
        found = attributor.aggregate(TEST, "relation", top_k=100, exact=exact, restriction=restriction)
        assert found.total.counts == count.sum()
        assert abs(found.total.sums - influences[count].sum()) <= found.total.errors + 1e-3


@pytest.mark.parametrize("exact", [False, True])
def test_sums_that_nobody_waits_for_are_given_up(attributor: Attributor, exact: bool) -> None:
    """As exact scans are, between two blocks."""
    with pytest.raises(Abandoned, match="5216 training triples"):
        attributor.aggregate(TEST, "head", exact=exact, wanted=lambda: False)


def test_wrong_questions_are_refused(attributor: Attributor) -> None:
    """As of a query."""
    with pytest.raises(BadRequest, match="top_k is 0"):
        attributor.aggregate(TEST, "head", top_k=0)
