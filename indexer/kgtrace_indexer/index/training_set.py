"""The indexed training triples: who is known, who shares which embedding row, who may be named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.index.query_code import QueryCode
from kgtrace_indexer.names import Ranking, Score

KNOWN = "known"
"""Name of the array of all training triples, beside the posting lists, where only a sample of them is indexed."""


@dataclass(frozen=True, slots=True)
class PostingLists:
    """Which training triples of a shard read each row of each embedding table."""

    start: int
    """The shard's first training triple."""
    tables: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Table → offsets (size + 1,) and rows (·,), counted from that one: `posting_lists`."""

    def of(self, table: str, index: int) -> np.ndarray:
        """Return the training triples that read a row, (m,) int64, ascending."""
        offsets, rows = self.tables[table]
        found: np.ndarray = np.add(rows[offsets[index] : offsets[index + 1]], self.start, dtype=np.int64)
        return found


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The indexed triples, sorted by relation, head and tail, and who shares which embedding row."""

    triples: np.ndarray
    """(n, 3) int32."""
    train_index: np.ndarray
    """(n,) int64: rows as read."""
    squared_norm: np.ndarray
    """(n,) float32: ‖g‖² of the gradients that are indexed."""
    self_influence: Mapping[Score, np.ndarray]
    """(n,) float32: by what suspicious ones are told. ``tracin`` is the same, or that under ``bce``."""
    postings: Sequence["PostingLists"]
    """Who reads which embedding row, of all shards in their order."""
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

    def tails_of(self, head: int, relation: int) -> np.ndarray:
        """Return the tails of all training triples (head, relation, ·)."""
        start, end = self._relation(relation)
        heads = self.known[start:end, 0]
        low, high = np.searchsorted(heads, head, "left"), np.searchsorted(heads, head, "right")
        return self.known[start + low : start + high, 2]

    def heads_of(self, relation: int, tail: int) -> np.ndarray:
        """Return the heads of all training triples (·, relation, tail)."""
        start, end = self._relation(relation)
        found: np.ndarray = self.known[start:end, 0][self.known[start:end, 2] == tail]
        return found

    def linked(self, query: QueryCode) -> np.ndarray:
        """Return the training triples that read an embedding row the query reads, (m,) int64, some of them twice."""
        reads = [self.reading(table, i) for table, indices in query.reads().items() for i in indices]
        return np.concatenate([np.empty(0, np.int64), *reads])

    def reading(self, table: str, index: int) -> np.ndarray:
        """Return the training triples that read a row of an embedding table, (m,) int64, ascending."""
        found: np.ndarray = np.concatenate([lists.of(table, index) for lists in self.postings])
        return found

    def readers(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which training triples read each row of an embedding table: offsets (size + 1,) and rows (·,).

        Those that read row i are ``rows[offsets[i] : offsets[i + 1]]``.
        """
        if len(self.postings) == 1:
            return self.postings[0].tables[table]
        lists = [(lists.start, *lists.tables[table]) for lists in self.postings]
        rows = np.concatenate([np.add(rows, start, dtype=np.int64) for start, _, rows in lists])
        read = np.concatenate([np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) for _, offsets, _ in lists])
        return np.sum([offsets for _, offsets, _ in lists], 0), rows[np.argsort(read, kind="stable")]

    def allowed(self, restriction: Restriction) -> np.ndarray | None:
        """Return a mask (n,) of the triples whose fields are as asked for, or None for all."""
        if not (restriction.must or restriction.must_not):
            return None
        mask = np.ones(len(self.triples), bool)
        for wanted, fields in ((True, restriction.must), (False, restriction.must_not)):
            for name, ids in fields.items():
                column = self.triples[:, ("head", "relation", "tail").index(name)]
                mask &= np.isin(column, np.fromiter(ids, np.int64, len(ids))) == wanted
        return mask

    def reached(self, triple: np.ndarray, steps: int, entities: int) -> np.ndarray:
        """Return a mask (entities,) of those at most `steps` training triples away from a triple's head or tail.

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

    def by_self_influence(self, score: Score, top_k: int, order: Ranking, restriction: Restriction) -> np.ndarray:
        """Return the allowed rows (k,) of largest or smallest self-influence; equal ones by `train_index`."""
        mask = self.allowed(restriction)
        rows = np.arange(len(self.triples)) if mask is None else np.flatnonzero(mask)
        keys = self.self_influence[score][rows]
        if order == "descending":
            keys = -keys
        if top_k < len(rows):
            kept = keys <= np.partition(keys, top_k - 1)[top_k - 1]
            rows, keys = rows[kept], keys[kept]
        return rows[np.lexsort((self.train_index[rows], keys))][:top_k]

    def _relation(self, relation: int) -> tuple[int, int]:
        if relation + 1 >= len(self.relations):
            return len(self.known), len(self.known)
        return int(self.relations[relation]), int(self.relations[relation + 1])


def touching(triples: np.ndarray, entities: np.ndarray) -> np.ndarray:
    """Return which triples (m, 3) have their head or tail in a mask of all entities: (m,) bool."""
    found: np.ndarray = entities[triples[:, 0]] | entities[triples[:, 2]]
    return found


def posting_lists(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which triples read each row of a table of `size` rows.

    `indices` (n, ·) holds the rows that triple i reads. Returns offsets (size + 1,) int64 and rows int32: the triples
    that read row i are ``rows[offsets[i] : offsets[i + 1]]``, ascending and without repetition.
    """
    triples = np.broadcast_to(np.arange(len(indices), dtype=np.int64)[:, None], indices.shape)
    pairs = np.unique(indices.astype(np.int64) * max(1, len(indices)) + triples)
    row, triple = np.divmod(pairs, max(1, len(indices)))
    return np.searchsorted(row, np.arange(size + 1)), triple.astype(np.int32)


def in_order(ids: np.ndarray) -> np.ndarray:
    """Return the rows of triples (n, 3) by relation, head and tail, (n,) int64; equal ones stay as they are."""
    return np.lexsort(ids.T[[2, 0, 1]])
