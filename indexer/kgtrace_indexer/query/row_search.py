"""Certified top-k of influences on embedding rows alone, for a batch of test triples at once.

Such an influence is a sum over the rows that both triples read, and each row is a list of an inverted file
(`kgtrace_indexer.index.inverted`), which gives training triples in descending order of a bound of their part. A
threshold algorithm (Fagin, Lotem and Naor, 2003) over the lists of a test triple, in two rounds:

1. the best entries of each list, and the exact influences of those whose summed bounds are largest. The k-th best is
   the threshold T. Where a list goes on, the last bound r_j bounds what follows;
2. where Σ max(0, r_j) reaches T, one range search of each list for everything that could still matter: entries with a
   bound above r_j = T τ_j / Σ τ, τ_j being the list's largest bound. What no list returns has less influence than T.

Triples that share no row have an influence of exactly 0; where fewer than k are larger, they fill up the answer. The
number of operations does not depend on the size of the batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bases import ROUNDING
from kgtrace_indexer.index.inverted import Entries, InvertedFile, Lists
from kgtrace_indexer.index.milvus_rows import MilvusRows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import RowLists
from kgtrace_indexer.names import Order
from kgtrace_indexer.query.certify import SIGNS, SearchOptions, TopK, value
from kgtrace_indexer.query.retrieval import Brackets, norm_products, row_brackets
from kgtrace_indexer.query.total import Total

_FIRST_HITS = 64
"""Entries requested from each list in the first round, at least; four times top_k if that is more."""
_FIRST_EXACT = 2
"""Times top_k training triples whose exact influence gives the first threshold."""
_BELOW = 1 - 1e-5
"""Times the threshold is searched for: equal influences count, and sums are rounded."""


@dataclass(frozen=True, slots=True)
class _List:
    """The lists of one table in one shard that searches read: a pair (P,) of a search and a row for each."""

    file: Lists
    shard: int
    search: np.ndarray
    row: np.ndarray
    grad: np.ndarray
    """(P, d) float64: p, or −p where the most negative influences are searched for."""


Part = tuple[_List, Entries, np.ndarray]
"""Some entries of lists, and a frontier (P,): no others have a larger bound."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Upper bounds of the influences that v searches look for."""

    search: np.ndarray
    """(c,) int64."""
    triple: np.ndarray
    """(c,) int64: each once for each search."""
    upper: np.ndarray
    """(c,) float64: no influence is larger."""
    unseen: np.ndarray
    """(v,) float64: no other training triple that shares a row has a larger influence; −∞ where there is none."""

    @classmethod
    def summed(cls, parts: Sequence[Part], searches: int, triples: int) -> "_Bounds":
        """Add up the bounds of lists."""
        base = np.zeros((1 + max(lists.shard for lists, _, _ in parts), searches))
        goes_on = np.zeros(base.shape, bool)
        keys, excess, shards = [], [], []
        for lists, entries, frontier in parts:
            least = np.maximum(frontier, 0)  # a triple that does not read the row gets nothing from it
            np.add.at(base[lists.shard], lists.search, least)
            np.logical_or.at(goes_on[lists.shard], lists.search, frontier > -inf)
            keys.append(lists.search[entries.pair] * triples + entries.triple)
            excess.append(entries.upper - least[entries.pair])
            shards.append(np.full(len(entries.pair), lists.shard))
        distinct, first, place = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
        search, triple = np.divmod(distinct, triples)
        upper = np.bincount(place, np.concatenate(excess), len(distinct)) + base[np.concatenate(shards)[first], search]
        return cls(search, triple, upper, np.where(goes_on, base, -inf).max(0))


