"""How a query finds the training triples of largest influence without computing every influence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bases import Bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.query_code import QueryCode, encode_queries
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.short_code import ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.query.certify import SIGNS, Ask, CertifiedSearch, Found, Hits, best, value
from kgtrace_indexer.query.retrieval import Brackets, norm_products, row_brackets
from kgtrace_indexer.query.total import Total
from kgtrace_store.search import FilteringIndex, SearchIndex

_FIRST_HITS = 64
"""Hits asked of the index in the first round, at least; four times top_k if that is more."""
_POOL = 100
_POOL_PER_HIT = 10
"""Hits of a random projection whose exact influence is computed: ten for each one asked for, at least a hundred. Large
influences are seldom first in a random projection, and seldom far behind."""
_EXACT_BLOCK = 2048
"""Training triples whose exact influence is computed at a time."""
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

    def find(self, terms: Terms, ask: Ask) -> list[Found]:
        """Return the exact top k of each, certified unless `max_candidates` cut the search short."""
        queries = encode_queries(terms, self.bases, self.codes.device)
        rows = [ask.rows(i) for i in range(len(queries))]
        index = self._narrowed(ask.restriction, rows[0])
        searched = [i for i, some in enumerate(rows) if some is None or index is not self.index]
        hits = dict(zip(searched, self._hits(index, [queries[i] for i in searched], ask), strict=True))
        found = []
        for i, (query, some) in enumerate(zip(queries, rows, strict=True)):
            search = CertifiedSearch(query, self.codes, self._exactly(terms.triple(i), ask), ask)
            if i in hits:
                linked = self._linked(query)
                allowed = linked if some is None else linked[np.isin(linked, some.numpy())]
                found.append(search.everywhere(hits[i], allowed))
            elif some is not None:
                found.append(search.among(some))
        return found

    def _exactly(self, terms: Terms, ask: Ask) -> Callable[[Tensor], Tensor]:
        rows_alone = None if terms.dense else RowQueries.of(terms)

        def exact(rows: Tensor) -> Tensor:
            ask.lap("search")
            if rows_alone is None:
                influence = ask.exact(rows, terms)
            else:  # as stored: no model is needed
                stored = self.codes.rows.influences(rows_alone, np.zeros(len(rows), np.int64), rows.numpy())
                influence = torch.from_numpy(stored).float()
            ask.lap("rerank")
            return influence

        return exact

    def _linked(self, query: QueryCode) -> np.ndarray:
        """Return the training triples that read a row the query reads, (m,) int64, some of them more than once."""
        rows = self.codes.rows
        reads = [rows.readers(table, np.array(indices)) for table, indices in query.reads().items()]
        return np.concatenate([np.empty(0, np.int64), *reads])

    def _narrowed(self, restriction: Restriction | None, rows: Tensor | None) -> SearchIndex:
        """Return the index of those training triples alone that may be named, if it can filter; else the whole one."""
        if restriction is None or rows is None or not len(rows) or not isinstance(self.index, FilteringIndex):
            return self.index
        return self.index.where(restriction.must, restriction.must_not, len(rows))

    def _hits(self, index: SearchIndex, queries: Sequence[QueryCode], ask: Ask) -> list[Hits]:
        """Ask the index for the first hits of all queries at once."""
        if not queries:
            return []
        signs = SIGNS[ask.order]
        vectors = np.concatenate([self._vectors(query, signs) for query in queries])
        count = min(max(_FIRST_HITS, 4 * ask.top_k), index.ntotal)
        scores, rows = index.search(vectors, count)

        def above(vectors: np.ndarray, threshold: float) -> np.ndarray:
            return np.concatenate([index.range_search(vector, threshold)[1] for vector in vectors])

        def of(i: int) -> Hits:
            these = slice(i * len(signs), (i + 1) * len(signs))
            frontier = float(scores[these, -1].max()) if count < index.ntotal else -inf
            return Hits(rows[these].flatten(), frontier, partial(above, vectors[these]))

        return [of(i) for i in range(len(queries))]

    def _vectors(self, query: QueryCode, signs: Sequence[int]) -> np.ndarray:
        """Return what the index is asked with, a row for each sign."""
        phi = np.stack([sign * query.phi.cpu().numpy() for sign in signs])
        rho = np.repeat(query.residual.cpu().numpy()[None], len(signs), 0)
        return self.short.asked(phi, rho)

    def brackets(self, terms: Terms) -> Brackets:
        """Return the factor bound of a test triple."""
        (code,) = encode_queries(terms, self.bases, self.codes.device)
        return partial(self._bracket, code)

    def total_brackets(self, total: Total) -> Brackets | None:
        """Return the influence on rows, unless there are other blocks."""
        return None if total.dense else row_brackets(self.codes.rows, total)

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the index's upper bound, and the factor bound's lower and upper one, (m,) each."""
        (code,) = encode_queries(terms, self.bases, self.codes.device)
        estimate, slack = self._bracket(code, rows)
        return self.codes.index_upper(code, 1, rows.to(self.codes.device)).cpu(), estimate - slack, estimate + slack

    def _bracket(self, query: QueryCode, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor bound's estimates and slacks of training triples, (m,) each; all on the CPU."""
        estimate, slack = self.codes.bracket(query, rows.to(self.codes.device))
        return estimate.cpu(), slack.cpu()


@dataclass(frozen=True, slots=True)
class Pool:
    """The best hits of a random projection, ranked by their exact influences.

    What the projection overlooked is bounded by Cauchy–Schwarz alone, |⟨g, g'⟩| ≤ ‖g‖‖g'‖. That is seldom below the
    last influence found, so answers are seldom certified; the gap says how far they are from it.
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

    def find(self, terms: Terms, ask: Ask) -> list[Found]:
        """Return the best of the pool."""
        return [self._find(terms.triple(i), ask, ask.rows(i)) for i in range(len(terms))]

    def _find(self, terms: Terms, ask: Ask, among: Tensor | None) -> Found:
        allowed = len(self.projected) if among is None else len(among)
        size = max(_POOL, _POOL_PER_HIT * ask.top_k) if ask.max_candidates is None else ask.max_candidates
        hits = self._hits(self.projection.project(terms)[0].cpu(), ask, among, min(size, allowed))
        ask.lap("search")
        influences = [ask.exact(block, terms) for block in hits.split(_EXACT_BLOCK)] if len(hits) else [torch.empty(0)]
        ask.lap("rerank")
        rows, influence = best(hits, torch.cat(influences), ask.order, ask.top_k)
        last = float(value(influence[-1:], ask.order)[0]) if len(rows) == ask.top_k else 0.0
        gap = max(0.0, self._unseen(terms, hits, among) - last) if len(hits) < allowed else 0.0
        whole = len(hits) == allowed or len(rows) == ask.top_k
        return Found(rows, influence, gap, len(hits), len(hits), certified=whole and gap == 0.0)

    def brackets(self, terms: Terms) -> None:
        """Return nothing: there are estimates, but no bound on their errors."""

    def total_brackets(self, total: Total) -> None:
        """Return nothing, likewise."""

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ‖g‖‖g'‖, with a minus, and as it is, (m,) each."""
        norms = torch.from_numpy(self.squared_norm[rows.numpy()])
        bound = norm_products(terms, norms)
        return bound, -bound, bound

    def _hits(self, query: Tensor, ask: Ask, among: Tensor | None, count: int) -> Tensor:
        """Return the rows (count,) of the largest estimates, in the sense of the order."""
        if not count:
            return torch.empty(0, dtype=torch.int64)
        if among is not None:
            estimate = torch.cat([self.projected.take(block) @ query for block in among.split(_SCORE_BLOCK)])
            return among[value(estimate, ask.order).topk(count).indices]
        scores, ids = self.index.search(np.stack([sign * query.numpy() for sign in SIGNS[ask.order]]), count)
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
