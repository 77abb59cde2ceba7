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
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.query_code import QueryCode
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.names import Order

SIGNS: dict[Order, tuple[int, ...]] = {"proponents": (1,), "opponents": (-1,), "absolute": (1, -1)}
"""By which an influence has to be multiplied to be large in the sense of an order; for ``absolute``, either."""

_BLOCKS = (256, 8192)
"""Training triples whose factor bound is computed at a time, at first and at most: a few are enough to raise the
threshold."""
_EXACT_BLOCKS = (64, 2048)
"""Training triples whose exact influence is computed at a time, at first and at most: whether to stop is asked in
between, and where many are equal, as all are for a gradient of zero, one doubling follows another."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What the index says about one query."""

    rows: np.ndarray
    """(m,) int64: its first hits, some of them twice."""
    frontier: float
    """No other training triple has a larger bound; −∞ where there are no others."""
    above: Callable[[float], np.ndarray]
    """Returns all rows (·,) whose bound is at least a threshold."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best training triples of one query."""

    rows: Tensor
    """(k,) int64: storage rows, best first."""
    influence: Tensor
    """(k,) float32, exact."""
    bound_gap: float
    """How much better an unseen triple could be than the last one found; 0 when certified."""
    candidates: int
    """Training triples whose factor bound was computed."""
    exact_terms: int
    """Training triples whose exact influence was computed."""
    certified: bool = True
    """Whether no other training triple has more influence than the last of these, or belongs here for want of any."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of some test triples."""

    top_k: int
    order: Order
    max_candidates: int | None
    """Look at no more than so many training triples beyond the index."""
    allowed: Sequence[np.ndarray | None]
    """For each test triple a mask (n,) of the training triples that may be named; None for all."""
    exact: Callable[[Tensor, Terms], Tensor]
    """Maps training triples (m,) and the gradient of one test triple to their influences (m,), with the model."""
    lap: Callable[[str], None] = lambda stage: None
    """Books the time since the last call to a stage, ``search`` or ``rerank``."""
    queries: Mapping[str, RowQueries] | None = None
    """The gradients of the test triples by rows, where they are at hand, and of embedding rows alone."""
    restriction: Restriction | None = None
    """What `allowed` follows from, where nothing else does: for an index that filters by itself."""

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
    """Return what the order asks to be large."""
    if order == "absolute":
        return abs(influence)
    return influence if order == "proponents" else -influence


