"""How a query finds the training triples of largest influence without computing every influence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import Terms, squared_norms
from kgtrace_indexer.index.bases import FLOOR, ROUNDING, Bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.query_code import QueryCode, encode_queries, encode_rows
from kgtrace_indexer.index.short_code import ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.names import Order
from kgtrace_indexer.query.certify import SIGNS, CertifiedSearch, Found, Hits, best, value
from kgtrace_indexer.query.total import Total
from kgtrace_store.search import FilteringIndex, SearchIndex

Brackets = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps training triples (m,) to estimates of their influence and how far these may be off, (m,) each."""

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
class Ask:
    """What is wanted of one test triple."""

    top_k: int
    order: Order
    max_candidates: int | None
    """Look at no more than so many training triples beyond the index."""
    rows: Tensor | None
    """(m,) int64, ascending: storage rows that may be named; None for all."""
    exact: Callable[[Tensor], Tensor]
    """Maps storage rows (m,) to their influences (m,), with the model."""
    restriction: Restriction | None = None
    """What `rows` follow from, where nothing else does: for an index that filters by itself."""


class Retrieval(Protocol):
    """Finds training triples of large influence on one test triple."""

    @property
    def certifies(self) -> bool:
        """Whether answers are certified unless `max_candidates` cuts them short."""

    def find(self, terms: Terms, asks: Sequence[Ask]) -> list[Found]:
        """Return the best training triples with their exact influences, and how much better an unseen one could be.

        Of each test triple alone; all ask for the same number of rows in the same order.
        """

    def brackets(self, terms: Terms) -> Brackets | None:
        """Return what estimates the influence on a test triple, or None where only exact influences are of use."""

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return an upper, a lower and a tighter upper bound of the influences of training triples (m,), (m,) each."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A search through bounds, each tighter and dearer than the one before; see `kgtrace_indexer.query.certify`."""

    bases: Bases
    codes: Codes
    index: SearchIndex
    """Short codes; of older generations, whole index codes."""
    short: ShortCode | None
    training: TrainingSet

    @property
    def certifies(self) -> bool:
        """Return True."""
        return True

    def find(self, terms: Terms, asks: Sequence[Ask]) -> list[Found]:
        """Return the exact top k of each, certified unless `max_candidates` cut the search short."""
        queries = encode_queries(terms, self.bases, self.codes.device)
        index = self._narrowed(asks[0])
        searched = [
            i
            for i, (query, ask) in enumerate(zip(queries, asks, strict=True))
            if query.dense and (ask.rows is None or index is not self.index)
        ]
        hits = dict(zip(searched, self._hits(index, [queries[i] for i in searched], asks), strict=True))
        hits |= {i: self._unsearched(ask) for i, ask in enumerate(asks) if not queries[i].dense}
        found = []
        for i, (query, ask) in enumerate(zip(queries, asks, strict=True)):
            search = CertifiedSearch(
                query, self.codes, ask.exact, top_k=ask.top_k, order=ask.order, max_candidates=ask.max_candidates
            )
            if i in hits:
                linked = self.training.linked(query)
                allowed = linked if ask.rows is None else linked[np.isin(linked, ask.rows.numpy())]
                found.append(search.everywhere(hits[i], allowed))
            elif ask.rows is not None:
                found.append(search.among(ask.rows))
        return found

    def _narrowed(self, ask: Ask) -> SearchIndex:
        """Return the index of those training triples alone that may be named, if it can filter; else the whole one."""
        restriction, rows = ask.restriction, ask.rows
        if restriction is None or rows is None or not len(rows) or not isinstance(self.index, FilteringIndex):
            return self.index
        return self.index.where(restriction.must, restriction.must_not, len(rows))

    def _hits(self, index: SearchIndex, queries: Sequence[QueryCode], asks: Sequence[Ask]) -> list[Hits]:
        """Ask the index for the first hits of all queries at once."""
        if not queries:
            return []
        signs = SIGNS[asks[0].order]
        vectors = np.concatenate([self._vectors(query, signs) for query in queries])
        count = min(max(_FIRST_HITS, 4 * asks[0].top_k), index.ntotal)
        scores, rows = index.search(vectors, count)

        def above(vectors: np.ndarray, threshold: float) -> np.ndarray:
            return np.concatenate([index.range_search(vector, threshold)[1] for vector in vectors])

        def of(i: int) -> Hits:
            these = slice(i * len(signs), (i + 1) * len(signs))
            frontier = float(scores[these, -1].max()) if count < index.ntotal else -inf
            return Hits(rows[these].flatten(), frontier, partial(above, vectors[these]))

        return [of(i) for i in range(len(queries))]

    def _unsearched(self, ask: Ask) -> Hits:
        """Return hits where every dense influence is 0, and there is nothing to search for."""
        rows = np.arange(len(self.codes)) if ask.rows is None else ask.rows.numpy()
        count = min(max(_FIRST_HITS, 4 * ask.top_k), len(rows))
        return Hits(rows[:count], 0.0 if count < len(rows) else -inf, lambda threshold: rows)

    def _vectors(self, query: QueryCode, signs: Sequence[int]) -> np.ndarray:
        """Return what the index is asked with, a row for each sign."""
        phi = np.stack([sign * query.phi.cpu().numpy() for sign in signs])
        rho = np.repeat(query.residual.cpu().numpy()[None], len(signs), 0)
        return np.concatenate([phi, rho], 1) if self.short is None else self.short.asked(phi, rho)

    def brackets(self, terms: Terms) -> Brackets:
        """Return the factor bound of a test triple."""
        (code,) = encode_queries(terms, self.bases, self.codes.device)
        return partial(self._bracket, code)

    def rows_brackets(self, total: Total) -> Brackets:
        """Return what estimates the influence on many test triples together, whose gradient is of table rows alone."""
        device = self.codes.device
        coded = {name: encode_rows(table, self.bases.of_rows(name), device) for name, table in total.tables.items()}

        def bracket(rows: Tensor) -> tuple[Tensor, Tensor]:
            estimate, slack = self.codes.rows_bracket(coded, rows.to(device))
            return estimate.cpu(), slack.cpu()

        return bracket

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

    def find(self, terms: Terms, asks: Sequence[Ask]) -> list[Found]:
        """Return the best of the pool."""
        return [self._find(terms.triple(i), ask) for i, ask in enumerate(asks)]

    def _find(self, terms: Terms, ask: Ask) -> Found:
        allowed = len(self.projected) if ask.rows is None else len(ask.rows)
        size = max(_POOL, _POOL_PER_HIT * ask.top_k) if ask.max_candidates is None else ask.max_candidates
        hits = self._hits(self.projection.project(terms)[0].cpu(), ask, min(size, allowed))
        influences = [ask.exact(block) for block in hits.split(_EXACT_BLOCK)] if len(hits) else [torch.empty(0)]
        rows, influence = best(hits, torch.cat(influences), ask.order, ask.top_k)
        last = float(value(influence[-1:], ask.order)[0]) if len(rows) == ask.top_k else 0.0
        gap = max(0.0, self._unseen(terms, hits, ask.rows) - last) if len(hits) < allowed else 0.0
        whole = len(hits) == allowed or len(rows) == ask.top_k
        return Found(rows, influence, gap, len(hits), len(hits), certified=whole and gap == 0.0)

    def brackets(self, terms: Terms) -> None:
        """Return nothing: there are estimates, but no bound on their errors."""

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ‖g‖‖g'‖, with a minus, and as it is, (m,) each."""
        norms = torch.from_numpy(self.squared_norm[rows.numpy()])
        bound = _times_norm(terms, norms)
        return bound, -bound, bound

    def _hits(self, query: Tensor, ask: Ask, count: int) -> Tensor:
        """Return the rows (count,) of the largest estimates, in the sense of the order."""
        if not count:
            return torch.empty(0, dtype=torch.int64)
        if ask.rows is not None:
            estimate = torch.cat([self.projected.take(block) @ query for block in ask.rows.split(_SCORE_BLOCK)])
            return ask.rows[value(estimate, ask.order).topk(count).indices]
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
        return float(_times_norm(terms, torch.tensor(self.squared_norm[left].max())))


def _times_norm(terms: Terms, squared: Tensor) -> Tensor:
    """Return ‖g‖‖g'‖ for squared norms of gradients g and a test triple's g', with slack for rounding."""
    own = squared_norms(terms).total[0].cpu()
    return (squared + FLOOR).sqrt() * (own + FLOOR).sqrt() * (1 + ROUNDING)
