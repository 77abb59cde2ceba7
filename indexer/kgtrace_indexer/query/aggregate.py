"""Influence on test triples, summed over groups of training triples.

A sum needs every influence, and so a full scan; but where each is known to lie within ``estimate ± slack``, their sum
lies within Σ estimate ± Σ slack, and so do the sums of their positive and of their negative parts, for neither part of
a number moves further than the number does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Aggregation, Restriction, Sums
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.names import Direction, Group, Order
from kgtrace_indexer.query.certify import nth_largest, value
from kgtrace_indexer.query.retrieval import Brackets, Retrieval
from kgtrace_indexer.query.scan import among, blocks, near, rows_of
from kgtrace_indexer.query.total import Total

_TEST_BLOCK = 64
"""Test triples, or rows of their gradients' sum, that are computed together where influences on many are summed."""
_BRACKET_BLOCK = 8192
"""Training triples whose factor bound is computed at a time."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Summands: influences on one test triple, or on several together."""

    rows: Tensor
    """(m,) int64: training triples that count."""
    exact: Callable[[Tensor], Tensor]
    """Maps training triples (m,) to their influences (m,)."""
    brackets: Brackets | None
    """None where only exact influences are of use."""


@dataclass(frozen=True, slots=True)
class Aggregator:
    """Sums influences on test triples by groups of training triples."""

    featurizer: Featurizer
    training: TrainingSet
    retrieval: Retrieval | None
    entities: int
    relations: int
    query_gradients: Callable[[Terms], Terms]
    """Maps gradients g' of test triples to query gradients: g' itself, or Pg'."""
    restriction: Restriction
    """Which training triples count; `within_hops` counts from each test triple alone."""
    direction: Direction
    exact: bool
    """Compute every training triple's influence; else sums are estimates with bounds on their errors."""
    wanted: Callable[[], bool]
    """Called between blocks: true while a caller waits for the sums."""

    def sums(self, triples: np.ndarray, by: Group, top_k: int, order: Order) -> Aggregation:
        """Return influences on test triples (b, 3), summed by relation, head or tail of training triples.

        By ``triple`` every training triple is a group of its own; the best of them then have their exact influences.
        """
        training = self.training
        count = len(training.triples)
        sums = GroupSums({"relation": self.relations, "triple": count}.get(by, self.entities))
        whole = None if self.restriction.within_hops is not None else self._together(triples)
        if whole is not None and by != "triple":
            for block, influence, slack in self._summands(whole, whole.rows, self.exact):
                sums.add(self._groups(block, by), influence, slack)
            return sums.best(order, top_k)

        def parts() -> Iterator[_Part]:
            yield from [whole] if whole is not None else (self._alone(triple[None]) for triple in triples)

        influence, slack = torch.zeros(2, count, dtype=torch.float64)
        counts = torch.zeros(count, dtype=torch.bool)
        for part in parts():
            for block, summand, off in self._summands(part, part.rows, self.exact):
                influence[block] += summand
                slack[block] += off
                counts[block] = True
        rows = counts.nonzero().flatten()
        if by == "triple":
            again = rows[(slack[rows] > 0) & _may_lead(influence[rows], slack[rows], order, top_k)]
            influence[again], slack[again] = 0.0, 0.0
            for part in parts():
                for block, summand, _ in self._summands(part, again[torch.isin(again, part.rows)], True):
                    influence[block] += summand
        for block in rows.split(_BRACKET_BLOCK):
            sums.add(self._groups(block, by), influence[block], slack[block])
        return sums.best(order, top_k)

    def _alone(self, triple: np.ndarray) -> _Part:
        """Return the influences on one test triple (1, 3) as summands."""
        terms = self.query_gradients(self.featurizer.test_terms(triple, self.direction))
        (mask,) = near(self.training, triple, self.restriction, self.entities)

        def exact(rows: Tensor) -> Tensor:
            return self.featurizer.influences(self.training.triples[rows.numpy()], terms)[:, 0].cpu()

        return _Part(
            rows=rows_of(self.training, among(self.training, self.training.allowed(self.restriction), mask)),
            exact=exact,
            brackets=None if self.retrieval is None else self.retrieval.brackets(terms),
        )

    def _together(self, triples: np.ndarray) -> _Part:
        """Return the influences on all test triples (b, 3) together as summands, without `within_hops`."""
        if len(triples) == 1:
            return self._alone(triples)
        first = self.featurizer.test_terms(triples[:1], self.direction)
        # plain influence; also raises errors of the options before the work begins
        unchanged = self.query_gradients(first) is first
        pieces = blocks(torch.arange(len(triples)), self.featurizer.block(_TEST_BLOCK), self.wanted)
        total = Total.of(self.featurizer.test_terms(triples[piece.numpy()], self.direction) for piece in pieces)
        if not unchanged:
            total = total.changed_rows(self.query_gradients, lambda rows: blocks(rows, _TEST_BLOCK, self.wanted))

        def exact(rows: Tensor) -> Tensor:
            return total.influences(self.featurizer.training_terms(self.training.triples[rows.numpy()])).cpu()

        return _Part(
            rows=rows_of(self.training, self.training.allowed(self.restriction)),
            exact=exact,
            brackets=None if self.retrieval is None else self.retrieval.total_brackets(total),
        )

    def _summands(self, part: _Part, rows: Tensor, exact: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield blocks of training triples (m,) with their influences and how far these may be off, (m,) each."""
        brackets = None if exact else part.brackets
        size = self.featurizer.scanned if brackets is None else _BRACKET_BLOCK
        for block in blocks(rows, size, self.wanted):
            if brackets is None:
                influence = part.exact(block)
                yield block, influence, torch.zeros_like(influence)
            else:
                yield block, *brackets(block)

    def _groups(self, rows: Tensor, by: Group) -> Tensor:
        """Return the group of each training triple (m,), (m,) int64."""
        if by == "triple":
            return rows
        column = ("head", "relation", "tail").index(by)
        return torch.from_numpy(self.training.triples[rows.numpy(), column].astype(np.int64))


class GroupSums:
    """Running sums of the groups 0, …, size − 1."""

    def __init__(self, size: int) -> None:
        self._counts = torch.zeros(size, dtype=torch.int64)
        self._sums = torch.zeros(4, size, dtype=torch.float64)  # of influence, its two parts and slack

    def add(self, groups: Tensor, influence: Tensor, slack: Tensor) -> None:
        """Take in training triples of groups (m,): influence and how far it may be off, (m,) each."""
        self._counts.index_add_(0, groups, torch.ones_like(groups))  # touches no group that has none here
        parts = torch.stack([influence, influence.clamp_min(0), influence.clamp_max(0), slack])  # (4, m)
        self._sums.index_add_(1, groups, parts.double())

    def best(self, order: Order, top_k: int) -> Aggregation:
        """Return the first groups that hold a training triple at all; equal ones by ascending number."""
        present = torch.nonzero(self._counts).flatten()
        values, errors = value(self._sums[0, present], order), self._sums[3, present]
        ranked = values.argsort(descending=True, stable=True)
        lower, upper = (values - errors)[ranked], (values + errors)[ranked]
        highest_after = upper.flip(0).cummax(0).values.flip(0)[1:]  # of all that come later
        certified = bool((lower[:-1] >= highest_after)[:top_k].all())
        chosen = present[ranked[:top_k]]
        return Aggregation(
            groups=chosen.numpy(),
            sums=_sums(self._counts[chosen], self._sums[:, chosen]),
            total=_sums(self._counts.sum()[None], self._sums.sum(1, keepdim=True)),
            certified=certified,
        )


def _sums(counts: Tensor, parts: Tensor) -> Sums:
    sums, positive, negative, errors = parts.numpy()
    return Sums(counts.numpy(), sums, positive, negative, errors)


def _may_lead(influence: Tensor, slack: Tensor, order: Order, top_k: int) -> Tensor:
    """Return which influences (m,), known up to a slack each, may be among the best: (m,) bool."""
    middle = value(influence, order)
    return middle + slack >= nth_largest(middle - slack, top_k)