def best(rows: Tensor, influence: Tensor, order: Order, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the rows (k,) of the best influences (m,), and those; equal ones by ascending row."""
    by_row = rows.argsort()
    ranked = by_row[value(influence[by_row], order).argsort(descending=True, stable=True)][:top_k]
    return rows[ranked], influence[ranked]


class CertifiedSearch:
    """One query's way through the cascade."""

    def __init__(
        self,
        query: QueryCode,
        codes: Codes,
        exact: Callable[[Tensor], Tensor],
        ask: Ask,
    ) -> None:
        """`exact` maps storage rows (m,) to their influences (m,)."""
        self._query = query
        self._codes = codes
        self._exact = exact
        self._top_k = ask.top_k
        self._order: Order = ask.order
        self._budget = inf if ask.max_candidates is None else ask.max_candidates
        self._signs = SIGNS[ask.order]
        self._rows = torch.empty(0, dtype=torch.int64, device=codes.device)
        self._lower = torch.empty(0, device=codes.device)
        self._upper = torch.empty(0, device=codes.device)
        self._influence = torch.empty(0, device=codes.device)  # NaN where not computed
        self._unseen = -inf  # upper bound of what was left out for want of budget
        self._candidates = 0
        self._exact_terms = 0

    def among(self, rows: Tensor) -> Found:
        """Search the given training triples (m,), without the index."""
        self._round(rows)
        return self._found()

    def everywhere(self, hits: Hits, linked: np.ndarray) -> Found:
        """Search all training triples, given the index's best hits and those that share a row with the query."""
        first = _distinct(np.concatenate([linked, hits.rows]))
        self._round(torch.from_numpy(first))
        if hits.frontier > self._threshold():
            if self._candidates < self._budget:
                above = _distinct(hits.above(self._threshold()))
                self._round(torch.from_numpy(above[np.isin(above, first, assume_unique=True, invert=True)]))
            else:
                self._unseen = max(self._unseen, hits.frontier)
        return self._found()

    def _round(self, rows: Tensor) -> None:
        """Take training triples (m,) through the cascade."""
        rows = rows.to(self._codes.device)
        room, size, most = self._budget - self._candidates, max(_BLOCKS[0], 4 * self._top_k), _BLOCKS[1]
        if len(rows) <= min(room, size):
            self._bracket(rows)
            return self._decide()
        upper = torch.cat([self._index_upper(block) for block in rows.split(most)])
        ranked = upper.argsort(descending=True)
        rows, upper = rows[ranked], upper[ranked]
        if room < len(rows):
            self._unseen = max(self._unseen, float(upper[int(room)]))
            rows, upper = rows[: int(room)], upper[: int(room)]
        while len(rows) and upper[0] > self._threshold():
            self._bracket(rows[:size])
            rows, upper, size = rows[size:], upper[size:], min(2 * size, most)
        return self._decide()

    def _index_upper(self, rows: Tensor) -> Tensor:
        uppers = [self._codes.index_upper(self._query, sign, rows) for sign in self._signs]
        return torch.stack(uppers).amax(0)

    def _bracket(self, rows: Tensor) -> None:
        """Take in the factor bounds of training triples; forget what cannot be among the best."""
        estimate, slack = self._codes.bracket(self._query, rows)
        middle = value(estimate, self._order)
        self._candidates += len(rows)
        self._rows = torch.cat([self._rows, rows])
        self._lower = torch.cat([self._lower, middle - slack])
        self._upper = torch.cat([self._upper, middle + slack])
        self._influence = torch.cat([self._influence, torch.full_like(estimate, torch.nan)])
        keep = self._upper >= self._threshold()
        self._rows, self._influence = self._rows[keep], self._influence[keep]
        self._lower, self._upper = self._lower[keep], self._upper[keep]

    def _decide(self) -> None:
        """Compute exact influences, best upper bound first, until none of the others can matter."""
        size, most = _EXACT_BLOCKS
        while True:
            open_ = torch.nonzero(self._influence.isnan() & (self._upper >= self._threshold())).flatten()
            if not len(open_):
                return
            middle = (self._lower + self._upper) / 2
            likely = nth_largest(
                middle, self._top_k
            )  # what the threshold will be, about: whoever is above has its turn
            above = open_[self._upper[open_] >= likely]
            chosen = above if len(above) else open_
            chosen = chosen[self._upper[chosen].argsort(descending=True)][:size]
            size = min(2 * size, most)
            self._influence[chosen] = self._exact(self._rows[chosen].cpu()).to(self._codes.device)
            self._lower[chosen] = self._upper[chosen] = value(self._influence[chosen], self._order)
            self._exact_terms += len(chosen)

    def _threshold(self) -> float:
        """Return the k-th best lower bound; −∞ with fewer than k triples."""
        return nth_largest(self._lower, self._top_k)

    def _found(self) -> Found:
        known = ~self._influence.isnan()
        rows, influence = best(self._rows[known], self._influence[known], self._order, self._top_k)
        gap = 0.0
        if self._unseen > -inf:
            last = float(value(influence[-1:], self._order)[0]) if len(rows) == self._top_k else 0.0
            gap = max(0.0, self._unseen - last)
        whole = self._unseen == -inf or len(rows) == self._top_k
        return Found(
            rows.cpu(), influence.cpu(), gap, self._candidates, self._exact_terms, certified=whole and gap == 0.0
        )


def nth_largest(values: Tensor, n: int) -> float:
    """Return the n-th largest of values (m,); −∞ where there are fewer."""
    return float(values.topk(n).values[-1]) if len(values) >= n else -inf


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Return rows (m,) in ascending order and once each; for as few as these, faster than `numpy.unique`."""
    rows = np.sort(rows)
    found: np.ndarray = rows[np.concatenate([[True], rows[1:] != rows[:-1]])[: len(rows)]]
    return found
