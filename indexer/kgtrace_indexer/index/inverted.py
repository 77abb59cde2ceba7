"""An inverted file whose lists are embedding rows: upper bounds of ⟨g_i(z), p⟩ as inner products of 8-bit codes.

Each entry is the gradient of one training triple z in one row i, g = g_i(z) summed over its reads. With s the
row's own scale, and κ that of rounding errors, it is stored as c = round(g/s) and e = ⌈‖g − sc‖/κs⌉, so that for any p,
by Cauchy-Schwarz,

    ⟨g, p⟩  ≤  s⟨c, p⟩ + κse‖p‖  =  s‖p‖ · ⟨[c, e], [p/‖p‖, κ]⟩.

FAISS's `IndexIVFScalarQuantizer` keeps the codes and takes the inner products, with lists that are given to it. Another
engine that takes inner products gives the same bounds with vectors s[c, e] in float32.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kgtrace_indexer.index.rows import RowList, sparingly
from kgtrace_indexer.threads import side_by_side
from kgtrace_store.errors import CorruptGeneration
from kgtrace_store.search import load_faiss, read_faiss, write_inverted_file

_LEVELS = 127
"""Largest code of a number: it fills a signed byte."""
_FLOAT32 = 2e-5
"""Relative error of a float32 inner product of so many numbers, in units of ‖sc‖‖p‖, and of such a norm, and more."""
_BLOCK = 1 << 18
"""Numbers of gradients that are encoded together: they stay in the caches."""
_SMALLEST = 1e-30
"""Least radius of a search, in units of s‖p‖."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Upper bounds of the influence of training triples by one row, in no order."""

    pair: np.ndarray
    """(m,) int64: the number of the query."""
    triple: np.ndarray
    """(m,) int64: the training triple."""
    upper: np.ndarray
    """(m,) float64."""


