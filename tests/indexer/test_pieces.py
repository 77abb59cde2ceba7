"""Sizes follow the device; where its memory is too small after all, halves are computed, and the answers stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.index.codec import PrincipalCodec
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.pieces import in_halves, piece_floats, triples_together
from kgtrace_store import IndexRoot, Vocabulary, layout
from kgtrace_store.arrays import open_arrays
from kgtrace_store.errors import DeviceMemoryFull
from tests.simulated_gpu import simulated_gpu

Umls = tuple[ModelFile, Vocabulary, TripleTable]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOM = 100
"""Loss terms, or triples, that a small device has memory for."""


def _small_device(monkeypatch: pytest.MonkeyPatch, room: int, of: type = ConvE, name: str = "terms") -> list[int]:
    """Let a method run out of memory for longer arguments; return the lengths that it was called with."""
    method, lengths = getattr(of, name), []

    def small(self: Any, first: Any, *others: Any, **options: Any) -> Any:
        lengths.append(len(first))
        if len(first) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return method(self, first, *others, **options)

    monkeypatch.setattr(of, name, small)
    return lengths


def test_pieces_are_of_a_cache_or_of_free_memory() -> None:
    """A GPU of 128 GiB computes 8,192 triples at a time; one that is nearly full fewer, a CPU always as many."""
    assert piece_floats(CPU) == 1 << 20
    assert triples_together(CPU, 20_736) == 256
    for free, least, most in ((1 << 37, 8192, 8192), (1 << 30, 800, 820), (0, 50, 51)):
        with simulated_gpu(free):
            assert least <= triples_together(GPU, 20_736) <= most
            assert piece_floats(GPU) == max(1 << 20, free // 64)


def test_halves_come_in_order() -> None:
    """Each item once, whatever the room."""

    def small(items: list[int]) -> list[int]:
        if len(items) > 3:
            raise torch.OutOfMemoryError
        return items

    pieces = in_halves(small, list(range(13)), "number")
    assert [number for piece in pieces for number in piece] == list(range(13))
    assert max(map(len, pieces)) <= 3


@pytest.mark.parametrize("of", [(ConvE, "terms"), (PrincipalCodec, "encode")], ids=["gradients", "codes"])
def test_a_build_goes_on_in_halves(
    umls: Umls, of: tuple[type, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And indexes the same as batches that fit."""
    config = BuildConfig(dim=4, landmarks=16, device="cpu", precondition="none", batch_size=2 * ROOM)
    few = (umls[0], umls[1], TripleTable(umls[2].ids[:200], umls[2].train_index[:200], 0))
    build(tmp_path / "fitting", *few, config)
    with monkeypatch.context() as patch:
        lengths = _small_device(patch, ROOM, *of)
        build(tmp_path / "halved", *few, config)
    assert max(lengths) > ROOM
    fitting, halved = (
        open_arrays(IndexRoot(tmp_path / name).open().path / layout.GRADIENTS) for name in ("fitting", "halved")
    )
    for name, array in fitting.items():
        np.testing.assert_allclose(halved[name], array, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact", [False, True], ids=["search", "scan"])
def test_a_query_goes_on_in_halves(umls_index: Path, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its test triples, and of the training triples that it computes; answers are those of enough memory."""
    attributor = open_index(umls_index, device="cpu")
    triples = attributor.training.triples[::150].astype(np.int64)
    wanted = attributor.query(triples, exact=exact).attributions
    lengths = _small_device(monkeypatch, 6)
    found = attributor.query(triples, exact=exact).attributions
    assert max(lengths) > 6
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.influence, other.influence, rtol=1e-4)
        assert one.certified


def test_too_little_for_one_triple_is_said(umls_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line that names the way out."""
    attributor = open_index(umls_index, device="cpu")
    _small_device(monkeypatch, 0)
    with pytest.raises(DeviceMemoryFull, match=r"too small for one test triple: .* --device cpu"):
        attributor.query(attributor.training.triples[:2].astype(np.int64))
