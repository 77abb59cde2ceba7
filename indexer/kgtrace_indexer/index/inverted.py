"""An inverted file whose lists are embedding rows: upper bounds of ⟨g_i(z), p⟩ as inner products of 8-bit codes.

Each entry is what one training triple z adds to the gradient of one row i, g = g_i(z) summed over its reads. With s the
row's own scale, and κ that of rounding errors, it is stored as c = round(g/s) and e = ⌈‖g − sc‖/κs⌉, so that for any p,
by Cauchy-Schwarz,

    ⟨g, p⟩  ≤  s⟨c, p⟩ + κse‖p‖  =  s‖p‖ · ⟨[c, e], [p/‖p‖, κ]⟩.

FAISS's `IndexIVFScalarQuantizer` keeps the codes and takes the inner products, with lists that are given to it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_indexer.index.rows import RowList
from kgtrace_store.errors import CorruptGeneration
from kgtrace_store.search import load_faiss, read_faiss, write_faiss

_LEVELS = 127
"""Largest code of a number: it fills a signed byte."""
_FLOAT32 = 2e-5
"""Relative error of a float32 inner product of so many numbers, in units of ‖sc‖‖p‖, and more."""
_BLOCK = 1 << 22
"""Numbers of gradients that are encoded together."""
_SMALLEST = 1e-30
"""Least radius of a search, in units of s‖p‖."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Upper bounds of what training triples add to the influence by one row, in no order."""

    pair: np.ndarray
    """(m,) int64: which of the queries."""
    triple: np.ndarray
    """(m,) int64: which training triple."""
    upper: np.ndarray
    """(m,) float64."""