class _Answers:
    """Exact influences on b test triples, as they become known, best first."""

    def __init__(self, count: int, triples: int, order: Order, top_k: int, budget: float) -> None:
        self._triples, self._order, self._top_k = triples, order, top_k
        self._numbers = np.arange(count)
        self.room = np.full(count, budget)
        self._taken = np.zeros(count, np.int64)
        self._left_out = np.full(count, -inf)
        self._query = np.empty(0, np.int64)
        self._triple = np.empty(0, np.int64)
        self._influence = np.empty(0, np.float32)

    def add(self, query: np.ndarray, triple: np.ndarray, influence: np.ndarray) -> None:
        """Take in influences (m,)."""
        query = np.concatenate([self._query, query])
        triple = np.concatenate([self._triple, triple])
        influence = np.concatenate([self._influence, influence.astype(np.float32)])
        order = np.lexsort((triple, -value(influence, self._order), query))
        self._query, self._triple, self._influence = query[order], triple[order], influence[order]

    def leave_out(self, unseen: np.ndarray) -> None:
        """Note bounds of training triples that were not looked at, by search (v,); −∞ where there are none."""
        self._left_out = np.maximum(self._left_out, unseen.reshape(-1, len(self.room)).max(0))

    def threshold(self) -> np.ndarray:
        """Return the k-th best value of each test triple, (b,) float64; −∞ where there are fewer."""
        starts, ends = self._ranges()
        last = starts + self._top_k - 1
        kth = np.full(len(starts), -inf)
        kth[last < ends] = value(self._influence[last[last < ends]], self._order)
        return kth

    def choose(self, bounds: _Bounds, most: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the test triples and training triples whose influence is to be computed, (m,) int64 each.

        They are the `most` of largest bound for each test triple that are not known yet and reach its threshold, if
        there is room for these.
        """
        query, triple, upper = bounds.search % len(self.room), bounds.triple, bounds.upper
        new = upper >= self.threshold()[query]
        new &= ~np.isin(query * self._triples + triple, self._query * self._triples + self._triple)
        order = np.lexsort((triple, -upper, query))
        order = order[new[order]]
        _, first = np.unique(query[order] * self._triples + triple[order], return_index=True)
        order = order[np.sort(first)]  # of both signs the larger
        query, triple, upper = query[order], triple[order], upper[order]
        number = np.arange(len(query)) - np.searchsorted(query, query)
        cut = (number >= self.room[query]) & (number < most)
        np.maximum.at(self._left_out, query[cut], upper[cut])
        chosen = (number < most) & ~cut
        counts = np.bincount(query[chosen], minlength=len(self.room))
        self.room -= counts
        self._taken += counts
        return query[chosen], triple[chosen]

    def top(self) -> list[TopK]:
        """Return the top k of each test triple."""
        starts, ends = self._ranges()
        number = np.arange(len(self._query)) - starts[self._query]
        sizes = np.minimum(ends - starts, self._top_k).tolist()
        rows, influences = (
            torch.from_numpy(array[number < self._top_k]).split(sizes) for array in (self._triple, self._influence)
        )
        last = self.threshold()
        gaps = np.maximum(0, self._left_out - np.where(last > -inf, last, 0))
        certified = (gaps == 0) & ((self._left_out == -inf) | (last > -inf))
        return [
            TopK(hits, influence, float(gaps[i]), int(self._taken[i]), int(self._taken[i]), bool(certified[i]))
            for i, (hits, influence) in enumerate(zip(rows, influences, strict=True))
        ]

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        starts, ends = (np.searchsorted(self._query, self._numbers, side) for side in ("left", "right"))
        return starts, ends


@dataclass(frozen=True, slots=True)
class RowSearch:
    """Searches the lists of all tables, of all shards."""

    rows: RowLists
    files: Mapping[str, Sequence[InvertedFile]]
    """By table, one for each shard."""
    squared_norm: np.ndarray
    """(n,) float32: ‖g‖² of all parameters."""
    milvus: Mapping[str, MilvusRows] | None = None
    """The lists of all shards, by table, where Milvus searches them."""

    @property
    def certifies(self) -> bool:
        """Return True."""
        return True

    def find(self, terms: Terms, options: SearchOptions) -> list[TopK]:
        """Return the exact top k of each test triple, certified unless `max_candidates` cut the search short."""
        queries = options.queries or RowQueries.of(terms)
        if options.same_rows:
            return self._find(queries, len(terms), options, options.allowed[0])
        return [
            top
            for i, mask in enumerate(options.allowed)
            for top in self._find({table: rows.of_triple(i) for table, rows in queries.items()}, 1, options, mask)
        ]

    def brackets(self, terms: Terms) -> Brackets:
        """Return the influence on a test triple, and no error."""
        queries = RowQueries.of(terms)

        def exact(rows: Tensor) -> tuple[Tensor, Tensor]:
            influence = self.rows.influences(queries, np.zeros(len(rows), np.int64), rows.numpy())
            return torch.from_numpy(influence), torch.zeros(len(rows))

        return exact

    def total_brackets(self, total: Total) -> Brackets | None:
        """Return the influence on rows, unless there are other blocks."""
        return None if total.dense else row_brackets(self.rows, total)

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of the bounds of the lists, and the influence with a slack for rounding, (m,) each."""
        lists = self._lists(self.files, RowQueries.of(terms), 1, (1,))
        summed = _Bounds.summed([(piece, *_everything(piece, None)) for piece in lists], 1, self._count)
        upper = np.zeros(self._count)
        upper[summed.triple] = summed.upper
        estimate, _ = self.brackets(terms)(rows)
        slack = norm_products(terms, torch.from_numpy(self.squared_norm[rows.numpy()])).double() * ROUNDING
        return torch.from_numpy(upper[rows.numpy()]) + slack, estimate - slack, estimate + slack

    @property
    def _count(self) -> int:
        """Return n, the number of training triples."""
        return len(self.squared_norm)

    def _find(
        self, queries: Mapping[str, RowQueries], count: int, options: SearchOptions, mask: np.ndarray | None
    ) -> list[TopK]:
        signs = SIGNS[options.order]
        lists = self._lists(self._searched(options.restriction), queries, count, signs)
        budget = inf if options.max_candidates is None else options.max_candidates
        answers = _Answers(count, self._count, options.order, options.top_k, budget)

        def compute(bounds: _Bounds, most: float = inf) -> None:
            query, triple = answers.choose(bounds, most)
            options.lap("search")
            answers.add(query, triple, self.rows.influences(queries, query, triple))
            options.lap("rerank")

        def fill_up(bounds: _Bounds, whole: np.ndarray) -> None:
            """Add triples that share no row to answers (b,) for which all that share one are known."""
            for i in np.flatnonzero(whole & (answers.threshold() <= 0)):
                rows = self._unlinked(bounds.triple[bounds.search % count == i], options.top_k, mask)
                answers.add(np.full(len(rows), i), rows, np.zeros(len(rows)))

        hits = max(_FIRST_HITS, 4 * options.top_k)
        first = [(piece, *piece.file.best(piece.row, piece.grad, hits, mask)) for piece in lists]
        bounds = _Bounds.summed(first, count * len(signs), self._count)
        compute(bounds, min(_FIRST_EXACT * options.top_k, answers.room.max()))
        fill_up(bounds, (bounds.unseen == -inf).reshape(-1, count).min(0))
        compute(bounds)
        threshold = np.tile(answers.threshold(), len(signs))
        again = (bounds.unseen > -inf) & ~((threshold > 0) & (bounds.unseen < threshold))
        room = np.tile(answers.room > 0, len(signs))
        answers.leave_out(np.where(again & ~room, bounds.unseen, -inf))
        again &= room
        if again.any():
            largest = [_largest(piece, entries) for piece, entries, _ in first]
            second = list(self._above(lists, largest, np.where(again, threshold, inf), mask))
            bounds = _Bounds.summed(second, count * len(signs), self._count)
            fill_up(bounds, (again & (threshold <= 0)).reshape(-1, count).min(0))
            compute(bounds)
            threshold = np.tile(answers.threshold(), len(signs))
            answers.leave_out(np.where(bounds.unseen >= threshold, bounds.unseen, -inf))
        return answers.top()

    def _searched(self, restriction: Restriction | None) -> Mapping[str, Sequence[Lists]]:
        """Return the lists by table, a piece or more of each: in Milvus, if there and if it can filter by itself."""
        if self.milvus is None or restriction is None:
            return self.files
        return {table: [lists.where(restriction.must, restriction.must_not)] for table, lists in self.milvus.items()}

    def _lists(
        self, files: Mapping[str, Sequence[Lists]], queries: Mapping[str, RowQueries], count: int, signs: Sequence[int]
    ) -> list[_List]:
        """Return the lists that a search for each sign of each of `count` test triples reads.

        The search of test triple q by the i-th sign has the number i · count + q.
        """
        return [
            _List(
                file,
                shard,
                np.concatenate([gradients.query + i * count for i in range(len(signs))]),
                np.tile(gradients.row, len(signs)),
                np.concatenate([sign * gradients.grad for sign in signs]),
            )
            for table, gradients in queries.items()
            for shard, file in enumerate(files[table])
        ]

    def _above(
        self, lists: Sequence[_List], largest: Sequence[np.ndarray], threshold: np.ndarray, mask: np.ndarray | None
    ) -> Iterable[Part]:
        """Yield the entries that may matter to searches for more than a threshold (v,).

        Searches for more than ∞ are over; by a threshold that is not positive they read all of their lists. `largest`
        are the largest bounds of each list.
        """
        sums = np.zeros((1 + max(piece.shard for piece in lists), len(threshold)))
        for piece, most in zip(lists, largest, strict=True):
            np.add.at(sums[piece.shard], piece.search, most)
        for piece, most in zip(lists, largest, strict=True):
            limit = threshold[piece.search]
            share = most / np.where(sums > 0, sums, 1)[piece.shard, piece.search]
            for all_of_it in (False, True):
                chosen = np.flatnonzero((limit < inf) & ((limit <= 0) == all_of_it) & (all_of_it | (share > 0)))
                if len(chosen):
                    part = _List(piece.file, piece.shard, piece.search[chosen], piece.row[chosen], piece.grad[chosen])
                    radius = limit[chosen] * _BELOW * share[chosen]
                    if all_of_it:
                        entries, frontier = _everything(part, mask)
                    else:
                        entries, frontier = piece.file.above(part.row, part.grad, radius, mask)
                    yield part, entries, frontier

    def _unlinked(self, linked: np.ndarray, count: int, mask: np.ndarray | None) -> np.ndarray:
        """Return the first `count` allowed training triples that are not among those that share a row, ascending."""
        linked = np.unique(linked)
        enough = count + len(linked)
        pool = np.arange(min(enough, self._count)) if mask is None else np.flatnonzero(mask)[:enough]
        rows: np.ndarray = np.setdiff1d(pool, linked, assume_unique=True)[:count]
        return rows


def _everything(lists: _List, mask: np.ndarray | None) -> tuple[Entries, np.ndarray]:
    return lists.file.best(lists.row, lists.grad, 1 + lists.file.longest(lists.row), mask)


def _largest(lists: _List, entries: Entries) -> np.ndarray:
    """Return the largest bound of each list that is positive, (P,)."""
    largest = np.zeros(len(lists.row))
    np.maximum.at(largest, entries.pair, entries.upper)
    return largest
