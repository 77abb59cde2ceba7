"""Maximum inner product search over float32 vectors: the protocol, FAISS behind it, and a plain oracle.

Scores are float32 inner products and carry its rounding; the last digits depend on how many queries share a
call. Whoever compares them with a bound computed elsewhere adds a slack that is larger.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kgtrace_store import durable
from kgtrace_store.errors import BadRequest, CorruptGeneration, InputError, MissingExtra, NonFinite

NO_HIT = -1
"""Fills the ids of a result with fewer rows than requested. Not an id: as a Python index it means the
last."""

_DECODED_ROWS = 16_384
"""Vectors decoded at a time in a range search: they stay in the caches."""

_BLAS_WORK_PER_THREAD = 800
"""Queries × dimensions, per thread, from which FAISS's BLAS path is the faster one."""


class SearchIndex(Protocol):
    """Vectors that can be searched for their largest inner products with a query."""

    @property
    def ntotal(self) -> int:
        """Number of vectors; their ids are 0..ntotal - 1."""

    @property
    def dim(self) -> int:
        """Length of each vector."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` largest inner products of each row of ``queries`` (b, dim).

        Returns scores (b, k) float32, descending, and ids (b, k) int64. With fewer than ``k`` vectors the
        rest is padded with ``-inf`` and :data:`NO_HIT`. Raises :class:`BadRequest` for NaN, infinity, another
        dimension or ``k`` below 1.
        """

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """All vectors whose inner product with ``query`` (dim,) is at least ``threshold``, in no order.

        Returns scores (m,) float32 and ids (m,) int64. Raises :class:`BadRequest` as :meth:`search` does.
        """


@runtime_checkable
class FilteringIndex(SearchIndex, Protocol):
    """An index whose engine knows heads, relations and tails, and so looks at the requested training triples alone."""

    def where(
        self, must: Mapping[str, Iterable[int]], must_not: Mapping[str, Iterable[int]], count: int
    ) -> SearchIndex:
        """The vectors of training triples each of whose fields (``head``, ``relation``, ``tail``) is one, or none, of
        some ids; ``count`` is how many these are, at least one. Ids stay as they are."""