class InvertedFile:
    """The reads of a table by the training triples of a shard: a list for each row, an entry for each triple."""

    def __init__(self, index: Any, start: int, scale: np.ndarray, width: int) -> None:
        """`index` is FAISS's, of gradients of `width` numbers; `scale` (rows,) is s; `start` is the first triple."""
        self._index = index
        self._start = start
        self.scale = scale
        self._width = width

    @classmethod
    def build(cls, rows: RowList) -> "InvertedFile":
        """Encode all lists."""
        faiss = load_faiss()
        reads, width = rows.grad.shape
        index, size = _empty(faiss, width, len(rows.offsets) - 1), max(1, _BLOCK // width)
        largest = np.zeros(len(rows.offsets) - 1)
        for lists, _, grad in rows.blocks(0, reads, size):
            np.maximum.at(largest, lists, np.abs(grad).max(1))
        scale = np.where(largest > 0, largest / _LEVELS, 1).astype(np.float32)
        for lists, triple, grad in rows.blocks(0, reads, size):
            each = scale[lists].astype(np.float64)[:, None]
            codes = np.zeros((len(grad), index.d), np.float32)
            codes[:, :width] = np.clip(np.rint(grad / each), -_LEVELS, _LEVELS)
            near = each * codes[:, :width]
            error = np.linalg.norm(grad - near, axis=1) + _FLOAT32 * np.linalg.norm(near, axis=1)
            codes[:, width] = np.ceil(error / (_unit(width) * each[:, 0]))
            local = triple - rows.start
            index.add_core(len(codes), *map(faiss.swig_ptr, (codes, local, lists)))
        return cls(index, rows.start, scale, width)

    @classmethod
    def read(cls, path: Path, start: int, scale: np.ndarray, width: int) -> "InvertedFile":
        """Map what `write` wrote. Raises `CorruptGeneration`."""
        faiss, index = load_faiss(), read_faiss(path)
        found = (type(index).__name__, index.d, getattr(index, "nlist", 0), index.metric_type)
        wanted = ("IndexIVFScalarQuantizer", _padded(width), len(scale), faiss.METRIC_INNER_PRODUCT)
        if found != wanted or index.sq.qtype != faiss.ScalarQuantizer.QT_8bit_direct_signed:
            raise CorruptGeneration(f"{path} holds {found}, expected {wanted} of signed bytes")
        return cls(index, start, scale, width)

    def write(self, path: Path) -> None:
        """Write the codes and force them to disk. Raises `StorageFailed`."""
        write_faiss(self._index, path, self._index.ntotal * (self._index.code_size + 8))

    def best(
        self, row: np.ndarray, grad: np.ndarray, count: int, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """Return the `count` entries of largest bound in the lists of rows (P,), for queries p (P, d) float64.

        The second array is the frontier: no other entry of the list has a larger bound, (P,) float64; −∞ where there is
        none. `mask` (n,) leaves only some of all training triples.
        """
        faiss = load_faiss()
        asked, factor, keys, chosen = self._asked(row, grad, mask)
        scores = np.empty((len(row), count), np.float32)
        triples = np.empty((len(row), count), np.int64)
        nowhere = np.zeros(len(row), np.float32)  # distances to the lists' centres: there are none
        pointers = map(faiss.swig_ptr, (keys, nowhere, scores, triples))
        self._index.search_preassigned_c(len(row), faiss.swig_ptr(asked), count, *pointers, False, chosen)
        upper = scores.astype(np.float64) * factor[:, None]
        pair, column = np.nonzero(triples >= 0)
        frontier = np.where(triples[:, -1] >= 0, upper[:, -1], -np.inf)
        return Entries(pair, triples[pair, column] + self._start, upper[pair, column]), frontier

    def above(
        self, row: np.ndarray, grad: np.ndarray, radius: np.ndarray, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """Return every entry of the lists of rows (P,) whose bound exceeds a radius (P,) of its own, and the frontier.

        The latter is the radius, unless that is too small for float32.
        """
        faiss = load_faiss()
        asked, factor, keys, chosen = self._asked(row, grad, mask)
        frontier = np.maximum(radius, factor * _SMALLEST)
        divisor = frontier / np.where(factor > 0, factor, 1)  # FAISS takes one radius: 1 for all, after division
        asked = np.ascontiguousarray(asked / np.where(divisor > 0, divisor, 1)[:, None], np.float32)
        found, nowhere = faiss.RangeSearchResult(len(row)), np.zeros(len(row), np.float32)
        pointers = map(faiss.swig_ptr, (keys, nowhere))
        self._index.range_search_preassigned_c(len(row), faiss.swig_ptr(asked), 1.0, *pointers, found, False, chosen)
        limits = faiss.rev_swig_ptr(found.lims, len(row) + 1).astype(np.int64)
        pair = np.arange(len(row)).repeat(np.diff(limits))
        scores = faiss.rev_swig_ptr(found.distances, len(pair)).astype(np.float64)
        triple = faiss.rev_swig_ptr(found.labels, len(pair)).astype(np.int64) + self._start
        return Entries(pair, triple, scores * (divisor * factor)[pair]), frontier

    def longest(self, row: np.ndarray) -> int:
        """Return the length of the longest of the lists of rows (P,)."""
        return max((int(self._index.get_list_size(int(each))) for each in np.unique(row)), default=0)

    def _asked(self, row: np.ndarray, grad: np.ndarray, mask: np.ndarray | None) -> tuple[Any, ...]:
        """Return queries (P, ·), what their inner products are multiplied with, their lists, and which ids count."""
        faiss = load_faiss()
        norm = np.linalg.norm(grad, axis=1)
        asked = np.zeros((len(row), self._index.d), np.float32)
        asked[:, : self._width] = grad / np.where(norm > 0, norm, 1)[:, None]
        asked[:, self._width] = _unit(self._width)
        factor = norm * self.scale[row]
        options = None
        if mask is not None:
            bits = np.packbits(mask[self._start :], bitorder="little")
            options = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(bits))
        return asked, factor, np.ascontiguousarray(row, np.int64), options


def _padded(width: int) -> int:
    """Return the length of a code: FAISS has fast code for multiples of 8, and rounds queries for multiples of 16."""
    length = -(-(width + 1) // 8) * 8
    return length + 8 if length % 16 == 0 else length


def _unit(width: int) -> float:
    """Return κ: no rounding error of `width` numbers, nor of inner products with them, is larger than 127 κs."""
    return float(np.sqrt(width)) * (0.5 + _LEVELS * _FLOAT32) * (1 + 1e-6) / _LEVELS


def _empty(faiss: Any, width: int, lists: int) -> Any:
    length = _padded(width)
    coarse = faiss.IndexFlatIP(length)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, length, lists, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT, False
    )
    index.is_trained = True  # there is nothing to learn, and no coarse quantizer: lists are given
    return index
