"""Sums of influence by group, against sums by hand; bounds of sums, against what they bound."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kgtrace_indexer import Attributor, BuildConfig, Restriction, build, open_index
from kgtrace_indexer.query import aggregate as engine, total as totals
from kgtrace_indexer.query.aggregate import GroupSums
from tests.indexer.models.zoo import Save, factory, nations, save

__all__ = ["nations", "save"]  # fixtures
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


class Widest(TorchDispatchMode):
    """Remembers the largest tensor that was computed, but for those that were changed in place."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func._schema.is_mutable and torch.is_tensor(result):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_what_a_block_adds_costs_nothing_for_other_groups() -> None:
    """However many groups there are: millions of training triples are added thousands at a time."""
    sums = GroupSums(1_000_000)
    with Widest() as widest:
        sums.add(torch.tensor([5, 999_999, 5]), torch.ones(3), torch.zeros(3))
    assert 3 <= widest.numbers < 100
    found = sums.best("proponents", 2)
    assert found.groups.tolist() == [5, 999_999]
    assert found.sums.counts.tolist() == [2, 1]


@pytest.fixture(scope="module")
def attributor(umls_index: Path) -> Attributor:
    return open_index(umls_index, device="cpu")


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


# Over several test triples.

MANY = np.array([[3, 5, 9], [3, 5, 10], [20, 5, 9], [3, 5, 9], [7, 12, 7]])
RESTRICTIONS = (
    Restriction(),
    Restriction(must_not={"relation": [5]}),
    Restriction(within_hops=1),
    Restriction(must={"relation": [5, 12, 13]}, within_hops=2),
)


def _counts(attributor: Attributor, tests: np.ndarray, restriction: Restriction) -> np.ndarray:
    """Return which training triples count for which test triples, (n, b) bool."""
    triples = np.asarray(attributor.training.triples)
    found = np.ones((len(triples), len(tests)), bool)
    for field, ids in restriction.must.items():
        found &= np.isin(triples[:, ("head", "relation", "tail").index(field)], list(ids))[:, None]
    for field, ids in restriction.must_not.items():
        found &= ~np.isin(triples[:, ("head", "relation", "tail").index(field)], list(ids))[:, None]
    for i, test in enumerate(tests):
        near = set(test[[0, 2]].tolist())
        for _ in range((restriction.within_hops or 1) - 1):
            touched = np.isin(triples[:, [0, 2]], list(near)).any(1)
            near |= set(triples[touched][:, [0, 2]].ravel().tolist())
        if restriction.within_hops is not None:
            found[:, i] &= np.isin(triples[:, [0, 2]], list(near)).any(1)
    return found


def _check_sums(
    attributor: Attributor, tests: np.ndarray, restriction: Restriction, direction: Any, score: Any
) -> None:
    """Compare sums of all kinds with the sums of each test triple's influences."""
    triples = np.asarray(attributor.training.triples)
    every = np.arange(len(attributor))
    each = attributor.exact_influences(tests, every, direction, score=score).astype(np.float64)
    counts = _counts(attributor, tests, restriction)
    total, scale = (each * counts).sum(1), np.abs(each * counts).sum(1)
    some = counts.any(1)
    off = 1e-4 * scale.max()
    options: Any = {"restriction": restriction, "direction": direction, "score": score}
    for by in ("relation", "head", "tail"):
        column = triples[:, ("head", "relation", "tail").index(by)]
        for exact in (False, True):
            found = attributor.aggregate(tests, by, top_k=1000, exact=exact, **options)
            assert set(found.groups) == set(column[some])
            assert found.total.counts == some.sum()
            for group, count, summed, positive, error in zip(
                found.groups, found.sums.counts, found.sums.sums, found.sums.positive, found.sums.errors, strict=True
            ):
                members = total[some & (column == group)]
                slack = error + 1e-4 * scale[column == group].sum() + 1e-6 * scale.max()  # small ones cancel
                assert count == len(members)
                assert abs(members.sum() - summed) <= slack
                assert abs(members[members > 0].sum() - positive) <= slack
                assert not exact or error == 0
    for order in ORDERS:
        ranked = np.sort(value(total[some], order))[::-1][:7]
        found = attributor.aggregate(tests, "triple", top_k=7, order=order, **options)
        assert found.certified
        assert not found.sums.errors.any()
        assert (found.sums.counts == 1).all()
        np.testing.assert_allclose(value(found.sums.sums, order), ranked, rtol=1e-4, atol=off)
        np.testing.assert_allclose(found.sums.sums, total[found.groups], rtol=1e-4, atol=off)
        assert found.total.counts == some.sum()


