"""Milvus as a back end for the search: the searched vectors of generations, in collections of a server or cluster.

Every generation has a collection of its own, ``kgtrace_`` and its id, with a row for each training triple: its number,
head, relation and tail, and its vector, float32, in a ``FLAT`` index by inner product. Milvus compares exhaustively
then, and its distances bound influences as FAISS's scores do. The alias ``kgtrace`` names the collection of the
generation that answers; switching it is one step in Milvus, for whoever searches there besides.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kgtrace_store.errors import MissingExtra, SearchUnavailable
from kgtrace_store.search import NO_HIT, checked_queries, checked_query, padded, radius_of

ALIAS = "kgtrace"
"""Of the collection that answers."""
FIELDS = ("head", "relation", "tail")
"""Of the training triple, to filter by."""

_VECTOR = "code"
_MOST = 16_384
"""Hits that Milvus returns at most (``proxy.maxResultWindow``)."""
_ROWS = 10_000
"""Rows sent at a time: a megabyte."""
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
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it tells is in the error that is raised
        self._types, self._error = pymilvus.DataType, pymilvus.MilvusException
        self._uri = uri
        with self._asking():
            self._client = pymilvus.MilvusClient(uri=uri, token=token or "", timeout=_TIMEOUT)
            self._client.get_server_version()  # the client may be connected from before

    def hold(self, generation: str, vectors: Iterable[np.ndarray], triples: np.ndarray, dim: int) -> "MilvusSearch":
        """Return the search over a generation's vectors, which are sent first where they are not there yet.

        ``vectors`` come in blocks (m, dim) float32, one for each of ``triples`` (n, 3). What was interrupted is sent
        again, and two that send the same do no harm. Raises :class:`SearchUnavailable`.
        """
        name = _collection(generation)
        with self._asking():
            if self._held(name) != len(triples):
                self._create(name, dim)
                for rows in _rows(vectors, triples):
                    self._client.upsert(name, rows)
                self._client.flush(name)
                if _VECTOR not in self._client.list_indexes(name):
                    index = self._client.prepare_index_params()
                    index.add_index(_VECTOR, index_type="FLAT", metric_type="IP")
                    self._client.create_index(name, index)
                self._client.load_collection(name, timeout=None)
                if (held := self._held(name)) != len(triples):
                    raise SearchUnavailable(
                        f"Milvus at {self._uri} holds {held} rows in {name}, {len(triples)} were sent"
                    )
        return MilvusSearch(self, name, len(triples), dim)

    def switch(self, generation: str) -> None:
        """Let the alias name a generation that is held. Raises :class:`SearchUnavailable`."""
        name = _collection(generation)
        with self._asking():
            try:
                self._client.alter_alias(name, ALIAS)
            except self._error:
                self._client.create_alias(name, ALIAS)

    def drop(self, generations: Iterable[str]) -> None:
        """Forget generations, whether they are held or not. Raises :class:`SearchUnavailable`."""
        with self._asking():
            for name in map(_collection, generations):
                if self._client.has_collection(name):
                    self._client.drop_collection(name)

    def search(
        self, name: str, queries: np.ndarray, k: int, condition: str, parameters: Mapping[str, float]
    ) -> Sequence[Any]:
        """Return for each of queries (b, dim) the first ``k`` hits, at most `_MOST`, of rows that meet a condition."""
        with self._asking():
            found: Sequence[Any] = self._client.search(
                name, queries.tolist(), anns_field=_VECTOR, filter=condition, limit=k, output_fields=["id"],
                search_params={"metric_type": "IP", "params": dict(parameters)},
            )  # fmt: skip
        return found

    def _held(self, name: str) -> int | None:
        """Load a collection and count its rows; None where it is not there, or not whole."""
        if not self._client.has_collection(name) or _VECTOR not in self._client.list_indexes(name):
            return None
        self._client.load_collection(name, timeout=None)
        (found,) = self._client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(found["count(*)"])

    def _create(self, name: str, dim: int) -> None:
        """Create a collection, unless somebody has; it is loaded when it is full, so that all of it is searched."""
        if self._client.has_collection(name):
            return
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", self._types.INT64, is_primary=True)
        for field in FIELDS:
            schema.add_field(field, self._types.INT64)
        schema.add_field(_VECTOR, self._types.FLOAT_VECTOR, dim=dim)
        self._client.create_collection(name, schema=schema)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise :class:`SearchUnavailable` for what the client raises."""
        try:
            yield
        except self._error as e:
            raise SearchUnavailable(f"Milvus at {self._uri}: {e.message}") from e


