"""Exhaustive inner product search where torch computes: on a GPU without FAISS's GPU build, or anywhere."""

import numpy as np
import torch
from torch import Tensor

from kgtrace_store.search import FaissSearch, SearchIndex, checked_queries, checked_query, padded

_SCORES = 1 << 26
"""Inner products in memory at a time: 256 MiB."""


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
    def dim(self) -> int:
        """Length of each vector."""
        return self._vectors.shape[1]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SearchIndex.search`."""
        vectors = torch.from_numpy(checked_queries(queries, self.dim, k)).to(self._vectors.device)
        scores = vectors.new_empty(len(vectors), 0)
        ids = torch.empty(len(vectors), 0, dtype=torch.int64, device=vectors.device)
        size = max(k, _SCORES // max(1, len(vectors)))
        for start in range(0, self.ntotal, size):
            products = vectors @ self._vectors[start : start + size].T  # (b, dim) @ (dim, m) -> (b, m)
            best = products.topk(min(k, products.shape[1]))
            scores, ids = torch.cat([scores, best.values], 1), torch.cat([ids, best.indices + start], 1)
            kept = scores.topk(min(k, scores.shape[1]))
            scores, ids = kept.values, ids.gather(1, kept.indices)
        return padded(scores.cpu().numpy(), ids.cpu().numpy(), k)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See `SearchIndex.range_search`."""
        vector = torch.from_numpy(checked_query(query, self.dim, threshold)).to(self._vectors.device)
        scores = self._vectors @ vector  # (n, dim) @ (dim,) -> (n,)
        ids = torch.nonzero(scores.double() >= threshold).flatten()
        return scores[ids].cpu().numpy(), ids.cpu().numpy()
