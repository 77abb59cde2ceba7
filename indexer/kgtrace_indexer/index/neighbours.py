"""The training triples as a graph: which entities are next to which, whichever way a triple points."""

import numpy as np

_MOST = 1024
"""Neighbours that are compared when two hubs are intersected; of more, so many evenly spaced ones."""


class Neighbours:
    """The neighbours of each entity, sorted: lists are searched by bisection and never gone through."""

    def __init__(self, triples: np.ndarray) -> None:
        """`triples` are (N, 3) int32; each is kept once from its head and once from its tail, in 16 bytes."""
        self._triples = triples
        ends, others = triples[:, [0, 2]].T.ravel(), triples[:, [2, 0]].T.ravel()
        order = np.lexsort((others, ends))
        self._others = others[order]  # (2N,) int32
        self._rows = (order % max(1, len(triples))).astype(np.int32)
        self._begins = np.concatenate([[0], np.cumsum(np.bincount(ends))])  # (E + 1,)

    def degree(self, entities: np.ndarray) -> np.ndarray:
        """Return in how many places of training triples each of these entities (m,) stands, (m,) int64."""
        inside = np.minimum(entities, len(self._begins) - 2)
        degrees: np.ndarray = np.where(entities == inside, self._begins[inside + 1] - self._begins[inside], 0)
        return degrees

    def between(self, one: int, other: int) -> tuple[int, int, int] | None:
        """Return a training triple that links two entities, if there is one from `one` to `other`; or None."""
        start, end = self._span(one)
        place = start + int(self._others[start:end].searchsorted(other))
        if place == end or self._others[place] != other:
            return None
        head, relation, tail = self._triples[self._rows[place]].tolist()
        return head, relation, tail

    def common(self, one: int, other: int) -> np.ndarray:
        """Return entities that are next to both, (m,) int32, of two hubs not all of them.

        Takes a bisection for each neighbour of the entity that has fewer, and for no more than 1,024 of them.
        """
        spans = sorted((self._span(one), self._span(other)), key=lambda span: span[1] - span[0])
        few, many = (self._others[start:end] for start, end in spans)
        few = few[:: -(-len(few) // _MOST) or 1]
        places = np.minimum(many.searchsorted(few), len(many) - 1)
        shared: np.ndarray = few[many[places] == few]
        return shared

    def _span(self, entity: int) -> tuple[int, int]:
        if entity + 1 >= len(self._begins):
            return 0, 0
        return int(self._begins[entity]), int(self._begins[entity + 1])
