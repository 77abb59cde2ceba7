"""The best of many influences at once, against a sort of all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kgtrace_indexer.names import Order
from kgtrace_indexer.query.ranking import Best
from tests.simulated_gpu import simulated_gpu

VALUES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.5, -3.4e38, 3.4e38]
"""Few, so that many are equal: then the first training triple is the better one."""


def _wanted(values: np.ndarray, allowed: np.ndarray, order: Order, top_k: int) -> list[int]:
    sign = {"proponents": values, "opponents": -values, "absolute": abs(values)}[order]
    ranked = np.lexsort((np.arange(len(values)), -sign))
    return [int(row) for row in ranked if allowed[row]][:top_k]


@settings(max_examples=100)
@given(
    influence=st.lists(st.lists(st.sampled_from(VALUES), min_size=23, max_size=23), min_size=1, max_size=4),
    order=st.sampled_from(["proponents", "opponents", "absolute"]),
    top_k=st.sampled_from([1, 5, 40]),
    size=st.sampled_from([1, 4, 23]),
    seed=st.none() | st.integers(0, 100),
)
def test_it_is_a_sort(influence: list[list[float]], order: Order, top_k: int, size: int, seed: int | None) -> None:
    """In blocks of any size, with and without masks; equal influences by ascending row."""
    values = np.array(influence, np.float32)
    allowed = np.ones(values.shape, bool) if seed is None else np.random.default_rng(seed).random(values.shape) < 0.3
    best = Best(len(values), order, top_k, torch.device("cpu"))
    for rows in torch.randperm(23, generator=torch.Generator().manual_seed(0)).split(size):
        mask = None if seed is None else torch.from_numpy(allowed[:, rows.numpy()])
        best.add(rows, torch.from_numpy(values[:, rows.numpy()]), mask)
    for top, own, mask in zip(best.tops(), values, allowed, strict=True):
        assert top.rows.tolist() == _wanted(own, mask, order, top_k)
        np.testing.assert_array_equal(top.influence, own[top.rows.numpy()])
        assert (top.candidates, top.certified, top.bound_gap) == (mask.sum(), True, 0.0)


@pytest.mark.parametrize("order", ["proponents", "absolute"])
def test_on_a_gpu_it_waits_once(order: Order) -> None:
    """For all test triples together, whatever the number of blocks."""
    values = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    here = Best(5, order, 4, values.device)
    here.add(torch.arange(30), values)
    with simulated_gpu() as gpu:
        device = torch.device("cuda")
        there, rows, on_gpu = Best(5, order, 4, device), torch.arange(30, device=device), values.to(device)
        gpu.reset()
        for start in range(0, 30, 6):
            there.add(rows[start : start + 6], on_gpu[:, start : start + 6])
        found = there.tops()
        assert gpu.waits == {"synchronize": 1}
    assert [top.rows.tolist() for top in found] == [top.rows.tolist() for top in here.tops()]