class MilvusSearch:
    """A :class:`~kgtrace_store.search.FilteringIndex` of the vectors of one generation in Milvus."""

    def __init__(self, milvus: Milvus, name: str, rows: int, dim: int) -> None:
        """Search all rows of a collection."""
        self._milvus = milvus
        self._name = name
        self._rows = rows
        self._dim = dim
        self._conditions: tuple[str, ...] = ()
        self._count = rows

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
        found = MilvusSearch(self._milvus, self._name, self._rows, self._dim)
        found._conditions = (
            *(f"{field} in {sorted(ids)}" for field, ids in must.items()),
            *(f"{field} not in {sorted(ids)}" for field, ids in must_not.items()),
        )
        found._count = count
        return found

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`~kgtrace_store.search.SearchIndex.search`."""
        queries = checked_queries(queries, self.dim, k)
        scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        size = max(1, self._rows) if k <= _MOST else _MOST
        for start in range(0, self._rows, size) if len(queries) else ():
            more_scores, more_ids = _table(
                self._ask(queries, min(k, size), range(start, min(start + size, self._rows)))
            )
            scores, ids = np.concatenate([scores, more_scores], 1), np.concatenate([ids, more_ids], 1)
            best = np.argsort(-scores, 1, kind="stable")[:, :k]
            scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
        found, wanted = (ids != NO_HIT).sum(1).min(initial=k), min(k, self._count)
        if found < wanted:  # an answer that rests on the others would be certified, and wrong
            raise SearchUnavailable(f"Milvus found {found} rows of {self._name}, there are at least {wanted}")
        return padded(scores, ids, k)

    def range_search(self, query: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`~kgtrace_store.search.SearchIndex.range_search`."""
        query = checked_query(query, self.dim, threshold)
        radius = float(radius_of(threshold))  # Milvus leaves out what equals it
        found = list(self._above(query[None], {} if np.isinf(radius) else {"radius": radius}, range(self._rows)))
        scores = np.concatenate([np.empty(0, np.float32), *(np.array(hits.distances, np.float32) for hits in found)])
        return scores, np.concatenate([np.empty(0, np.int64), *(np.array(hits.ids, np.int64) for hits in found)])

    def _above(self, query: np.ndarray, radius: Mapping[str, float], rows: range) -> Iterator[Any]:
        """Yield all hits among some rows; where Milvus may hold some back, of either half of them."""
        if not rows:
            return
        (hits,) = self._ask(query, min(_MOST, len(rows)), rows, radius)
        if len(hits) < _MOST or len(rows) <= _MOST:
            yield hits
            return
        half = len(rows) // 2
        yield from self._above(query, radius, rows[:half])
        yield from self._above(query, radius, rows[half:])

    def _ask(
        self, queries: np.ndarray, k: int, rows: range, parameters: Mapping[str, float] | None = None
    ) -> Sequence[Any]:
        conditions = list(self._conditions)
        if len(rows) < self._rows:
            conditions += [f"id >= {rows.start}", f"id < {rows.stop}"]
        return self._milvus.search(self._name, queries, k, " and ".join(conditions), parameters or {})


def _table(found: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and ids (b, k) of hits, as many for each query as that with most of them has."""
    most = max(map(len, found))
    scores, ids = np.full((len(found), most), -np.inf, np.float32), np.full((len(found), most), NO_HIT, np.int64)
    for i, hits in enumerate(found):
        scores[i, : len(hits)], ids[i, : len(hits)] = hits.distances, hits.ids
    return scores, ids


def _rows(vectors: Iterable[np.ndarray], triples: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    """Yield what is sent at a time."""
    start = 0
    for block in vectors:
        for vector_rows in np.split(block, range(_ROWS, len(block), _ROWS)):
            ids = triples[start : start + len(vector_rows)].tolist()
            yield [
                {"id": start + i, **dict(zip(FIELDS, triple, strict=True)), _VECTOR: vector}
                for i, (triple, vector) in enumerate(zip(ids, vector_rows, strict=True))
            ]
            start += len(vector_rows)


def _collection(generation: str) -> str:
    return f"kgtrace_{generation.replace('-', '_')}"
