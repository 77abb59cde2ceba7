"""How a query finds the training triples of largest influence without computing every influence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bases import Bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.device_search import range_searches
from kgtrace_indexer.index.query_code import QueryCodes, encode_queries
from kgtrace_indexer.index.short_code import ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.query.certify import SIGNS, CertifiedSearch, Exact, SearchOptions, TopK, best, value
from kgtrace_indexer.query.retrieval import Brackets, norm_products, row_brackets
from kgtrace_indexer.query.total import Total
from kgtrace_store.search import FilteringIndex, SearchIndex

_FIRST_HITS = 64
"""Hits requested from the index in the first round, at least; four times top_k if that is more."""
_POOL = 100
_POOL_PER_HIT = 10
"""Hits of a random projection whose exact influence is computed: ten times top_k, at least a hundred. Large influences
are seldom first in a random projection, and seldom far behind."""
_EXACT_BLOCK = 2048
"""Training triples whose exact influence is computed at a time."""
_PAIRS = 1 << 20
"""Pairs of a test triple and a training triple that are in memory together: a hub has as many readers by itself."""
_SCORE_BLOCK = 65_536
"""Training triples scored at a time where a filter leaves the index out."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A search through bounds, each tighter and dearer than the one before; see `kgtrace_indexer.query.certify`."""

    bases: Bases
    codes: Codes
    index: SearchIndex
    """Short codes."""
    short: ShortCode

    @property
    def certifies(self) -> bool:
        """Return True."""
        return True

    def find(self, terms: Terms, options: SearchOptions) -> list[TopK]:
        """Return the exact top k of each test triple, certified unless `max_candidates` cut the search short."""
        queries = encode_queries(terms, self.bases, self.codes.device)
        index = self._narrowed(options)
        search = CertifiedSearch(queries, self.codes, self._exactly(queries, terms, options), options)
        searched = []
        for i, mask in enumerate(options.allowed):
            if mask is None or index is not self.index:
                searched.append(i)
            else:
                rows = torch.from_numpy(np.flatnonzero(mask))
                search.look(torch.full_like(rows, i), rows)
        for group in self._groups(queries, searched):
            self._search(search, index, queries, options, group)
        return search.top()

    def _groups(self, queries: QueryCodes, searched: Sequence[int]) -> Iterator[list[int]]:
        """Split test triples into groups whose rows have about `_PAIRS` readers together, or one test triple each."""
        readers = np.zeros(len(queries), np.int64)
        for table, (query, row) in queries.reads().items():
            np.add.at(readers, query, self.codes.rows.read_counts(table, row))
        group: list[int] = []
        for i in searched:
            if group and readers[[*group, i]].sum() > _PAIRS:
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def _search(
        self,
        search: CertifiedSearch,
        index: SearchIndex,
        queries: QueryCodes,
        options: SearchOptions,
        group: Sequence[int],
    ) -> None:
        """Look at what shares a row with test triples and at their first hits, then at all that may still matter."""
        vectors = self._vectors(queries, group, SIGNS[options.order])
        count = min(max(_FIRST_HITS, 4 * options.top_k), index.ntotal)
        scores, hits = index.search(vectors, count)
        hit = np.repeat(group, hits.size // len(group)), hits.ravel()
        first = self._distinct([self._linked(queries, options, group), hit])
        search.look(*first)
        if count == index.ntotal:
            return

        def look(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
            query, rows = self._distinct(pairs)
            known = torch.isin(self._key(query, rows), self._key(*first), assume_unique=True)
            search.look(query[~known], rows[~known])

        frontier = scores[:, -1].reshape(len(group), -1).max(1)
        threshold, room = search.threshold().tolist(), search.room.tolist()
        again = []
        for number, (i, most) in enumerate(zip(group, frontier, strict=True)):
            if most > threshold[i] and room[i] > 0:
                again.append(number)
            elif most > threshold[i]:
                search.leave_out(torch.tensor([i]), torch.tensor([most]))
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        signs = len(vectors) // len(group)
        searches = [signs * number + sign for number in again for sign in range(signs)]
        least = np.array([threshold[i] for i in group], np.float64).repeat(signs)
        for of, above in range_searches(index, vectors[searches], least[searches], signs):
            pairs.append((np.asarray(group)[np.asarray(searches)[of] // signs], above))
            if sum(len(rows) for _, rows in pairs) > _PAIRS:
                look(pairs)
                pairs = []
        if pairs:
            look(pairs)

    def _key(self, query: Tensor, rows: Tensor) -> Tensor:
        return query * len(self.codes) + rows

    def _distinct(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Return pairs of a test triple and a training triple, (m,) each, once each."""
        query, rows = (torch.from_numpy(np.concatenate(part)) for part in zip(*pairs, strict=True))
        keys = self._key(query, rows).unique()
        return keys // len(self.codes), keys % len(self.codes)

    def _linked(
        self, queries: QueryCodes, options: SearchOptions, searched: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of a test triple that is searched for and an allowed training triple that reads a row of it."""
        pairs = [np.empty((2, 0), np.int64)]
        for table, (query, row) in queries.reads().items():
            is_searched = np.isin(query, searched)
            readers = self.codes.rows.readers(table, row[is_searched])
            pairs += [np.stack([query[is_searched][owner], rows]) for owner, rows in readers]
        query, rows = np.concatenate(pairs, 1)
        mask = options.allowed[searched[0]]  # of all that are searched for
        return (query, rows) if mask is None else (query[mask[rows]], rows[mask[rows]])

    def _exactly(self, queries: QueryCodes, terms: Terms, options: SearchOptions) -> Exact:
        def exact(query: Tensor, rows: Tensor) -> Tensor:
            options.lap("search")
            if terms.dense:
                influence = options.exact(query, rows)
            else:  # as stored: no model is needed
                stored = self.codes.rows.influences(queries.rows, query.numpy(), rows.numpy())
                influence = torch.from_numpy(stored).float()
            options.lap("rerank")
            return influence

        return exact

    def _narrowed(self, options: SearchOptions) -> SearchIndex:
        """Return the index of those training triples alone that may be named, if it can filter; else the whole one."""
        if options.restriction is None or not isinstance(self.index, FilteringIndex):
            return self.index
        mask = options.allowed[0]
        count = 0 if mask is None else int(mask.sum())
        return self.index.where(options.restriction.must, options.restriction.must_not, count) if count else self.index

    def _vectors(self, queries: QueryCodes, searched: Sequence[int], signs: Sequence[int]) -> np.ndarray:
        """Return the index's query vectors of the searched test triples, a row for each and each sign of it."""
        phi, rho = np.split(queries.on_cpu[list(searched)], [queries.phi.shape[1]], 1)
        signed = np.tile(np.array(signs, np.float32), len(phi))[:, None] * phi.repeat(len(signs), 0)
        return self.short.query_vectors(signed, rho.repeat(len(signs), 0))

    def brackets(self, terms: Terms) -> Brackets:
        """Return the factor bound of a test triple."""
        return partial(self._bracket, encode_queries(terms, self.bases, self.codes.device))

    def total_brackets(self, total: Total) -> Brackets | None:
        """Return the influence on rows, unless there are other blocks."""
        return None if total.dense else row_brackets(self.codes.rows, total)

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the index's upper bound, and the factor bound's lower and upper one, (m,) each."""
        codes = encode_queries(terms, self.bases, self.codes.device)
        estimate, slack = self._bracket(codes, rows)
        upper = self.codes.index_upper(codes, torch.zeros_like(rows), rows, (1,))
        return upper, estimate - slack, estimate + slack

    def _bracket(self, query: QueryCodes, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor bound's estimates and slacks of training triples, (m,) each; all on the CPU."""
        return self.codes.bracket(query, torch.zeros_like(rows), rows)


@dataclass(frozen=True, slots=True)
class Pool:
    """The best hits of a random projection, ranked by their exact influences.

    The other training triples are bounded by Cauchy–Schwarz alone, |⟨g, g'⟩| ≤ ‖g‖‖g'‖. That bound is seldom below the
    k-th influence, so answers are seldom certified; the gap says how far they are from it.
    """

    projection: RandomProjection
    projected: Stack
    """(n, dim) float32, memory-mapped on the CPU."""
    index: SearchIndex
    """Inner products with `projected`."""
    squared_norm: np.ndarray
    """(n,) float32: ‖g‖²."""

    @property
    def certifies(self) -> bool:
        """Return False."""
        return False

    def find(self, terms: Terms, options: SearchOptions) -> list[TopK]:
        """Return the best of the pool."""
        return [self._find(terms.triple(i), i, options, options.rows(i)) for i in range(len(terms))]

    def _find(self, terms: Terms, number: int, options: SearchOptions, among: Tensor | None) -> TopK:
        allowed = len(self.projected) if among is None else len(among)
        size = max(_POOL, _POOL_PER_HIT * options.top_k) if options.max_candidates is None else options.max_candidates
        hits = self._hits(self.projection.project(terms)[0].cpu(), options, among, min(size, allowed))
        options.lap("search")
        blocks = hits.split(_EXACT_BLOCK) if len(hits) else ()
        influences = [torch.empty(0), *(options.exact(torch.full_like(block, number), block) for block in blocks)]
        options.lap("rerank")
        rows, influence = best(hits, torch.cat(influences), options.order, options.top_k)
        last = float(value(influence[-1:], options.order)[0]) if len(rows) == options.top_k else 0.0
        gap = max(0.0, self._unseen(terms, hits, among) - last) if len(hits) < allowed else 0.0
        whole = len(hits) == allowed or len(rows) == options.top_k
        return TopK(rows, influence, gap, len(hits), len(hits), certified=whole and gap == 0.0)

    def brackets(self, terms: Terms) -> None:
        """Return nothing: there are estimates, but no bound on their errors."""

    def total_brackets(self, total: Total) -> None:
        """Return nothing, likewise."""

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ‖g‖‖g'‖, with a minus, and as it is, (m,) each."""
        norms = torch.from_numpy(self.squared_norm[rows.numpy()])
        bound = norm_products(terms, norms)
        return bound, -bound, bound

    def _hits(self, query: Tensor, options: SearchOptions, among: Tensor | None, count: int) -> Tensor:
        """Return the rows (count,) of the largest estimates, in the sense of the order."""
        if not count:
            return torch.empty(0, dtype=torch.int64)
        if among is not None:
            estimate = torch.cat([self.projected.take(block) @ query for block in among.split(_SCORE_BLOCK)])
            return among[value(estimate, options.order).topk(count).indices]
        scores, ids = self.index.search(np.stack([sign * query.numpy() for sign in SIGNS[options.order]]), count)
        ranked = ids.flatten()[np.argsort(-scores.flatten(), kind="stable")]
        _, first = np.unique(ranked, return_index=True)  # a row of both signs counts once, with the larger
        return torch.from_numpy(ranked[np.sort(first)][:count])

    def _unseen(self, terms: Terms, seen: Tensor, rows: Tensor | None) -> float:
        """Return the Cauchy–Schwarz bound of allowed rows that were not looked at."""
        left = np.ones(len(self.projected), bool) if rows is None else np.zeros(len(self.projected), bool)
        if rows is not None:
            left[rows.numpy()] = True
        left[seen.numpy()] = False
        return float(norm_products(terms, torch.tensor(self.squared_norm[left].max())))