class ExactSearch:
    """The oracle: one matrix product and a sort. It needs no FAISS, and memory for all scores at once."""

    def __init__(self, vectors: np.ndarray) -> None:
        """``vectors``: (n, dim) float32."""
        self._vectors = vectors

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return int(self._vectors.shape[0])

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return int(self._vectors.shape[1])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SearchIndex.search`; equal scores come in ascending order of id."""
        queries = checked_queries(queries, self.dim, k)
        scores = queries @ self._vectors.T  # (b, dim) @ (dim, n) -> (b, n)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)  # (b, min(k, n))
        return padded(np.take_along_axis(scores, ids, axis=1), ids, k)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SearchIndex.range_search`."""
        query = checked_query(query, self.dim, threshold)
        scores = self._vectors @ query  # (n, dim) @ (dim,) -> (n,)
        ids = np.flatnonzero(scores > radius_of(threshold)).astype(np.int64)
        return scores[ids], ids


class FaissSearch:
    """FAISS's exhaustive inner product index: every query reads all of it, two or four bytes a number.

    Scores are exact for the numbers that are stored: float32, or bfloat16.
    """

    def __init__(self, index: Any) -> None:
        """``index``: a ``faiss.IndexFlatIP``, or an ``IndexScalarQuantizer`` of bfloat16; :meth:`build` and
        :meth:`read` make one."""
        self._index = index

    @classmethod
    def build(cls, blocks: Iterable[np.ndarray], count: int, dim: int, *, half: bool = False) -> FaissSearch:
        """Index ``count`` vectors that come in blocks (m, dim) float32; memory holds them once, plus a block.

        With ``half`` they are rounded to bfloat16, which takes half the memory; ``dim`` should then be a
        multiple of 8, for which FAISS has fast code.

        Raises :class:`InputError` when the blocks hold another number or length of vectors,
        :class:`NonFinite` for NaN or infinity and :class:`MissingExtra`.
        """
        faiss = load_faiss()
        index = _half_index(faiss, dim) if half else faiss.IndexFlatIP(dim)
        # Adding block by block would double the buffer again and again, with old and new in memory at once.
        index.codes.resize(count * index.sa_code_size())
        rows = _codes(faiss, index, count)
        start = 0
        for block in blocks:
            if block.ndim != 2 or block.shape[1] != dim:
                raise InputError(f"expected blocks of shape (m, {dim}), found {block.shape}")
            if start + len(block) > count:
                raise InputError(f"expected {count} vectors, found at least {start + len(block)}")
            if not np.isfinite(block).all():
                bad = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise NonFinite(f"vector {start + bad} contains NaN or infinity")
            rows[start : start + len(block)] = index.sa_encode(np.ascontiguousarray(block, np.float32))
            start += len(block)
        if start != count:
            raise InputError(f"expected {count} vectors, found {start}")
        index.ntotal = count
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> FaissSearch:
        """Open a file that :meth:`write` wrote as a memory map: at once, and shared between processes.

        FAISS does not notice damaged numbers: compare the file's checksum first. Raises
        :class:`CorruptGeneration` for a missing, truncated or foreign file and :class:`MissingExtra`.
        """
        faiss, index = load_faiss(), read_faiss(path)
        if type(index) is not faiss.IndexFlatIP and not _is_half(faiss, index):
            raise CorruptGeneration(
                f"{path} holds a {type(index).__name__}, expected IndexFlatIP, or IndexScalarQuantizer of bfloat16"
            )
        return cls(index)

    def write(self, path: Path) -> None:
        """Write the index and force it to disk. Raises :class:`StorageFailed`."""
        write_faiss(self._index, path, self.ntotal * self._index.sa_code_size())

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return int(self._index.d)

    def vectors(self) -> Iterator[np.ndarray]:
        """The stored vectors in blocks (m, dim) float32, in order."""
        half = _is_half(load_faiss(), self._index)
        codes = _codes(load_faiss(), self._index, self.ntotal).view(np.uint16 if half else np.float32)
        for start in range(0, self.ntotal, _DECODED_ROWS):
            block = codes[start : start + _DECODED_ROWS]
            yield _decoded(block) if half else block

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SearchIndex.search`."""
        queries = checked_queries(queries, self.dim, k)
        count = min(k, self.ntotal)
        if not count or not len(queries):
            empty = (len(queries), 0)
            return padded(np.empty(empty, np.float32), np.empty(empty, np.int64), k)
        scores, ids = self._index.search(queries, count)
        return padded(scores, ids, k)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SearchIndex.range_search`."""
        query = checked_query(query, self.dim, threshold)
        faiss = load_faiss()
        if not _is_half(faiss, self._index):
            _, scores, ids = self._index.range_search(query[None], float(radius_of(threshold)))
            return scores, ids
        # FAISS compares scalar-quantized codes one virtual call after the other here: 150 times slower.
        scores = np.concatenate([np.empty(0, np.float32), *(block @ query for block in self.vectors())])  # (n,)
        ids = np.flatnonzero(scores > radius_of(threshold)).astype(np.int64)
        return scores[ids], ids


def _half_index(faiss: Any, dim: int) -> Any:
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True  # there is nothing to learn about bfloat16
    return index


def _is_half(faiss: Any, index: Any) -> bool:
    return (
        type(index) is faiss.IndexScalarQuantizer
        and index.sq.qtype == faiss.ScalarQuantizer.QT_bf16
        and index.metric_type == faiss.METRIC_INNER_PRODUCT
    )


def _codes(faiss: Any, index: Any, count: int) -> np.ndarray:
    """The stored bytes of ``count`` vectors, (count, bytes of one) uint8; no copy."""
    size = index.sa_code_size()
    if not count:
        return np.empty((0, size), np.uint8)
    codes: np.ndarray = faiss.rev_swig_ptr(index.codes.data(), count * size).reshape(count, size)
    return codes


def _decoded(codes: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16, to float32."""
    return (codes.astype(np.uint32) << 16).view(np.float32)


@functools.cache
def load_faiss() -> Any:
    """The ``faiss`` module, imported when first needed. Raises :class:`MissingExtra` if not installed."""
    try:
        import faiss
    except ImportError as e:
        raise MissingExtra(
            "FAISS is not installed: pip install 'kgtrace[cpu]', or 'kgtrace[gpu]' with an NVIDIA GPU"
        ) from e
    _tune(faiss, faiss.omp_get_max_threads())
    return faiss


def read_faiss(path: Path) -> Any:
    """Map an index of FAISS.

    Raises :class:`CorruptGeneration` for a missing or truncated file, and :class:`MissingExtra`.
    """
    faiss = load_faiss()
    if not path.is_file():
        raise CorruptGeneration(f"{path} is missing")
    try:
        return faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
    except (RuntimeError, MemoryError) as e:
        raise CorruptGeneration(f"{path} is not a whole FAISS index: {_last_sentence(e)}") from e


def write_faiss(index: Any, path: Path, size: int) -> None:
    """Write an index of FAISS, of about ``size`` bytes, and force it to disk. Raises :class:`StorageFailed`."""
    faiss = load_faiss()
    # Given a path, FAISS reports a failed close on its standard error only: a full disk would go unnoticed.
    with durable.opened(path, "wb", size) as f:
        faiss.write_index(index, faiss.PyCallbackIOWriter(f.write))


def write_inverted_file(index: Any, path: Path, sizes: np.ndarray, pieces: Iterable[np.ndarray]) -> None:
    """Write an inverted file of FAISS list by list, and force it to disk; memory holds one piece at a time.

    ``index`` is an empty one, ``sizes`` (lists,) the number of entries of each list. ``pieces`` are the lists that have
    entries, one after the other: their codes (m, bytes of one) uint8, then their ids (m,) int64, either of them in any
    number of pieces. Raises :class:`StorageFailed` and :class:`MissingExtra`.
    """
    faiss = load_faiss()
    index.ntotal = int(sizes.sum())
    head = faiss.serialize_index(index).tobytes()
    head = head[: head.rindex(b"ilar")]
    used = np.flatnonzero(sizes)
    if len(used) > len(sizes) // 2:
        kind, table = b"full", sizes
    else:
        kind, table = b"sprs", np.stack([used, sizes[used]], 1)
    with durable.opened(path, "wb", len(head) + table.nbytes + index.ntotal * (index.code_size + 8)) as f:
        f.write(head + b"ilar" + np.array([len(sizes), index.code_size], "<u8").tobytes() + kind)
        f.write(np.array(table.size, "<u8").tobytes() + table.astype("<u8").tobytes())
        for piece in pieces:
            f.write(np.ascontiguousarray(piece).data.cast("B"))


def set_search_threads(threads: int) -> None:
    """Let searches started by the calling thread use this many; OpenMP keeps the number per thread."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(threads)
    _tune(faiss, threads)


def search_threads() -> int:
    """How many threads searches started by the calling thread may use."""
    return int(load_faiss().omp_get_max_threads())


def _tune(faiss: Any, threads: int) -> None:
    # FAISS before 1.15 counts queries in this threshold, not queries × dimensions; its default of 20 is then
    # right.
    if faiss.cvar.distance_compute_blas_threshold >= _BLAS_WORK_PER_THREAD:
        faiss.cvar.distance_compute_blas_threshold = _BLAS_WORK_PER_THREAD * threads


def checked_queries(queries: np.ndarray, dim: int, k: int) -> np.ndarray:
    """What a search is given: (b, dim) float32, contiguous. Raises :class:`BadRequest`."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise BadRequest(f"queries have shape {queries.shape}, the index needs (b, {dim})")
    if k < 1:
        raise BadRequest(f"k is {k}, must be at least 1")
    return _checked_values(queries)


def checked_query(query: np.ndarray, dim: int, threshold: float) -> np.ndarray:
    """What a range search is given: (dim,) float32, contiguous. Raises :class:`BadRequest`."""
    if query.shape != (dim,):
        raise BadRequest(f"query has shape {query.shape}, the index needs ({dim},)")
    if np.isnan(threshold):
        raise BadRequest("threshold is NaN")
    return _checked_values(query)


def _checked_values(queries: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused
        queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not np.isfinite(queries).all():
        raise BadRequest("queries contain NaN or infinity")
    return queries


def radius_of(threshold: float) -> np.float32:
    """The largest float32 below ``threshold``: a float32 score exceeds it if and only if >= threshold."""
    with np.errstate(over="ignore"):
        nearest = np.float32(threshold)
    return nearest if float(nearest) < threshold else np.nextafter(nearest, np.float32(-np.inf))


def padded(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids (b, m) with m <= k to (b, k), as :meth:`SearchIndex.search` returns them."""
    missing = ((0, 0), (0, k - scores.shape[1]))
    return (
        np.pad(scores, missing, constant_values=np.float32(-np.inf)),
        np.pad(ids, missing, constant_values=NO_HIT),
    )


def _last_sentence(error: BaseException) -> str:
    """FAISS's message without the C++ function it comes from."""
    return " ".join(str(error).split("Error: ")[-1].split())
