"""Gradients of embedding rows, listed by the row that is read.

The reads of a table by all training triples of a shard stand in one list: rows ascending, then triples, then reads.
The gradients of one row are one contiguous piece, in full width and as computed, float32; and each triple knows where
its own reads stand. Influence on rows alone is then a sum of products of numbers on disk, without the model:

    Σ_i ⟨g_i(z), p_i⟩  over the rows i that both the training triple z and the query read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bases import FLOOR
from kgtrace_indexer.models.checkpoints import checkpoint_count, checkpoint_of

RUN = ("row", "triple", "read", "norm", "grad")
"""Ends the names of the arrays of a part that are lists: ``TABLE.row`` and so on, one entry for each read."""

_BLOCK = 16_384
"""Training triples whose row gradients are in memory together."""


def listed_tables(names: Iterable[str]) -> list[str]:
    """Return the tables whose reads are among arrays of these names, sorted."""
    return sorted(name.removesuffix(".grad") for name in names if name.endswith(".grad"))


def is_listed(name: str) -> bool:
    """Return whether an array of a part is a list of reads, with no row for each triple."""
    return name.rpartition(".")[2] in RUN


def list_reads(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn ``TABLE.i.index`` (n, D) and ``TABLE.i.grad`` (n, D, d) of n triples into lists of their reads.

    Other arrays stay as they are. Read number i · D + direction is that of use i by a direction's loss term.
    """
    found = {name: array for name, array in arrays.items() if not name.endswith((".index", ".grad"))}
    found |= {name: array for name, array in arrays.items() if name.endswith(".spread.index")}
    uses: dict[str, int] = {}
    for name in arrays:
        if name.endswith(".grad"):
            table = name.removesuffix(".grad").rpartition(".")[0]
            uses[table] = uses.get(table, 0) + 1
    for table, count in uses.items():
        index = np.concatenate([arrays[f"{table}.{i}.index"] for i in range(count)], 1)  # (n, reads)
        grad = np.concatenate([arrays[f"{table}.{i}.grad"] for i in range(count)], 1)  # (n, reads, d)
        order = np.argsort(index, axis=None, kind="stable")
        triple, read = np.divmod(order, index.shape[1])
        grad = grad.reshape(-1, grad.shape[2])[order]
        run: tuple[np.ndarray, ...] = (
            index.ravel()[order], triple.astype(np.int32), read.astype(np.int16), _norms(grad), grad,
        )  # fmt: skip
        found |= {f"{table}.{name}": array for name, array in zip(RUN, run, strict=True)}
    return found


