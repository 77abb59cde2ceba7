"""How a training triple is related to the prediction that it influenced: by its ends, its relation, or a path.

A reason is read from the training graph alone. It says nothing of the model, and no influence depends on it.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from kgtrace_indexer.answers import Ids, Reason
from kgtrace_indexer.index.neighbours import Neighbours
from kgtrace_indexer.index.training_set import TrainingSet

_INVERSE_SHARE = 0.5
"""Share of a relation's triples whose reverse another relation holds, from which that is its inverse."""

_INVERSE_LEAST = 2
"""How many reversed triples this takes at least: one may be the prediction itself."""

_SAMPLE = 1024
"""Triples of a relation, evenly spaced, that the share is measured on."""


class Reasons:
    """Finds the reason of each training triple named in an answer, in time that no hub and no large relation raises."""

    def __init__(self, training: TrainingSet, neighbours: Callable[[], Neighbours]) -> None:
        """`neighbours` opens the graph of all training triples, when it is first needed."""
        self._training = training
        self._open = neighbours
        self._shares: dict[tuple[int, int], float] = {}

    @cached_property
    def _neighbours(self) -> Neighbours:
        return self._open()

    def prepare(self) -> None:
        """Open the graph, which is made now for a generation that was written without one."""
        _ = self._neighbours

    def of(self, prediction: Ids, fact: Ids) -> Reason:
        """Return the first reason that holds, in this order.

        ``itself``, ``inverse``, ``same-pair``, ``path`` of two triples, ``same-head-relation``, ``same-relation-tail``,
        ``path`` of three, ``shares-head``, ``shares-tail``, ``same-relation``, ``none``: from what makes the
        prediction nearly certain to what any triple may have.
        """
        head, relation, tail = prediction
        source, other, target = fact
        if fact == prediction:
            return Reason("itself")
        if {source, target} == {head, tail}:
            if (source, target) == (tail, head) and (share := self.reversed_share(other, relation)) >= _INVERSE_SHARE:
                return Reason("inverse", share=share)
            return Reason("same-pair")
        if head != tail and (path := self._two(head, tail, fact)):
            return Reason("path", path=path)
        if (source, other) == (head, relation):
            return Reason("same-head-relation")
        if (other, target) == (relation, tail):
            return Reason("same-relation-tail")
        if head != tail and (path := self._three(head, tail, fact)):
            return Reason("path", path=path)
        if head in (source, target):
            return Reason("shares-head")
        if tail in (source, target):
            return Reason("shares-tail")
        return Reason("same-relation" if other == relation else "none")

    def reversed_share(self, relation: int, other: int) -> float:
        """Return the share of training triples (y, relation, x) for which (x, other, y) is one, too.

        Measured on 1,024 of them at most, once for each pair of relations; 0 where fewer than two are reversed.
        """
        if (relation, other) not in self._shares:
            rows = self._training.of_relation(relation)
            sample = rows[:: -(-len(rows) // _SAMPLE) or 1]
            hits = self._training.holds(sample[:, 2], other, sample[:, 0])
            self._shares[relation, other] = float(hits.mean()) if hits.sum() >= _INVERSE_LEAST else 0.0
        return self._shares[relation, other]

    def _two(self, head: int, tail: int, fact: Ids) -> tuple[Ids, ...]:
        """Return a path of two triples from head to tail by the fact, or none."""
        if (middle := _across(fact, head)) is not None and (last := self._step(middle, tail, (head,))):
            return fact, last
        if (middle := _across(fact, tail)) is not None and (first := self._step(head, middle, (tail,))):
            return first, fact
        return ()

    def _three(self, head: int, tail: int, fact: Ids) -> tuple[Ids, ...]:
        """Return a path of three triples from head to tail by the fact, through the entity of fewest triples."""
        if (near := _across(fact, head)) is not None:
            return self._bridge(fact, near, tail, away=head)
        if (near := _across(fact, tail)) is not None:
            return tuple(reversed(self._bridge(fact, near, head, away=tail)))
        for one, other in ((fact[0], fact[2]), (fact[2], fact[0])):
            if one != other and (first := self._step(head, one)) and (last := self._step(other, tail)):
                return first, fact, last
        return ()

    def _bridge(self, fact: Ids, near: int, far: int, away: int) -> tuple[Ids, ...]:
        """Return the fact and a path of two triples on from `near` to `far` that comes by neither, nor by `away`."""
        if near == away:
            return ()
        between = self._neighbours.common(near, far)
        between = between[~np.isin(between, (near, far, away))]
        if not len(between):
            return ()
        rarest = int(between[self._neighbours.degree(between).argmin()])
        first, second = self._step(near, rarest), self._step(rarest, far)
        return (fact, first, second) if first and second else ()

    def _step(self, one: int, other: int, apart: tuple[int, ...] = ()) -> Ids | None:
        """Return a training triple between two different entities, neither of which is one `apart`."""
        return None if one == other or one in apart or other in apart else self._neighbours.between(one, other)


def _across(fact: Ids, entity: int) -> int | None:
    """Return the entity at the other end of a fact, or None where the fact does not touch this entity."""
    source, _, target = fact
    return target if source == entity else source if target == entity else None
