"""Milvus as a back end for the search: the searched vectors of generations, in collections of a server or cluster.

Every generation has a collection of its own, ``kgtrace_`` and its id, with an entity for each training triple: its
number, head, relation and tail, and its vector, float32, in a ``FLAT`` index by inner product. Milvus compares
exhaustively then, and its distances bound influences as FAISS's scores do. The alias ``kgtrace`` names the collection
of the generation that answers; switching it is one step in Milvus, for other programs that search there.

The lists of an inverted file have a collection for each table, ``_rows_`` and its number behind that name. An entity is
an entry there, with the number of its list, ``row``, besides: a search of one list is a filter.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np

from kgtrace_store.errors import MissingExtra, SearchUnavailable
from kgtrace_store.search import NO_HIT, checked_queries, checked_query, padded, radius_of

ALIAS = "kgtrace"
"""Of the collection that answers."""
FIELDS = ("head", "relation", "tail")
"""Of the training triple, to filter by."""

Entry = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a list: the list's number (m,), the training triple (m,), and the vector (m, dim) float32."""

_VECTOR = "code"
_LIST = "row"
_LISTS = "_rows_{}"
"""Ends the names of collections of lists, with the number of a table."""
_MOST = 16_384
"""Hits that Milvus returns at most (``proxy.maxResultWindow``)."""
_ENTITIES, _NUMBERS = 10_000, 1 << 20
"""Entities, and numbers of their vectors, sent at a time: four megabytes at most."""
_TIMEOUT = 60.0
"""Seconds for one request; loading a collection may take as long as it does."""


