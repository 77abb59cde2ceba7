"""Queries on a GPU: as many operations for a batch as for one, few waits, no tensor on the wrong device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import Restriction, open_index
from kgtrace_indexer.index import bounds
from kgtrace_indexer.index.query_code import encode_queries
from kgtrace_indexer.names import Order, Score
from kgtrace_indexer.query import resident_search
from kgtrace_indexer.query.cascade import Cascade
from kgtrace_indexer.threads import one_thread
from tests.simulated_gpu import simulated_gpu

KERNELS = 600
"""Of a batch."""
WAITS = 10
SCORES: tuple[Score, ...] = ("preconditioned", "tracin")


@pytest.mark.parametrize(("size", "exact"), [(1, False), (16, False), (64, False), (64, True)])
@pytest.mark.parametrize("score", SCORES)
def test_a_batch_takes_few_kernels_and_waits_and_answers_as_on_the_cpu(
    umls_index: Path, score: Score, size: int, exact: bool
) -> None:
    """Gradient, ranks, search and certificate included; or a full scan."""
    on_cpu = open_index(umls_index, device="cpu")
    triples = on_cpu.training.triples[:: len(on_cpu) // 64][:size].astype(np.int64)
    with simulated_gpu() as gpu, one_thread():
        on_gpu = open_index(umls_index, device="cuda")
        gpu.reset()
        found = on_gpu.query(triples, score=score, exact=exact).attributions
        assert gpu.kernels.total() <= KERNELS
        assert gpu.waits.total() <= WAITS
    for there, here in zip(found, on_cpu.query(triples, score=score).attributions, strict=True):
        assert there.certified
        np.testing.assert_allclose(there.influence, here.influence, rtol=1e-4)
        np.testing.assert_allclose(there.score, here.score, rtol=1e-4)


@pytest.mark.parametrize("order", ["opponents", "absolute"])
@pytest.mark.parametrize("exact", [False, True], ids=["search", "scan"])
def test_every_way_of_asking_answers_as_on_the_cpu(
    umls_index: Path, order: Order, exact: bool, device: torch.device
) -> None:
    """By either score, for heads."""
    on_cpu, there = open_index(umls_index, device="cpu"), open_index(umls_index, device=device.type)
    triples = on_cpu.training.triples[:8:4].astype(np.int64)
    for score in SCORES:
        asked: dict[str, Any] = {"score": score, "order": order, "exact": exact, "direction": "head", "top_k": 5}
        with one_thread():
            found, wanted = (attributor.query(triples, **asked).attributions for attributor in (there, on_cpu))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.influence, other.influence, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("restriction", [None, "relation", "hops"])
@pytest.mark.parametrize("score", SCORES)
def test_short_memory_changes_no_answer(
    umls_index: Path, score: Score, restriction: str | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some test triples at a time, and some training triples; each with a filter of its own, or with one for all."""
    on_cpu, there = open_index(umls_index, device="cpu"), open_index(umls_index, device=device.type)
    triples = on_cpu.training.triples[:500:99].astype(np.int64)
    among = {
        None: Restriction(),
        "relation": Restriction(must={"relation": {int(triples[0, 1])}}),
        "hops": Restriction(within_hops=1),
    }[restriction]
    monkeypatch.setattr(resident_search, "piece_floats", lambda device: 2 * 8 * len(on_cpu))
    monkeypatch.setattr(bounds, "piece_floats", lambda device: 1000)
    for top_k in (3, 6000):
        asked: dict[str, Any] = {"score": score, "top_k": top_k, "order": "absolute", "restriction": among}
        with one_thread():
            found, wanted = (attributor.query(triples, **asked).attributions for attributor in (there, on_cpu))
        for one, other in zip(found, wanted, strict=True):
            assert one.certified
            assert other.certified
            assert len(one.influence) == len(other.influence) > 0
            largest = np.abs(other.influence).max()
            np.testing.assert_allclose(one.influence, other.influence, rtol=1e-4, atol=1e-5 * largest)


def test_bounds_of_all_training_triples_are_those_of_each(umls_index: Path, device: torch.device) -> None:
    """Side by side, for some test triples of a batch."""
    on_cpu, there = open_index(umls_index, device="cpu"), open_index(umls_index, device=device.type)
    rows, found = torch.arange(len(on_cpu)), []
    with torch.inference_mode():
        for attributor in (on_cpu, there):
            terms = attributor.featurizer.plain.test_terms(on_cpu.training.triples[:3].astype(np.int64), "tail")
            cascade = attributor._retrievals["tracin"]
            assert isinstance(cascade, Cascade)
            queries = encode_queries(terms, cascade.bases, cascade.codes.device)
            estimate, slack = (each.cpu() for each in cascade.codes.bracket_all(queries, slice(1, 3)))
            for number in (1, 2):
                of_each, off = cascade.codes.bracket(queries, torch.full_like(rows, number), rows)
                on_rows = cascade.codes.rows.influences(queries.rows, np.full(len(rows), number), rows.numpy())
                wanted, largest = of_each - torch.from_numpy(on_rows).float(), float(of_each.abs().max())
                np.testing.assert_allclose(estimate[number - 1], wanted, rtol=1e-3, atol=1e-5 * largest)
                np.testing.assert_allclose(slack[number - 1], off, rtol=1e-3)
            found.append(estimate)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))