def arranged(row: np.ndarray, triple: np.ndarray, read: np.ndarray, rows: int, count: int) -> dict[str, np.ndarray]:
    """Return arrays of a `RowList` for reads (m,) of a table of `rows` rows by `count` training triples, all sorted."""
    place = np.empty((count, len(row) // max(1, count)), np.int32 if len(row) < 1 << 31 else np.int64)
    place[triple, read] = np.arange(len(row))
    offsets = np.searchsorted(row, np.arange(rows + 1))
    return {"offsets": offsets, "triple": triple.astype(np.int32), "read": read, "place": place}


def _norms(grad: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.sqrt(np.einsum("md,md->m", grad, grad, dtype=np.float64)).astype(np.float32)
    return norms


@dataclass(frozen=True, slots=True)
class RowQueries:
    """The gradients of b test triples in the rows of one table: P pairs of a test triple and a row, each once."""

    query: np.ndarray
    """(P,) int64, ascending."""
    row: np.ndarray
    """(P,) int64."""
    grad: np.ndarray
    """(P, d) float64: p, the sum over the test triple's reads of the row."""
    pairs: np.ndarray
    """(b, ·) int64: the pairs of each test triple, −1 where it has fewer than others."""

    @classmethod
    def of(cls, terms: Terms) -> dict[str, "RowQueries"]:
        """Return those of each table."""
        found = {}
        for table, uses in terms.rows.items():
            index, grad = (
                torch.stack(part, 1).cpu().numpy() for part in ([u.index for u in uses], [u.grad for u in uses])
            )
            shape = (len(terms), -1)
            found[table] = cls._merged(index.reshape(shape), grad.reshape(*shape, grad.shape[2]).astype(np.float64))
        return found

    def of_triple(self, number: int) -> "RowQueries":
        """Return those of one test triple."""
        pairs = self.pairs[number][self.pairs[number] >= 0]
        return RowQueries(
            np.zeros(len(pairs), np.int64), self.row[pairs], self.grad[pairs], np.arange(len(pairs))[None]
        )

    def use(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a row of each test triple (b,) and its gradient (b, d); zeros where it reads fewer."""
        pairs = self.pairs[:, number]
        missing = pairs < 0
        return np.where(missing, 0, self.row[pairs]), np.where(missing[:, None], 0, self.grad[pairs])

    @classmethod
    def _merged(cls, index: np.ndarray, grads: np.ndarray) -> "RowQueries":
        """Sum up gradients (b, reads, d) of the same row (b, reads)."""
        query = np.arange(len(index)).repeat(index.shape[1])
        order = np.lexsort((index.ravel(), query))
        query, row = query[order], index.ravel()[order]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(query) != 0) | (np.diff(row) != 0)])[: len(row)])
        query, row = query[first], row[first]
        grad = np.add.reduceat(grads.reshape(len(order), -1)[order], first, 0)
        counts = np.bincount(query, minlength=len(index))
        number = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]  # of each pair among its test triple's
        pairs = np.full((len(index), int(counts.max(initial=0))), -1)
        pairs[query, number] = np.arange(len(query))
        return cls(query, row, grad, pairs)


def paired_products(a: Mapping[str, RowQueries], b: Mapping[str, RowQueries]) -> np.ndarray:
    """Return ⟨g, p⟩ of each test triple, (b,) float64, for gradients in the same rows."""
    sums = [
        np.bincount(each.query, np.einsum("pd,pd->p", each.grad, b[table].grad), len(each.pairs))
        for table, each in a.items()
    ]
    total: np.ndarray = np.sum(sums, 0)
    return total


@dataclass(frozen=True, slots=True)
class RowList:
    """The reads of a table by the training triples of a shard."""

    start: int
    """The shard's first training triple."""
    offsets: np.ndarray
    """(rows + 1,) int64: where the reads of each row begin."""
    triple: np.ndarray
    """(m,) int32: who reads, counted from the shard's first."""
    read: np.ndarray
    """(m,) int16: which of the triple's reads it is."""
    norm: np.ndarray
    """(m,) float32: ‖g‖."""
    grad: np.ndarray
    """(m, d) float32: g."""
    place: np.ndarray
    """(n, reads) int32, or int64 where there are too many: where each triple's reads stand."""

    @classmethod
    def of(cls, start: int, table: str, arrays: Mapping[str, np.ndarray]) -> "RowList":
        """Read the arrays of a generation."""
        names = ("offsets", *RUN[1:], "place")
        return cls(start, *(np.asarray(arrays[f"{table}.{name}"]) for name in names))  # views of maps are slow

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the reads of rows (r,) stand, and which of these rows each is of: (m,) int64 each."""
        starts, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        owner = np.arange(len(rows)).repeat(counts)
        return np.arange(len(owner)) + (starts - np.cumsum(counts) + counts)[owner], owner

    def row_of(self, places: np.ndarray | int) -> np.ndarray:
        """Return the row of each read, given where it stands."""
        rows: np.ndarray = np.searchsorted(self.offsets, places, "right") - 1
        return rows

    def summed(self, rows: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return g_i(z) for rows i (r,): which of these it is (e,), the triple z (e,), and the sum over reads (e, d).

        Triples are counted from the first of all. With `weight` (n, directions), reads are multiplied with that of
        their loss term.
        """
        return self._summed(*self.entries(rows), weight)

    def blocks(
        self, start: int, stop: int, size: int, weight: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the same of the reads between two, with their rows, about `size` reads at a time."""
        while start < stop:
            end = min(start + size, stop)
            while end < stop and self.triple[end] == self.triple[end - 1] and self.offsets[self.row_of(end)] < end:
                end += 1
            places = np.arange(start, end)
            yield self._summed(places, self.row_of(places), weight)
            start = end

    def _summed(
        self, places: np.ndarray, owner: np.ndarray, weight: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        triple, grad = self.triple[places].astype(np.int64), self.grad[places].astype(np.float64)
        if weight is not None:
            grad *= weight[triple + self.start, self.read[places] % weight.shape[1]][:, None]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(triple) != 0) | (np.diff(owner) != 0)])[: len(owner)])
        return owner[first], triple[first] + self.start, np.add.reduceat(grad, first, 0) if len(first) else grad


@dataclass(frozen=True, slots=True)
class RowLists:
    """The lists of all tables, of all shards."""

    tables: Mapping[str, Sequence[RowList]]
    slopes: np.ndarray | None = None
    """(n, checkpoints · D): what each loss term's gradients are multiplied with in the influences below; None for 1."""

    def width(self, table: str) -> int:
        """Return d."""
        return int(self.tables[table][0].grad.shape[1])

    def read_counts(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Return how many reads rows (r,) have, (r,) int64."""
        found: np.ndarray = np.sum([piece.offsets[rows + 1] - piece.offsets[rows] for piece in self.tables[table]], 0)
        return found

    def reader_counts(self, table: str) -> np.ndarray:
        """Return how many training triples read each row of a table, (rows,) int64."""
        found = np.zeros(len(self.tables[table][0].offsets) - 1, np.int64)
        for piece in self.tables[table]:
            firsts = np.concatenate([[True], np.diff(piece.triple) != 0])[: len(piece.triple)]
            firsts[piece.offsets[:-1][np.diff(piece.offsets) > 0]] = True
            found += np.diff(np.concatenate([[0], np.cumsum(firsts)])[piece.offsets])
        return found

    def mean_square(self) -> float:
        """Return the unit of damping: the mean over training triples of Σ ‖g‖², over their reads of embedding rows.

        Each read is squared by itself: of a row that a triple reads twice this is not the squared norm of its gradient.
        """
        pieces = [piece for lists in self.tables.values() for piece in lists]
        count = sum(len(piece.place) for piece in next(iter(self.tables.values())))
        return sum(float(np.square(piece.norm, dtype=np.float64).sum()) for piece in pieces) / count + FLOOR

    def blocks(
        self, table: str, row: int, size: int, weight: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the training triples (e,) that read a row, ascending, and g(z) (e, d), about `size` reads at a time."""
        for piece in self.tables[table]:
            for _, triple, grad in piece.blocks(int(piece.offsets[row]), int(piece.offsets[row + 1]), size, weight):
                yield triple, grad

    def moment(self, table: str, row: int) -> np.ndarray:
        """Return F of a row, (d, d) float64."""
        found = np.zeros((self.width(table),) * 2)
        for _, grad in self.blocks(table, row, _BLOCK):
            found += grad.T @ grad
        return found

    def padded(self, table: str, rows: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return which training triples read each of rows (r,), and g_i(z), (r, n) int64 and (r, n, d) float64.

        Where a row has fewer readers than others the triple is −1, and the gradient zero. `weight` is as in
        `RowList.summed`.
        """
        pieces = [piece.summed(rows, weight) for piece in self.tables[table]]
        owner, triple, grad = (np.concatenate(part) for part in zip(*pieces, strict=True))
        order = np.argsort(owner, kind="stable") if len(pieces) > 1 else slice(None)
        owner, triple, grad = owner[order], triple[order], grad[order]
        counts = np.bincount(owner, minlength=len(rows))
        number = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
        triples = np.full((len(rows), int(counts.max(initial=0))), -1)
        grads = np.zeros((*triples.shape, grad.shape[1]))
        triples[owner, number], grads[owner, number] = triple, grad
        return triples, grads

    def readers(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Return the training triples that read any of some rows, (m,) int64, some of them more than once."""
        pieces = [piece.triple[piece.entries(rows)[0]].astype(np.int64) + piece.start for piece in self.tables[table]]
        found: np.ndarray = np.concatenate(pieces)
        return found

    def matches(
        self, table: str, queries: RowQueries, query: np.ndarray, triples: np.ndarray
    ) -> Iterator[tuple[RowList, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the reads by training triples (m,) of rows that test triples (m,) read: k of them in each shard.

        These are the list, which of the m they belong to, the pair of `queries`, and where they stand, (k,) each.
        """
        for piece, of, row, place in self.reads(table, triples):
            pairs = queries.pairs[query[of]]  # (reads, ·)
            read, which = np.nonzero((queries.row[pairs] == row[:, None]) & (pairs >= 0))
            yield piece, of[read], pairs[read, which], place[read]

    def influences(self, queries: Mapping[str, RowQueries], query: np.ndarray, triples: np.ndarray) -> np.ndarray:
        """Return the influence of training triples (m,) on test triples (m,) by rows, (m,) float64."""
        total = np.zeros(len(triples))
        for start in range(0, len(triples), _BLOCK):
            some = slice(start, start + _BLOCK)
            for table, asked in queries.items():
                for piece, of, pair, place in self.matches(table, asked, query[some], triples[some]):
                    products = np.einsum("kd,kd->k", piece.grad[place].astype(np.float64), asked.grad[pair])
                    products *= self._slopes(table, piece, place)
                    total[some] += np.bincount(of, products, len(total[some]))
        return total

    def norm_products(self, queries: Mapping[str, RowQueries], query: int, triples: np.ndarray) -> np.ndarray:
        """Return Σ ‖g‖‖p‖ over the rows that training triples (m,) and one test triple read, (m,) float64."""
        total = np.zeros(len(triples))
        for table, asked in queries.items():
            norms = np.linalg.norm(asked.grad, axis=1)
            for piece, of, pair, place in self.matches(table, asked, np.full(len(triples), query), triples):
                products = piece.norm[place] * norms[pair] * self._slopes(table, piece, place)
                total += np.bincount(of, products, len(total))
        return total

    def reads(self, table: str, triples: np.ndarray) -> Iterator[tuple[RowList, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield all reads of a table by training triples (m,), k of them in each shard.

        These are the list, which of the m reads, the row, and where it stands, (k,) each. A table that is not listed
        has none.
        """
        for piece in self.tables.get(table, ()):
            here = np.flatnonzero((triples >= piece.start) & (triples < piece.start + len(piece.place)))
            place = piece.place[triples[here] - piece.start]  # (m, reads)
            yield piece, here.repeat(place.shape[1]), piece.row_of(place.ravel()), place.ravel()

    def gradients(self, table: str, triples: np.ndarray) -> np.ndarray:
        """Return the gradient of every read by training triples (m,), (m, reads, d) float32."""
        found = np.empty((len(triples), self.tables[table][0].place.shape[1], self.width(table)), np.float32)
        for piece in self.tables[table]:
            here = np.flatnonzero((triples >= piece.start) & (triples < piece.start + len(piece.place)))
            found[here] = piece.grad[piece.place[triples[here] - piece.start]]
        return found

    def against(self, tables: Mapping[str, np.ndarray], triples: np.ndarray) -> np.ndarray:
        """Return the influence of training triples (m,) on gradients of whole tables, (rows + 1, d) each: (m,) float64.

        Rows beyond those of a table are its last one.
        """
        total = np.zeros(len(triples))
        for start in range(0, len(triples), _BLOCK):
            some = triples[start : start + _BLOCK]
            for table, grads in tables.items():
                for piece, of, rows, place in self.reads(table, some):
                    products = np.einsum("kd,kd->k", piece.grad[place], grads[np.minimum(rows, len(grads) - 1)])
                    products = products * self._slopes(table, piece, place)
                    total[start : start + len(some)] += np.bincount(of, products, len(some))
        return total

    def _slopes(self, table: str, piece: RowList, place: np.ndarray) -> np.ndarray | float:
        """Return what the gradients of reads (k,) are multiplied with, (k,)."""
        if self.slopes is None:
            return 1.0
        directions = self.slopes.shape[1] // checkpoint_count(self.tables)
        direction = checkpoint_of(table) * directions + piece.read[place] % directions
        slopes: np.ndarray = self.slopes[piece.triple[place] + piece.start, direction]
        return slopes