class Milvus:
    """A server or cluster that holds generations."""

    def __init__(self, uri: str, token: str | None = None) -> None:
        """Connect to ``http://HOST:PORT``, with ``/DATABASE`` behind it where it is not the default one.

        ``token`` is ``USER:PASSWORD`` or an API key. Raises :class:`SearchUnavailable` and :class:`MissingExtra`.
        """
        try:
            import pymilvus
        except ImportError as e:
            raise MissingExtra("the Milvus client is not installed: pip install 'kgtrace[scale]'") from e
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # its messages are in the error that is raised
        self._types, self._error = pymilvus.DataType, pymilvus.MilvusException
        self._uri = uri
        with self._client_errors():
            self._client = pymilvus.MilvusClient(uri=uri, token=token or "", timeout=_TIMEOUT)
            self._client.get_server_version()  # the client may be connected from before

    def hold(self, generation: str, vectors: Iterable[np.ndarray], triples: np.ndarray, dim: int) -> "MilvusSearch":
        """Return the search over a generation's vectors, which are sent first where they are not there yet.

        ``vectors`` come in blocks (m, dim) float32, one for each of ``triples`` (n, 3). An interrupted transfer is
        repeated, and two processes that send the same vectors do no harm. Raises :class:`SearchUnavailable`.
        """
        name, ids = _collection(generation), range(len(triples))
        pairs = zip(triples, chain.from_iterable(vectors), strict=True)
        entities = ({"id": i, **_fields(triple), _VECTOR: vector} for i, (triple, vector) in enumerate(pairs))
        self._hold(name, entities, len(triples), dim)
        return MilvusSearch(self, name, ids, dim, len(ids))

    def hold_lists(
        self, generation: str, table: int, entries: Iterable[Entry], count: int, triples: np.ndarray, dim: int
    ) -> "MilvusLists":
        """Return the lists of a table of a generation, as `hold` does its vectors.

        ``table`` is its number; ``entries``, ``count`` of them, come in blocks, and no list has a training triple of
        ``triples`` (n, 3) twice.
        """
        name = _collection(generation) + _LISTS.format(table)
        blocks = (zip(*block, strict=True) for block in entries)
        entities = (
            {"id": int(row) * len(triples) + int(i), _LIST: int(row), **_fields(triples[i]), _VECTOR: vector}
            for row, i, vector in chain.from_iterable(blocks)
        )
        self._hold(name, entities, count, dim, _LIST)
        return MilvusLists(self, name, len(triples), dim)

    def switch(self, generation: str) -> None:
        """Let the alias name a generation that is held. Raises :class:`SearchUnavailable`."""
        name = _collection(generation)
        with self._client_errors():
            try:
                self._client.alter_alias(name, ALIAS)
            except self._error:
                self._client.create_alias(name, ALIAS)

    def drop(self, generations: Iterable[str]) -> None:
        """Forget generations, whether they are held or not. Raises :class:`SearchUnavailable`."""
        with self._client_errors():
            names = self._client.list_collections()
            for whole in map(_collection, generations):
                for name in names:
                    if name == whole or name.startswith(whole + _LISTS.format("")):
                        self._client.drop_collection(name)

    def search(
        self, name: str, queries: np.ndarray, k: int, condition: str, parameters: Mapping[str, float]
    ) -> Sequence[Any]:
        """Return for each of queries (b, dim) the first ``k`` hits, at most `_MOST`, that meet a condition."""
        with self._client_errors():
            hits: Sequence[Any] = self._client.search(
                name, queries.tolist(), anns_field=_VECTOR, filter=condition, limit=k, output_fields=["id"],
                search_params={"metric_type": "IP", "params": dict(parameters)},
            )  # fmt: skip
        return hits

    def _hold(self, name: str, entities: Iterator[dict[str, Any]], count: int, dim: int, *indexed: str) -> None:
        """Send entities, ``count`` of them, to a collection that does not hold them; some fields get an index."""
        with self._client_errors():
            if self._entity_count(name) == count:
                return
            self._create(name, dim, *indexed)
            size = max(1, min(_ENTITIES, _NUMBERS // dim))
            while batch := list(islice(entities, size)):
                self._client.upsert(name, batch)
            self._client.flush(name)
            present = self._client.list_indexes(name)
            if _VECTOR not in present:
                index = self._client.prepare_index_params()
                for field in indexed:
                    if field not in present:
                        index.add_index(field, index_type="INVERTED")
                index.add_index(_VECTOR, index_type="FLAT", metric_type="IP")  # the last: with it, all is there
                self._client.create_index(name, index)
            self._client.load_collection(name, timeout=None)
            if (entity_count := self._entity_count(name)) != count:
                raise SearchUnavailable(
                    f"Milvus at {self._uri} holds {entity_count} entities in {name}, {count} were sent"
                )

    def _entity_count(self, name: str) -> int | None:
        """Load a collection and count its entities; None where it is not there, or not whole."""
        if not self._client.has_collection(name) or _VECTOR not in self._client.list_indexes(name):
            return None
        self._client.load_collection(name, timeout=None)
        (row,) = self._client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(row["count(*)"])

    def _create(self, name: str, dim: int, *more: str) -> None:
        """Create a collection, unless somebody has; it is loaded when it is full, so that all of it is searched."""
        if self._client.has_collection(name):
            return
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", self._types.INT64, is_primary=True)
        for field in (*more, *FIELDS):
            schema.add_field(field, self._types.INT64)
        schema.add_field(_VECTOR, self._types.FLOAT_VECTOR, dim=dim)
        self._client.create_collection(name, schema=schema)

    @contextmanager
    def _client_errors(self) -> Iterator[None]:
        """Turn the client's errors into :class:`SearchUnavailable`."""
        try:
            yield
        except self._error as e:
            raise SearchUnavailable(f"Milvus at {self._uri}: {e.message}") from e


class MilvusSearch:
    """A :class:`~kgtrace_store.search.FilteringIndex` of vectors of one generation in Milvus."""

    def __init__(
        self, milvus: Milvus, name: str, ids: range, dim: int, count: int, conditions: tuple[str, ...] = ()
    ) -> None:
        """Search a collection's entities that meet conditions: ``count`` of them, with ids from a range."""
        self._milvus = milvus
        self._name = name
        self._ids = ids
        self._dim = dim
        self._count = count
        self._conditions = conditions

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return self._count

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self._dim

    def where(
        self, must: Mapping[str, Iterable[int]], must_not: Mapping[str, Iterable[int]], count: int
    ) -> "MilvusSearch":
        """See :meth:`~kgtrace_store.search.FilteringIndex.where`."""
        conditions = (*self._conditions, *_conditions(must, must_not))
        return MilvusSearch(self._milvus, self._name, self._ids, self._dim, count, conditions)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`~kgtrace_store.search.SearchIndex.search`."""
        queries = checked_queries(queries, self.dim, k)
        scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        count = min(k, self._count)
        size = max(1, len(self._ids)) if count <= _MOST else _MOST
        for start in range(0, len(self._ids), size) if len(queries) and count else ():
            span = self._ids[start : start + size]
            more_scores, more_ids = _table(self._request(queries, min(count, len(span)), span))
            scores, ids = np.concatenate([scores, more_scores], 1), np.concatenate([ids, more_ids], 1)
            best = np.argsort(-scores, 1, kind="stable")[:, :count]
            scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
        least = (ids != NO_HIT).sum(1).min(initial=count)
        if least < count:  # an answer without the missing hits would be certified, and wrong
            raise SearchUnavailable(f"Milvus found {least} entities of {self._name}, there are at least {count}")
        return padded(scores, ids, k)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`~kgtrace_store.search.SearchIndex.range_search`."""
        query = checked_query(query, self.dim, threshold)
        _, scores, ids = self.above(query[None], float(radius_of(threshold)))  # Milvus leaves out scores that equal it
        return scores, ids

    def above(self, queries: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All vectors whose inner product with one of queries (b, dim) exceeds a radius, in no order.

        Returns the numbers of the queries (m,) int64, scores (m,) float32 and ids (m,) int64.
        """
        parameters = {} if np.isinf(radius) else {"radius": radius}
        query, scores, ids = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        for number, hits in self._above(queries, parameters, self._ids):
            query.append(np.full(len(hits), number))
            scores.append(np.array(hits.distances, np.float32))
            ids.append(np.array(hits.ids, np.int64))
        return np.concatenate(query), np.concatenate(scores), np.concatenate(ids)

    def _above(self, queries: np.ndarray, radius: Mapping[str, float], ids: range) -> Iterator[tuple[int, Any]]:
        """Yield queries' numbers and all hits among some ids; where Milvus may hold some back, of either half."""
        most = min(self._count, len(ids))
        if not most:
            return
        cut = []
        for number, hits in enumerate(self._request(queries, min(_MOST, most), ids, radius)):
            if len(hits) < _MOST or most <= _MOST:
                yield number, hits
            else:
                cut.append(number)
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]) if cut else ():
            for number, hits in self._above(queries[cut], radius, half):
                yield cut[number], hits

    def _request(
        self, queries: np.ndarray, k: int, ids: range, parameters: Mapping[str, float] | None = None
    ) -> Sequence[Any]:
        conditions = list(self._conditions)
        if len(ids) < len(self._ids):
            conditions += [f"id >= {ids.start}", f"id < {ids.stop}"]
        return self._milvus.search(self._name, queries, k, " and ".join(conditions), parameters or {})


class MilvusLists:
    """The lists of one table of one generation in Milvus."""

    def __init__(self, milvus: Milvus, name: str, triples: int, dim: int, conditions: tuple[str, ...] = ()) -> None:
        """Search the lists of a collection, over so many training triples."""
        self._milvus = milvus
        self._name = name
        self.triples = triples
        self._dim = dim
        self._conditions = conditions

    def where(self, must: Mapping[str, Iterable[int]], must_not: Mapping[str, Iterable[int]]) -> "MilvusLists":
        """The entries of some training triples alone, as of :class:`~kgtrace_store.search.FilteringIndex`."""
        return MilvusLists(self._milvus, self._name, self.triples, self._dim, _conditions(must, must_not))

    def of(self, row: int, count: int) -> MilvusSearch:
        """One list, which has ``count`` entries. An id is ``row * triples`` and the number of a training triple."""
        ids = range(row * self.triples, (row + 1) * self.triples)
        return MilvusSearch(self._milvus, self._name, ids, self._dim, count, (f"{_LIST} == {row}", *self._conditions))


def _conditions(must: Mapping[str, Iterable[int]], must_not: Mapping[str, Iterable[int]]) -> tuple[str, ...]:
    return (
        *(f"{field} in {sorted(ids)}" for field, ids in must.items()),
        *(f"{field} not in {sorted(ids)}" for field, ids in must_not.items()),
    )


def _table(results: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and ids (b, k) of hits, k being the largest number of hits of a query."""
    most = max(map(len, results))
    scores, ids = np.full((len(results), most), -np.inf, np.float32), np.full((len(results), most), NO_HIT, np.int64)
    for i, hits in enumerate(results):
        scores[i, : len(hits)], ids[i, : len(hits)] = hits.distances, hits.ids
    return scores, ids


def _fields(triple: np.ndarray) -> dict[str, int]:
    return dict(zip(FIELDS, triple.tolist(), strict=True))


def _collection(generation: str) -> str:
    return f"kgtrace_{generation.replace('-', '_')}"
