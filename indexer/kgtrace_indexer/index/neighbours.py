"""The training triples as a graph: which entities are next to which, whichever way a triple points."""

from collections.abc import Mapping

import numpy as np

from kgtrace_store.errors import CorruptGeneration

BEGIN = "begin"
"""Name of the array of where the neighbours of each entity begin, (E + 1,) int64."""
NEIGHBOUR = "neighbour"
"""Name of the array of neighbours, by entity, then ascending, (2N,) int32."""
TRIPLE = "triple"
"""Name of the array of the triples that link them, (2N,) int32."""

_MOST = 1024
"""Neighbours that are compared when two hubs are intersected; of more, so many evenly spaced ones."""


def graph_of(triples: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of the graph of triples (N, 3) int32: each triple is once at its head, and once at its tail."""
    ends, others = (triples[:, columns].T.ravel() for columns in ([0, 2], [2, 0]))
    span = int(others.max(initial=0)) + 1
    order = np.argsort(ends * np.int64(span) + others, kind="stable")  # from the head before from the tail
    return {
        BEGIN: np.concatenate([[0], np.cumsum(np.bincount(ends))]).astype(np.int64),
        NEIGHBOUR: others[order],
        TRIPLE: (order % max(1, len(triples))).astype(np.int32),
    }


class Neighbours:
    """The neighbours of each entity: lists are searched by bisection and never gone through."""

    def __init__(self, triples: np.ndarray, graph: Mapping[str, np.ndarray]) -> None:
        """Read the arrays that `graph_of` gives for triples (N, 3). Raises `CorruptGeneration`."""
        try:
            self._begins, self._others, self._rows = (np.asarray(graph[name]) for name in (BEGIN, NEIGHBOUR, TRIPLE))
        except KeyError as e:
            raise CorruptGeneration(f"the graph of the training triples lacks {e}") from e
        lengths = (len(self._others), len(self._rows), int(self._begins[-1]))
        if set(lengths) != {2 * len(triples)}:
            raise CorruptGeneration(f"the graph of {len(triples)} training triples has arrays of {lengths} entries")
        self._triples = triples

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
