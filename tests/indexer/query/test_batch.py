"""A batch of test triples is answered as each of them would be alone, in about as many operations."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kgtrace_indexer import Attributor, Restriction, open_index
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.names import Score
from kgtrace_indexer.query import cascade, row_search
from kgtrace_indexer.query.certify import value
from kgtrace_indexer.threads import one_thread
from tests.indexer.query.test_certify import ORDERS, Case, cases


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and run it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def attributor(umls_index: Path) -> Attributor:
    return open_index(umls_index, device="cpu")


@pytest.mark.parametrize(
    ("score", "size", "most"),
    [("preconditioned", 1, 430), ("preconditioned", 64, 600), ("tracin", 1, 1800), ("tracin", 64, 8500)],
)
def test_operations_hardly_grow_with_the_batch(attributor: Attributor, score: Score, size: int, most: int) -> None:
    """Gradient and ranks included."""
    triples = attributor.training.triples[:: len(attributor) // 64][:size].astype(np.int64)
    attributor.query(triples, score=score)
    with one_thread(), Operations() as operations:  # which sees those of its own thread
        attributor.query(triples, score=score)
    assert operations.count <= most


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("restriction", [Restriction(), Restriction(must={"relation": {3, 5}})], ids=["all", "filter"])
def test_what_the_first_entries_leave_open(
    attributor: Attributor, order: Any, restriction: Restriction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is searched for in whole lists; budgets are kept, and their gaps true."""
    monkeypatch.setattr(row_search, "_FIRST_HITS", 1)
    monkeypatch.setattr(row_search, "_FIRST_EXACT", 1)
    asked: dict[str, Any] = {"order": order, "top_k": 3, "restriction": restriction, "score": "preconditioned"}
    triples = attributor.training.triples[::260].astype(np.int64)
    wanted = attributor.query(triples, exact=True, **asked).attributions
    for found, exact in zip(attributor.query(triples, **asked).attributions, wanted, strict=True):
        assert found.certified
        np.testing.assert_allclose(found.influence, exact.influence, rtol=1e-4, atol=1e-6)
    cut = attributor.query(triples, max_candidates=2, **asked).attributions
    assert not all(found.certified for found in cut)
    for found, exact in zip(cut, wanted, strict=True):
        assert found.candidates <= 2
        last = value(found.influence, order)[-1] if len(found.influence) == 3 else 0.0
        missed = value(exact.influence, order)[~np.isin(exact.train_index, found.train_index)]
        assert missed.max(initial=-np.inf) <= last + found.bound_gap + 1e-6


def test_a_triple_that_is_large_by_either_sign_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pairs are taken at a time."""
    monkeypatch.setattr(cascade, "_PAIRS", 1)
    case = Case(
        seed=0, triples=76, scale=0.2, dim=1, layers="all", both=False, dtype=torch.float16, loss="bce-kvsall"
    )  # fmt: skip
    terms = case.test_terms(0)
    (found,) = case.retrieval.find(terms, case.ask(terms, top_k=6, order="absolute"))
    assert len(found.rows.unique()) == 6
    best = value(case.truth[:, 0], "absolute").topk(6).values
    torch.testing.assert_close(value(found.influence, "absolute").double(), best, rtol=1e-4, atol=1e-6 * case.magnitude)


@given(cases, st.integers(1, 20), st.sampled_from(ORDERS), st.data())
@settings(max_examples=60)
def test_a_batch_is_its_triples(case: Case, top_k: int, order: str, data: st.DataObject) -> None:
    """Whatever the model, score, filter and shards are; and each answer is that of the full scan."""
    count = data.draw(st.integers(1, len(case.queries)))
    masks: list[np.ndarray | None] = [None] * count
    if data.draw(st.booleans()):
        masks = [np.array(data.draw(st.lists(st.booleans(), min_size=case.triples, max_size=case.triples)))] * count
    if data.draw(st.booleans()):  # each its own
        masks = [np.roll(np.arange(case.triples) % 3 > 0, i) if i % 4 else None for i in range(count)]

    def find(terms: Terms, allowed: list[np.ndarray | None]) -> list[Any]:
        return case.retrieval.find(terms, replace(case.ask(terms, top_k=top_k, order=order), allowed=allowed))

    together = case.of_score.test_terms(case.queries[:count], "tail")
    if case.damping is not None and case.preconditioner is not None:
        together = case.preconditioner(together, case.damping)
    with patch.object(cascade, "_PAIRS", data.draw(st.sampled_from([20, 1 << 20]))):
        tops = find(together, masks)
    for i, (found, mask) in enumerate(zip(tops, masks, strict=True)):
        (alone,) = find(case.test_terms(i), [mask])
        tolerance = {"rtol": 1e-4, "atol": 1e-6 * case.magnitude}
        torch.testing.assert_close(found.influence, alone.influence, **tolerance)
        allowed = torch.arange(case.triples) if mask is None else torch.from_numpy(np.flatnonzero(mask))
        truth = value(case.truth[:, i], order)
        assert found.certified
        assert set(found.rows.tolist()) <= set(allowed.tolist())
        best = truth[allowed].topk(min(top_k, len(allowed))).values
        torch.testing.assert_close(truth[found.rows], best, **tolerance)
