"""Gradients of embedding rows keep their precision on disk, and the inverted file bounds them whatever the query."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kgtrace_indexer.gradients.reads import Reads
from kgtrace_indexer.index.inverted import InvertedFile
from kgtrace_indexer.index.rows import RowList, list_reads, read_codes
from kgtrace_store.search import load_faiss, read_faiss

ROWS, TRIPLES = 5, 40


def row_list(seed: int, width: int, scale: float) -> tuple[RowList, np.ndarray]:
    """Three reads by each of some triples, some of the same row, of very uneven size; and their gradients."""
    rng = np.random.default_rng(seed)
    grad = (scale * rng.standard_normal((TRIPLES, 3, width)) * 10.0 ** rng.integers(-4, 1, (TRIPLES, 3, 1))).astype(
        "f4"
    )
    grad[rng.random(TRIPLES) < 0.2, 1] = 0
    index = torch.from_numpy(rng.integers(0, ROWS - 1, (TRIPLES, 3)))
    reads = Reads({"t": range(3)}, {"t": width}, index, torch.from_numpy(grad))
    stored = {name: codes.numpy() for name, codes in read_codes(reads).items()}
    listed = {f"t.{name}": array for name, array in list_reads(stored["t.row"], ROWS).items()}
    return RowList.of(100, "t", stored | listed), grad.reshape(-1, width)


lists = st.builds(
    row_list,
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 7, 15, 200]),
    scale=st.sampled_from([1e-42, 1e-20, 1.0, 1e15]),
)


@settings(max_examples=40)
@given(lists)
def test_stored_gradients_are_those_computed(found: tuple[RowList, np.ndarray]) -> None:
    """Up to 2⁻²⁴ √d of their norm."""
    rows, grad = found
    wide = grad.astype(np.float64)
    error = np.linalg.norm(rows.gradients(np.arange(len(grad))) - wide, axis=1)
    assert (error <= 1.01 * 2.0**-24 * np.sqrt(grad.shape[1]) * np.linalg.norm(wide, axis=1) + 1e-45).all()


@settings(max_examples=40, deadline=None)
@given(lists, st.integers(0, 2**32 - 1))
def test_entries_bound_gradients_in_the_worst_direction(
    tmp_path_factory: pytest.TempPathFactory, found: tuple[RowList, np.ndarray], seed: int
) -> None:
    """Where the query points along what rounding left out of an entry, its bound holds, and hardly more."""
    rows, _ = found
    path = tmp_path_factory.mktemp("lists") / "lists.faiss"
    scale = InvertedFile.write(rows, path)
    file, faiss, index = InvertedFile.read(path, rows.start, scale, rows.width), load_faiss(), read_faiss(path)
    code = index.code_size
    for row in range(ROWS):
        _, triple, grad = rows.summed(np.array([row]))
        size = index.invlists.list_size(row)
        assert size == len(triple)
        if not size:
            continue
        codes = (
            faiss.rev_swig_ptr(index.invlists.get_codes(row), size * code).reshape(size, code).astype(np.int64) - 128
        )
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(row), size)
        np.testing.assert_array_equal(ids + rows.start, triple)
        left = grad - scale[row] * codes[:, : rows.width].astype(np.float64)
        for number in np.random.default_rng(seed).choice(size, min(3, size), replace=False):
            for asked in (left[number], grad[number], -grad[number]):
                if np.linalg.norm(asked) < 1e-30:
                    continue
                entries, _ = file.best(np.array([row]), asked[None], size, None)
                upper = dict(zip(entries.triple.tolist(), entries.upper.tolist(), strict=True))[int(triple[number])]
                exact, slack = grad[number] @ asked, scale[row] * np.sqrt(rows.width) * np.linalg.norm(asked)
                assert exact <= upper <= exact + 1.1 * slack
