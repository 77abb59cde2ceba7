"""Exhaustive inner product search where torch computes: on a GPU without FAISS's GPU build, or anywhere."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.transfers import to_device, to_host
from kgtrace_store.search import FaissSearch, SearchIndex, checked_queries, checked_query, padded


class TorchSearch:
    """A `SearchIndex` over vectors on a device: blocks of a matrix product, and the largest of each."""

    def __init__(self, vectors: Tensor) -> None:
        """`vectors`: (n, dim), float32 or bfloat16."""
        self._vectors = vectors

    @classmethod
    def of(cls, index: FaissSearch, device: torch.device) -> SearchIndex:
        """Put the vectors of an index on a device."""
        blocks = [torch.from_numpy(block).to(device) for block in index.vectors()]
        return cls(torch.cat(blocks) if blocks else torch.empty(0, index.dim, device=device))

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return len(self._vectors)

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self._vectors.device

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self._vectors.shape[1]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SearchIndex.search`."""
        vectors = to_device(checked_queries(queries, self.dim, k), self.device)
        scores = vectors.new_empty(len(vectors), 0)
        ids = torch.empty(len(vectors), 0, dtype=torch.int64, device=vectors.device)
        size = max(k, piece_floats(self.device) // max(1, len(vectors)))
        for start in range(0, self.ntotal, size):
            products = vectors @ self._vectors[start : start + size].T  # (b, dim) @ (dim, m) -> (b, m)
            best = products.topk(min(k, products.shape[1]))
            scores, ids = torch.cat([scores, best.values], 1), torch.cat([ids, best.indices + start], 1)
            kept = scores.topk(min(k, scores.shape[1]))
            scores, ids = kept.values, ids.gather(1, kept.indices)
        found = to_host({"scores": scores, "ids": ids})()
        return padded(found["scores"], found["ids"], k)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See `SearchIndex.range_search`."""
        return self.range_searches(checked_query(query, self.dim, threshold)[None], np.array([threshold]))[1:]

    def range_searches(self, queries: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Do the same for queries (b, dim) by a threshold each, (b,) float64.

        Returns the number of the query, the inner product and the id of each vector that is found, (·,) each.
        """
        vectors, least = to_device(queries, self.device), to_device(thresholds, self.device)
        scores = vectors @ self._vectors.T  # (b, dim) @ (dim, n) -> (b, n)
        of, ids = torch.nonzero(scores.double() >= least[:, None]).unbind(1)
        found = to_host({"of": of, "scores": scores[of, ids], "ids": ids})()
        return found["of"], found["scores"], found["ids"]


def range_searches(
    index: SearchIndex, queries: np.ndarray, thresholds: np.ndarray, together: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers of queries (b, dim) and ids of vectors whose inner products reach the query's threshold (b,).

    What so many successive queries find `together` comes at once. A `TorchSearch` takes many queries at a time, others
    take them one by one.
    """
    if not isinstance(index, TorchSearch):
        for start in range(0, len(queries), together):
            numbers = range(start, start + together)
            found = [index.range_search(queries[number], float(thresholds[number]))[1] for number in numbers]
            yield np.repeat(numbers, [len(ids) for ids in found]), np.concatenate(found)
        return
    step = max(1, piece_floats(index.device) // max(1, index.ntotal * together)) * together
    for start in range(0, len(queries), step):
        of, _, ids = index.range_searches(queries[start : start + step], thresholds[start : start + step])
        yield of + start, ids
