"""Queries on a GPU: as many operations for a batch as for one, few waits, no tensor on the wrong device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import open_index
from kgtrace_indexer.names import Order, Score
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