@pytest.mark.parametrize("score", ["tracin", "preconditioned"])
@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=["all", "filter", "hop", "filter and hops"])
def test_sums_over_test_triples_are_those_of_each(
    attributor: Attributor, restriction: Restriction, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By group and by training triple, estimated and exact, for either score, whatever is filtered; in small blocks."""
    monkeypatch.setattr(engine, "_TEST_BLOCK", 2)
    monkeypatch.setattr(engine, "_BRACKET_BLOCK", 1000)
    monkeypatch.setattr(totals, "_PENDING", 4)
    _check_sums(attributor, MANY, restriction, "tail", score)
    estimated = score == "tracin" and restriction.within_hops is not None
    found = attributor.aggregate(MANY, "head", score=score, restriction=restriction)
    assert bool(found.total.errors.any()) == estimated  # in dense layers; the sum's has no bounds


@pytest.mark.parametrize(
    ("name", "loss", "projection"),
    [
        ("ComplEx", "removal", "pca"),
        ("ConvE", "ce-1vsall", "pca"),
        ("ERMLP", "margin", "pca"),
        ("TuckER", "bce", "gaussian"),
    ],
)
@pytest.mark.parametrize("inverse", [False, True], ids=["plain", "inverse"])
def test_sums_of_every_kind_of_gradient(
    save: Save, nations: Any, name: str, loss: str, projection: str, inverse: bool, tmp_path: Path
) -> None:
    """Tables alone, losses of all tails, negatives, factors of large tensors, and an index without bounds."""
    config = BuildConfig(loss=loss, projection=projection, precondition="none", dim=8, landmarks=40)
    build(tmp_path, save(name, inverse).model, *nations, config)
    opened = open_index(tmp_path, device="cpu")
    tests = factory(False).mapped_triples.numpy()[[0, 400, 900, 901]]
    heads = inverse or loss != "ce-1vsall"
    for restriction in (Restriction(), Restriction(must_not={"tail": [int(tests[0, 2])]}, within_hops=1)):
        _check_sums(opened, tests, restriction, "head" if heads else "tail", "tracin")


def test_sums_over_checkpoints(save: Save, nations: Any, tmp_path: Path) -> None:
    """Each checkpoint has tables, and lists of their rows, of its own."""
    model = save("ComplEx", True).model
    model = replace(model, checkpoints=((0.5, save("ComplEx", True, trained=True).model), (2.0, model)))
    build(tmp_path, model, *nations, BuildConfig(loss="bce", precondition="none", dim=8, landmarks=40))
    opened = open_index(tmp_path, device="cpu")
    tests = factory(False).mapped_triples.numpy()[[0, 400, 900]]
    _check_sums(opened, tests, Restriction(), "head", "tracin")
    _check_sums(opened, tests, Restriction(), "tail", "preconditioned")
    assert not opened.aggregate(tests, "head").total.errors.any()  # all of it is in embedding rows


def test_sums_over_test_triples_are_given_up(attributor: Attributor) -> None:
    """As those of one are, whatever takes the time."""
    for by in ("head", "triple"):
        with pytest.raises(Abandoned):
            attributor.aggregate(MANY, by, wanted=lambda: False)
    with pytest.raises(BadRequest, match="damping is of the preconditioned score"):
        attributor.aggregate(MANY, "head", damping=2.0)
