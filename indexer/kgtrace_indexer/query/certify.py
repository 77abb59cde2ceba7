"""Certified top-k: a threshold algorithm over a cascade of bounds.

The index returns training triples in descending order of an upper bound of their dense influence; the triples that
share an embedding row with the query come from the lists of these rows. Each stage looks only at what the one before
left:

1. *short bound*: an inner product of vectors of a few bytes, the index's scores;
2. *index bound*: the same with all coordinates, and the norms of shared embedding rows;
3. *factor bound*: estimate ± slack from stored factors, almost tight;
4. *exact influence*: recomputed with the model.

As pseudo-code, with lower and upper bounds by eq. (12) to (14) of ``docs/how-it-works.md``::

    round(triples):
        sort the triples by index bound, and keep the best max_candidates
        for each block whose index bound is above the threshold:
            bounds[block] = estimate ± slack
        while a triple without an exact influence has an upper bound ≥ threshold:
            bounds[the likeliest of these] = their exact influences

    threshold = k-th largest lower bound, which only rises
    round(lists of the rows that the test triple reads + the index's best hits)
    if the index's other hits may exceed the threshold:
        round(range search of the index at the threshold)
    answer = the k largest exact influences; certified if eq. (15) holds

Every query ends after two rounds, the second of which is at worst one scan of the stored codes.

Threshold algorithms: Fagin, Lotem and Naor (2003). Exact maximum inner product search by bounds: Ram and Gray (2012).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.query_code import QueryCodes
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.names import Order
from kgtrace_indexer.pieces import piece_floats

SIGNS: dict[Order, tuple[int, ...]] = {"proponents": (1,), "opponents": (-1,), "absolute": (1, -1)}
"""By which an influence has to be multiplied to be large in the sense of an order; for ``absolute``, either."""

_BLOCKS = (256, 65_536)
"""Training triples of a test triple whose factor bound is computed before the threshold is looked at again, at first
and at most: a few are enough to raise it."""
_TOGETHER = 8192
"""Pairs whose bounds are computed together."""
_EXACT_BLOCKS = (64, 2048)
"""Training triples whose exact influence is computed at a time, at first and at most: the search may stop in between,
and where many are equal, as all are for a gradient of zero, one doubling follows another."""
_GPU_BLOCKS = (65_536, 65_536)
"""Both on a GPU, whose rounds are waited for, whatever they compute."""

CPU = torch.device("cpu")

Exact = Callable[[Tensor, Tensor], Tensor]
"""Maps test triples (m,) and training triples (m,), by their numbers, to influences (m,), on the CPU."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The best training triples of one test triple, with their certificate."""

    rows: Tensor
    """(k,) int64: storage rows, best first."""
    influence: Tensor
    """(k,) float32, exact."""
    bound_gap: float
    """How much better an unseen triple could be than the last one in `rows`; 0 when certified."""
    candidates: int
    """Training triples whose factor bound was computed."""
    exact_terms: int
    """Training triples whose exact influence was computed."""
    certified: bool = True
    """True if no other training triple can outrank the last one in `rows` and, if there are fewer than k, none was left
    out."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of one search for a batch of test triples."""

    top_k: int
    order: Order
    max_candidates: int | None
    """Look at no more than so many training triples beyond the index."""
    allowed: Sequence[np.ndarray | None]
    """For each test triple a mask (n,) of the training triples that may be named; None for all."""
    exact: Exact
    """Computes influences with the model."""
    lap: Callable[[str], None] = lambda stage: None
    """Books the time since the last call to a stage, ``search`` or ``rerank``."""
    queries: Mapping[str, RowQueries] | None = None
    """The gradients of the test triples by rows, where they are at hand, and of embedding rows alone."""
    restriction: Restriction | None = None
    """The restriction that `allowed` expresses, if it depends on nothing else: for an index that filters by itself."""

    @property
    def same_rows(self) -> bool:
        """Whether the same training triples may be named for all."""
        return all(mask is self.allowed[0] for mask in self.allowed)

    def rows(self, i: int) -> Tensor | None:
        """Return the training triples (m,) that may be named for a test triple, ascending; None for all."""
        mask = self.allowed[i]
        return None if mask is None else torch.as_tensor(np.flatnonzero(mask))


