"""The indexed training triples: which are known, and which may be named."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.names import Direction, Ranking, Score

KNOWN = "known"
"""Name of the array of all training triples, where only a sample of them is indexed."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The indexed triples, sorted by relation, head and tail."""

    triples: np.ndarray
    """(n, 3) int32."""
    train_index: np.ndarray
    """(n,) int64: rows as read."""
    squared_norm: Mapping[Score, np.ndarray]
    """(n,) float32: ‖g‖² of the gradients that each score multiplies."""
    self_influence: Mapping[Score, np.ndarray]
    """(n,) float32: self-influence by score, to rank suspicious triples."""
    known: np.ndarray
    """(N, 3) int32, sorted: all training triples, indexed or not."""
    relations: np.ndarray = field(init=False)
    """(R + 1,) int64: where in `known` those of each relation begin, up to the last one that occurs."""
    entities: np.ndarray = field(init=False)
    """(E,) bool: which entities `known` holds, up to the last one that occurs."""

    def __post_init__(self) -> None:
        """Look once where each relation begins, and which entities occur."""
        column = np.ascontiguousarray(self.known[:, 1])
        begins = np.searchsorted(column, np.arange(int(column.max(initial=-1)) + 2))
        object.__setattr__(self, "relations", begins)
        heads, tails = self.known[:, 0], self.known[:, 2]
        entities = np.zeros(max(int(heads.max(initial=-1)), int(tails.max(initial=-1))) + 1, bool)
        entities[heads] = entities[tails] = True
        object.__setattr__(self, "entities", entities)

    def has_entity(self, entity: int) -> bool:
        """Return whether an entity is head or tail of any training triple."""
        return entity < len(self.entities) and bool(self.entities[entity])

    def has_relation(self, relation: int) -> bool:
        """Return whether any training triple has a relation."""
        start, end = self._relation(relation)
        return start < end

    def of_relation(self, relation: int) -> np.ndarray:
        """Return all training triples of a relation, (m, 3) int32, sorted by head and tail."""
        start, end = self._relation(relation)
        return self.known[start:end]

    def holds(self, heads: np.ndarray, relation: int, tails: np.ndarray) -> np.ndarray:
        """Return which (heads (m,), relation, tails (m,)) are training triples, (m,) bool: by bisection, in no scan."""
        rows = self.of_relation(relation)
        if not len(rows):
            return np.zeros(len(heads), bool)
        low, high = np.zeros(len(heads), np.int64), np.full(len(heads), len(rows))
        while (low < high).any():
            middle = (low + high) // 2
            at = rows[np.minimum(middle, len(rows) - 1)]
            before = (low < high) & ((at[:, 0] < heads) | ((at[:, 0] == heads) & (at[:, 2] < tails)))
            low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
        at = rows[np.minimum(low, len(rows) - 1)]
        held: np.ndarray = (at[:, 0] == heads) & (at[:, 2] == tails)
        return held

    def tails_of(self, head: int, relation: int) -> np.ndarray:
        """Return the tails of all training triples (head, relation, ·)."""
        start, end = self._relation(relation)
        heads = self.known[start:end, 0]
        low, high = np.searchsorted(heads, head, "left"), np.searchsorted(heads, head, "right")
        return self.known[start + low : start + high, 2]

    def heads_of(self, relation: int, tail: int) -> np.ndarray:
        """Return the heads of all training triples (·, relation, tail)."""
        start, end = self._relation(relation)
        heads: np.ndarray = self.known[start:end, 0][self.known[start:end, 2] == tail]
        return heads

    def relations_of(self, entity: int, direction: Direction) -> np.ndarray:
        """Return the relations of which an entity has any tails (or heads) in the training triples, (k,) int64.

        Those of most training triples come first, equal ones by id.
        """
        known = self.known[self.known[:, 0 if direction == "tail" else 2] == entity, 1]
        relations, counts = np.unique(known, return_counts=True)
        return relations[np.argsort(-counts, kind="stable")].astype(np.int64)

    def positions(self, head: int, relation: int, tail: int) -> np.ndarray:
        """Return the places of a triple among the indexed ones, (k,) int64: several if it was repeated."""
        low, high = 0, len(self.triples)
        for column, value in ((1, relation), (0, head), (2, tail)):
            ids = self.triples[low:high, column]
            low, high = (low + int(np.searchsorted(ids, value, side)) for side in ("left", "right"))
        return np.arange(low, high)

    def allowed(self, restriction: Restriction) -> np.ndarray | None:
        """Return a mask (n,) of the triples that a restriction allows, or None for all."""
        if not (restriction.must or restriction.must_not):
            return None
        mask = np.ones(len(self.triples), bool)
        for included, fields in ((True, restriction.must), (False, restriction.must_not)):
            for name, ids in fields.items():
                column = self.triples[:, ("head", "relation", "tail").index(name)]
                mask &= np.isin(column, np.fromiter(ids, np.int64, len(ids))) == included
        return mask

    def reached(self, triple: np.ndarray, steps: int, entities: int) -> np.ndarray:
        """Return a mask (entities,) of the entities at most `steps` training triples from a triple's head or tail.

        A breadth-first search, one pass over the training triples for each step that reaches anything new.
        """
        reached = np.zeros(entities, bool)
        reached[triple[[0, 2]]] = True
        for _ in range(steps):
            ends = self.known[touching(self.known, reached)][:, [0, 2]]
            if reached[ends].all():
                break
            reached[ends] = True
        return reached

    def by_self_influence(
        self, score: Score, top_k: int, order: Ranking, restriction: Restriction
    ) -> tuple[np.ndarray, int]:
        """Return the allowed rows (k,) of largest or smallest self-influence, equal ones by `train_index`.

        Also return how many rows are allowed.
        """
        mask = self.allowed(restriction)
        rows = np.arange(len(self.triples)) if mask is None else np.flatnonzero(mask)
        count, keys = len(rows), self.self_influence[score][rows]
        if order == "descending":
            keys = -keys
        if top_k < len(rows):
            kept = keys <= np.partition(keys, top_k - 1)[top_k - 1]
            rows, keys = rows[kept], keys[kept]
        return rows[np.lexsort((self.train_index[rows], keys))][:top_k], count

    def _relation(self, relation: int) -> tuple[int, int]:
        if relation + 1 >= len(self.relations):
            return len(self.known), len(self.known)
        return int(self.relations[relation]), int(self.relations[relation + 1])


def touching(triples: np.ndarray, entities: np.ndarray) -> np.ndarray:
    """Return which triples (m, 3) have their head or tail in a mask of all entities: (m,) bool."""
    touched: np.ndarray = entities[triples[:, 0]] | entities[triples[:, 2]]
    return touched


def in_order(ids: np.ndarray) -> np.ndarray:
    """Return the rows of triples (n, 3) by relation, head and tail, (n,) int64; equal ones stay as they are."""
    return np.lexsort(ids.T[[2, 0, 1]])
