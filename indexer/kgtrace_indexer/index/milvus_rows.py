"""The lists of embedding rows in Milvus, for the bounds of `kgtrace_indexer.index.inverted`.

Milvus holds s[c, e] of every entry in float32, so that the lists of all shards are one, with distances that are bounds
in units of ‖p‖. How long each list is, with a filter and without, is known from the inverted files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from kgtrace_indexer.index.inverted import Entries, InvertedFile, at_radius, unit_queries
from kgtrace_store.milvus import Milvus, MilvusLists, MilvusSearch

_NONE = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
"""Pairs, ids and scores of no entries."""


class MilvusRows:
    """The reads of a table by all training triples, in Milvus: `Lists`."""

    def __init__(self, files: Sequence[InvertedFile], lists: MilvusLists) -> None:
        """`files` are the shards that were sent."""
        self._files = files
        self._lists = lists

    @classmethod
    def hold(
        cls, milvus: Milvus, generation: str, table: int, files: Sequence[InvertedFile], triples: np.ndarray
    ) -> "MilvusRows":
        """Send the lists of a table that Milvus does not hold. Raises `SearchUnavailable`."""
        entries = (row_entries for file in files for row_entries in file.entries())
        count, dim = sum(map(len, files)), files[0].width + 1
        return cls(files, milvus.hold_lists(generation, table, entries, count, triples, dim))

    def where(self, must: Mapping[str, Iterable[int]], must_not: Mapping[str, Iterable[int]]) -> "MilvusRows":
        """Return the entries of the training triples of a restriction, the same as in the `mask` of a search."""
        return MilvusRows(self._files, self._lists.where(must, must_not))

    def best(
        self, row: np.ndarray, grad: np.ndarray, count: int, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """See `Lists.best`. Raises `SearchUnavailable`, too where Milvus returns fewer entries than there are."""
        vectors, norm = unit_queries(grad, grad.shape[1] + 1)
        frontier = np.full(len(row), -np.inf)
        parts = [_NONE]
        for pairs, entries in self._by_row(row, mask):
            scores, ids = entries.search(vectors[pairs], min(count, entries.ntotal))
            parts.append((pairs.repeat(scores.shape[1]), ids.ravel(), scores.ravel()))
            if entries.ntotal > count:
                frontier[pairs] = scores[:, -1] * norm[pairs]
        return self._entries(parts, norm), frontier

    def above(
        self, row: np.ndarray, grad: np.ndarray, radius: np.ndarray, mask: np.ndarray | None
    ) -> tuple[Entries, np.ndarray]:
        """See `Lists.above`. Raises `SearchUnavailable`."""
        vectors, norm = unit_queries(grad, grad.shape[1] + 1)
        vectors, unit, frontier = at_radius(vectors, norm, radius)
        parts = [_NONE]
        for pairs, entries in self._by_row(row, mask):
            number, scores, ids = entries.above(vectors[pairs], 1.0)
            parts.append((pairs[number], ids, scores))
        return self._entries(parts, unit), frontier

    def longest(self, row: np.ndarray) -> int:
        """See `Lists.longest`."""
        return int(self._lengths(np.unique(row), None).max(initial=0))

    def _lengths(self, row: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        lengths: np.ndarray = np.sum([file.lengths(row, mask) for file in self._files], 0)
        return lengths

    def _by_row(self, row: np.ndarray, mask: np.ndarray | None) -> Iterator[tuple[np.ndarray, MilvusSearch]]:
        """Yield for each distinct row of (P,) whose list is not empty its pairs (·,) and its entries."""
        rows, place = np.unique(row, return_inverse=True)
        for number, (row_number, count) in enumerate(
            zip(rows.tolist(), self._lengths(rows, mask).tolist(), strict=True)
        ):
            if count:
                yield np.flatnonzero(place == number), self._lists.of(row_number, count)

    def _entries(self, parts: Sequence[tuple[np.ndarray, ...]], unit: np.ndarray) -> Entries:
        pair, ids, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Entries(pair, ids % self._lists.triples, scores.astype(np.float64) * unit[pair])