Values = TypeVar("Values", Tensor, np.ndarray)


def value(influence: Values, order: Order) -> Values:
    """Return the influence as a number that is large for the best in the sense of the order."""
    if order == "absolute":
        return abs(influence)
    return influence if order == "proponents" else -influence


def best(rows: Tensor, influence: Tensor, order: Order, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the rows (k,) of the best influences (m,), and these influences (k,); equal ones by ascending row."""
    by_row = rows.argsort()
    ranked = by_row[value(influence[by_row], order).argsort(descending=True, stable=True)][:top_k]
    return rows[ranked], influence[ranked]


class CertifiedSearch:
    """The way of b test triples through the cascade, side by side: of pairs of a test triple and a training triple.

    Pairs are counted, compared and sorted on the CPU; bounds and influences are computed on the device.
    """

    def __init__(self, queries: QueryCodes, codes: Codes, exact: Exact, options: SearchOptions) -> None:
        """`exact` computes influences."""
        self._queries = queries
        self._codes = codes
        self._exact = exact
        self._top_k = options.top_k
        self._order: Order = options.order
        self._signs = SIGNS[options.order]
        self._blocks, self._exact_blocks = (
            (_BLOCKS, _EXACT_BLOCKS) if codes.device.type == "cpu" else (_GPU_BLOCKS,) * 2
        )
        self._together = _TOGETHER * (piece_floats(codes.device) // piece_floats(CPU))
        self._query, self._rows = torch.empty(2, 0, dtype=torch.int64)
        self._lower, self._upper = torch.empty(2, 0)
        self._influence = torch.empty(0)  # NaN where not computed
        self.room = torch.full((len(queries),), inf if options.max_candidates is None else options.max_candidates)
        self.room = self.room.double()
        self._unseen = torch.full((len(queries),), -inf)  # bound of triples left out for want of room
        self._candidates, self._exact_terms = torch.zeros(2, len(queries), dtype=torch.int64)

    def look(self, query: Tensor, rows: Tensor) -> None:
        """Take pairs (m,), each of them once, through the cascade."""
        size, most = max(self._blocks[0], 4 * self._top_k), self._blocks[1]
        counts = torch.bincount(query, minlength=len(self._queries))
        upper = torch.full((len(rows),), inf)
        ranked = (counts > self.room.clamp_max(size))[query].nonzero().flatten()
        for batch in ranked.split(self._together) if len(ranked) else ():
            upper[batch] = self._codes.index_upper(*self._query_codes(query[batch]), rows[batch], self._signs)
        order = upper.argsort(descending=True)
        order = order[query[order].argsort(stable=True)]
        query, rows, upper = query[order], rows[order], upper[order]
        number = _numbers(query)
        cut = number >= self.room[query]
        self.leave_out(query[cut], upper[cut])
        query, rows, upper, number = query[~cut], rows[~cut], upper[~cut], number[~cut]
        start = 0
        while True:
            block = (number >= start) & (number < start + size)
            above = (block & (upper > self.threshold()[query])).nonzero().flatten()
            if not len(above):
                return self._decide()
            self._bracket(query[above], rows[above])
            start, size = start + size, min(2 * size, most)

    def leave_out(self, query: Tensor, upper: Tensor) -> None:
        """Note bounds (m,) of training triples that were not looked at, of test triples (m,)."""
        self._unseen.scatter_reduce_(0, query, upper, "amax")

    def threshold(self) -> Tensor:
        """Return the k-th best lower bound of each test triple, (b,); −∞ with fewer than k triples."""
        return self._nth_largest(self._lower)

    def _nth_largest(self, values: Tensor) -> Tensor:
        """Return the k-th largest of values of the pairs, (b,)."""
        if len(self._queries) == 1:
            return values.new_full((1,), nth_largest(values, self._top_k))
        order = values.argsort(descending=True)
        query = self._query[order].sort(stable=True)
        order, query = order[query.indices], query.values
        is_nth = _numbers(query) == self._top_k - 1
        nth = torch.full((len(self._queries),), -inf)
        nth[query[is_nth]] = values[order[is_nth]]
        return nth

    def _bracket(self, query: Tensor, rows: Tensor) -> None:
        """Take in the factor bounds of pairs (m,); forget pairs that cannot be among the best."""
        batches = zip(query.split(self._together), rows.split(self._together), strict=True)
        brackets = [self._codes.bracket(*self._query_codes(of), some) for of, some in batches]
        estimate, slack = (torch.cat(part) for part in zip(*brackets, strict=True))
        middle = value(estimate, self._order)
        counts = torch.bincount(query, minlength=len(self._queries))
        self._candidates += counts
        self.room -= counts
        self._query = torch.cat([self._query, query])
        self._rows = torch.cat([self._rows, rows])
        self._lower = torch.cat([self._lower, middle - slack])
        self._upper = torch.cat([self._upper, middle + slack])
        self._influence = torch.cat([self._influence, torch.full_like(estimate, torch.nan)])
        keep = self._upper >= self.threshold()[self._query]
        self._query, self._rows, self._influence = self._query[keep], self._rows[keep], self._influence[keep]
        self._lower, self._upper = self._lower[keep], self._upper[keep]

    def _query_codes(self, query: Tensor) -> tuple[QueryCodes, Tensor]:
        """Return codes, and the numbers in them of test triples (m,), ascending: of a single one its own, for speed."""
        if len(self._queries) > 1 and len(query) and query[0] == query[-1]:
            return self._queries.one(int(query[0])), torch.zeros_like(query)
        return self._queries, query

    def _decide(self) -> None:
        """Compute exact influences until none of the others can matter: on a CPU first those that decide most."""
        size, most = self._exact_blocks
        while True:
            open_ = (self._influence.isnan() & (self._upper >= self.threshold()[self._query])).nonzero().flatten()
            if not len(open_):
                return
            chosen = self._likely(open_) if self._codes.device.type == "cpu" else open_
            chosen = chosen[self._upper[chosen].argsort(descending=True)]
            chosen = chosen[self._query[chosen].argsort(stable=True)]
            chosen = chosen[_numbers(self._query[chosen]) < size]
            size = min(2 * size, most)
            influence = self._exact(self._query[chosen], self._rows[chosen])
            self._influence[chosen] = influence
            self._lower[chosen] = self._upper[chosen] = value(influence, self._order)
            self._exact_terms += torch.bincount(self._query[chosen], minlength=len(self._queries))

    def _likely(self, open_: Tensor) -> Tensor:
        """Return those pairs of some whose upper bound is above an estimate of the final threshold; if none, all."""
        likely = self._nth_largest((self._lower + self._upper) / 2)
        above = self._upper[open_] >= likely[self._query[open_]]
        has_above = torch.zeros(len(self._queries), dtype=torch.bool)
        has_above[self._query[open_[above]]] = True
        return open_[above | ~has_above[self._query[open_]]]

    def top(self) -> list[TopK]:
        """Return the top k of each test triple."""
        known = (~self._influence.isnan()).nonzero().flatten()
        query, rows, influence = (pairs[known] for pairs in (self._query, self._rows, self._influence))
        order = rows.argsort()
        order = order[value(influence[order], self._order).argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        order = order[_numbers(query[order]) < self._top_k]
        sizes = torch.bincount(query[order], minlength=len(self._queries)).tolist()
        unseen, candidates, exact_terms = (
            numbers.tolist() for numbers in (self._unseen, self._candidates, self._exact_terms)
        )
        tops = []
        for i, (hits, influences) in enumerate(
            zip(rows[order].split(sizes), influence[order].split(sizes), strict=True)
        ):
            full = len(hits) == self._top_k
            last = float(value(influences[-1:], self._order)[0]) if full else 0.0
            gap = max(0.0, unseen[i] - last) if unseen[i] > -inf else 0.0
            certified = gap == 0.0 and (full or unseen[i] == -inf)
            tops.append(TopK(hits, influences, gap, candidates[i], exact_terms[i], certified))
        return tops


def _numbers(query: Tensor) -> Tensor:
    """Return the number of each pair among the pairs of its test triple, for test triples (m,) in ascending order."""
    return torch.arange(len(query)) - torch.searchsorted(query, query)


def nth_largest(values: Tensor, n: int) -> float:
    """Return the n-th largest of values (m,); −∞ where there are fewer."""
    return float(values.topk(n).values[-1]) if len(values) >= n else -inf