class Lists(Protocol):
    """The reads of a table: a list for each row, an entry for each training triple."""

    def best(
        self, row: np.ndarray, grad: np.ndarray, count: int, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """Return the `count` entries of largest bound in the lists of rows (P,), for queries p (P, d) float64.

        The second array is the frontier: no other entry of the list has a larger bound, (P,) float64; −∞ where there is
        none. `mask` (n,) leaves only some of all training triples.
        """

    def above(
        self, row: np.ndarray, grad: np.ndarray, radius: np.ndarray, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """Return every entry of the lists of rows (P,) whose bound exceeds a radius (P,) of its own, and the frontier.

        The latter is the radius, unless that is too small for float32.
        """

    def longest(self, row: np.ndarray) -> int:
        """Return the length of the longest of the lists of rows (P,)."""


class InvertedFile:
    """The reads of a table by the training triples of a shard: a list for each row, an entry for each triple."""

    def __init__(self, index: Any, start: int, scale: np.ndarray, width: int) -> None:
        """`index` is FAISS's, of gradients of `width` numbers; `scale` (rows,) is s; `start` is the first triple."""
        self._index = index
        self._start = start
        self.scale = scale
        self.width = width

    @staticmethod
    def write(rows: RowList, path: Path) -> np.ndarray:
        """Encode all lists into a file that is forced to disk, and return s (rows,). Raises `StorageFailed`."""
        width = rows.width
        spans = list(rows.spans(0, len(rows.listed), max(1, _BLOCK // width)))
        largest, sizes = np.zeros(len(rows.offsets) - 1, np.float32), np.zeros(len(rows.offsets) - 1, np.int64)
        for lists, most, counts in sparingly([rows], side_by_side(partial(_extent, rows), spans)):
            largest[lists] = np.maximum(largest[lists], most)
            sizes[lists] += counts
        scale: np.ndarray = np.maximum(largest / np.float32(_LEVELS), np.finfo(np.float32).tiny)
        index = _empty(load_faiss(), width, len(scale))
        encoded = sparingly([rows], side_by_side(partial(_encoded, rows, scale, index.d), spans))
        write_inverted_file(index, path, sizes, _by_list(encoded, sizes))
        return scale

    @classmethod
    def read(cls, path: Path, start: int, scale: np.ndarray, width: int) -> "InvertedFile":
        """Map a file that `write` wrote. Raises `CorruptGeneration`."""
        faiss, index = load_faiss(), read_faiss(path)
        actual = (type(index).__name__, index.d, getattr(index, "nlist", 0), index.metric_type)
        expected = ("IndexIVFScalarQuantizer", _padded(width), len(scale), faiss.METRIC_INNER_PRODUCT)
        if actual != expected or index.sq.qtype != faiss.ScalarQuantizer.QT_8bit_direct_signed:
            raise CorruptGeneration(f"{path} holds {actual}, expected {expected} of signed bytes")
        return cls(index, start, scale, width)

    def best(
        self, row: np.ndarray, grad: np.ndarray, count: int, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """See `Lists.best`."""
        faiss = load_faiss()
        vectors, norm = unit_queries(grad, self._index.d)
        factor = norm * self.scale[row]
        scores = np.empty((len(row), count), np.float32)
        triples = np.empty((len(row), count), np.int64)
        keys, nowhere, chosen = self._keys(row, mask)
        pointers = map(faiss.swig_ptr, (keys, nowhere, scores, triples))
        self._index.search_preassigned_c(len(row), faiss.swig_ptr(vectors), count, *pointers, False, chosen)
        upper = scores.astype(np.float64) * factor[:, None]
        pair, column = np.nonzero(triples >= 0)
        frontier = np.where(triples[:, -1] >= 0, upper[:, -1], -np.inf)
        return Entries(pair, triples[pair, column] + self._start, upper[pair, column]), frontier

    def above(
        self, row: np.ndarray, grad: np.ndarray, radius: np.ndarray, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """See `Lists.above`."""
        faiss = load_faiss()
        vectors, norm = unit_queries(grad, self._index.d)
        vectors, unit, frontier = at_radius(vectors, norm * self.scale[row], radius)
        result = faiss.RangeSearchResult(len(row))
        keys, nowhere, chosen = self._keys(row, mask)
        pointers = map(faiss.swig_ptr, (keys, nowhere))
        self._index.range_search_preassigned_c(len(row), faiss.swig_ptr(vectors), 1.0, *pointers, result, False, chosen)
        limits = faiss.rev_swig_ptr(result.lims, len(row) + 1).astype(np.int64)
        pair = np.arange(len(row)).repeat(np.diff(limits))
        scores = faiss.rev_swig_ptr(result.distances, len(pair)).astype(np.float64)
        triple = faiss.rev_swig_ptr(result.labels, len(pair)).astype(np.int64) + self._start
        return Entries(pair, triple, scores * unit[pair]), frontier

    def longest(self, row: np.ndarray) -> int:
        """See `Lists.longest`."""
        return int(self.lengths(np.unique(row), None).max(initial=0))

    def lengths(self, row: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Return the number of entries that `mask` leaves in the lists of rows (P,), (P,) int64."""
        if mask is None:
            return np.array([self._index.get_list_size(int(number)) for number in row], np.int64)
        return np.array([mask[self._triples(int(number))].sum() for number in row], np.int64)

    def __len__(self) -> int:
        """Return the number of entries."""
        return int(self._index.ntotal)

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield each list: its row (m,), the training triples (m,), and s[c, e] (m, width + 1) float32."""
        faiss, lists = load_faiss(), self._index.invlists
        for row in np.flatnonzero(self.lengths(np.arange(len(self.scale)), None)).tolist():
            triples = self._triples(row)
            codes = faiss.rev_swig_ptr(lists.get_codes(row), len(triples) * self._index.code_size)
            vectors = (codes.reshape(len(triples), -1)[:, : self.width + 1] - np.float32(128)) * self.scale[row]
            vectors[:, -1] *= np.float32(1 + 1e-6)  # for the rounding of se and κ; the errors e cover that of sc
            yield np.full(len(triples), row), triples, vectors

    def _triples(self, row: int) -> np.ndarray:
        """Return the training triples of a list, (m,) int64."""
        faiss, size = load_faiss(), self._index.get_list_size(row)
        if not size:
            return np.empty(0, np.int64)
        triples: np.ndarray = faiss.rev_swig_ptr(self._index.invlists.get_ids(row), size) + self._start
        return triples

    def _keys(self, row: np.ndarray, mask: np.ndarray | None) -> tuple[Any, ...]:
        """Return lists (P,), their distances to centres, of which there are none, and which ids count."""
        faiss, options = load_faiss(), None
        if mask is not None:
            bits = np.packbits(mask[self._start :], bitorder="little")
            options = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(bits))
        return np.ascontiguousarray(row, np.int64), np.zeros(len(row), np.float32), options


def unit_queries(grad: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return [p/‖p‖, κ] for gradients p (P, d), filled up with zeros, (P, length) float32; and ‖p‖ (P,)."""
    norm, width = np.linalg.norm(grad, axis=1), grad.shape[1]
    vectors = np.zeros((len(grad), length), np.float32)
    vectors[:, :width] = grad / np.where(norm > 0, norm, 1)[:, None]
    vectors[:, width] = _unit(width)
    return vectors, norm


def at_radius(vectors: np.ndarray, factor: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide queries (P, ·) so that bounds of a radius (P,) are inner products of 1: engines take one radius for all.

    A bound is its inner product times a factor (P,). The second array is that factor after the division; the third is
    the radius, unless that is too small for float32.
    """
    frontier = np.maximum(radius, factor * _SMALLEST)
    divisor = frontier / np.where(factor > 0, factor, 1)
    divided = vectors / np.where(divisor > 0, divisor, 1)[:, None]
    return np.ascontiguousarray(divided, np.float32), divisor * factor, frontier


def _extent(rows: RowList, span: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lists that some reads belong to, of each the largest number, and how many entries they make."""
    lists, _, grad = rows.sums(span)
    first = np.flatnonzero(np.diff(lists, prepend=-1))
    most = np.maximum.reduceat(np.abs(grad).max(1), first).astype(np.float32)
    return lists[first], most, np.diff(first, append=len(lists))


def _encoded(rows: RowList, scale: np.ndarray, length: int, span: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the list of each entry of some reads (m,), its training triple (m,), and its code (m, length) uint8."""
    lists, triple, grad = rows.sums(span)
    number = (grad / scale[lists].astype(np.float64)[:, None]).astype(np.float32)  # in units of s, or squares underflow
    code, width = np.rint(number), number.shape[1]
    error = _norms(number - code) * (1 + _FLOAT32) + _FLOAT32 * _norms(code)
    stored = np.full((len(number), length), 128, np.uint8)  # FAISS adds so much to a signed byte
    stored[:, :width] = np.add(code, 128, out=code)
    stored[:, width] = 128 + np.ceil(error * (1 + 1e-6) / _unit(width))
    return lists, triple - rows.start, stored


def _norms(x: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.sqrt(np.einsum("md,md->m", x, x).astype(np.float64))
    return norms


def _by_list(encoded: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the codes of each list, then its ids, given entries in the order of lists that have `sizes` (lists,)."""
    ids: list[np.ndarray] = []
    for lists, triple, codes in encoded:
        first = np.flatnonzero(np.diff(lists, prepend=-1)).tolist()
        for start, stop in pairwise([*first, len(lists)]):
            yield codes[start:stop]
            ids.append(triple[start:stop])
            if sum(map(len, ids)) == sizes[lists[start]]:
                yield np.concatenate(ids)
                ids.clear()


def _padded(width: int) -> int:
    """Return the length of a code: FAISS has fast code for multiples of 8, and rounds queries for multiples of 16."""
    length = -(-(width + 1) // 8) * 8
    return length + 8 if length % 16 == 0 else length


def _unit(width: int) -> float:
    """Return κ: no rounding error of `width` numbers, nor of inner products with them, is larger than 127 κs."""
    return float(np.sqrt(width)) * (0.5 + _LEVELS * _FLOAT32) * (1 + 1e-4) / _LEVELS


def _empty(faiss: Any, width: int, lists: int) -> Any:
    length = _padded(width)
    coarse = faiss.IndexFlatIP(length)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, length, lists, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT, False
    )
    index.is_trained = True  # there is nothing to learn, and no coarse quantizer: lists are given
    return index
