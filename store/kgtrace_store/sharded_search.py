"""One search over several indexes, side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate

import numpy as np

from kgtrace_store.search import NO_HIT, SearchIndex, search_threads, set_search_threads

_Hits = tuple[np.ndarray, np.ndarray]
"""Scores and ids."""


class ShardedSearch:
    """A :class:`SearchIndex` of shards: the vectors of the first have the first ids, and so on.

    Hits of all shards are merged by their scores, so they are the hits of one index over all vectors. A call searches
    as many shards at a time as the thread that makes this object may use threads; each shard then has one thread.
    """

    def __init__(self, shards: Sequence[SearchIndex]) -> None:
        """``shards``: at least one, all of one dimension."""
        self._shards = shards
        self._starts = list(accumulate((shard.ntotal for shard in shards), initial=0))
        self._lanes = min(len(shards), search_threads())
        self._pool = ThreadPoolExecutor(self._lanes, "kgtrace-shard", partial(set_search_threads, 1))

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return self._starts[-1]

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self._shards[0].dim

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SearchIndex.search`."""
        by_shard = self._each(lambda shard: shard.search(queries, k))
        scores = np.concatenate([scores for _, (scores, _) in by_shard], 1)  # (b, shards · k)
        ids = np.concatenate([np.where(ids == NO_HIT, NO_HIT, ids + start) for start, (_, ids) in by_shard], 1)
        best = np.argsort(-scores, 1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SearchIndex.range_search`."""
        by_shard = self._each(lambda shard: shard.range_search(query, threshold))
        scores = np.concatenate([scores for _, (scores, _) in by_shard])
        return scores, np.concatenate([ids + start for start, (_, ids) in by_shard])

    def _each(self, search: Callable[[SearchIndex], _Hits]) -> list[tuple[int, _Hits]]:
        """Return the hits of every shard, with the id of its first vector."""

        def run(shards: np.ndarray) -> list[tuple[int, _Hits]]:
            return [(self._starts[i], search(self._shards[i])) for i in shards]

        every = np.arange(len(self._shards))
        if self._lanes == 1:
            return run(every)
        return [hits for lane in self._pool.map(run, np.array_split(every, self._lanes)) for hits in lane]
