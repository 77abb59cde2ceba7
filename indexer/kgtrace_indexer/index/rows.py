"""Gradients of embedding rows, stored by training triple and listed by the row that is read.

Each training triple of a shard has R reads of a table, and read number r of triple t is read number t · R + r of all. A
list has these numbers by row: rows ascending, then triples, then reads. Influence on rows alone is then a sum of
products of numbers on disk, without the model:

    Σ_i ⟨g_i(z), p_i⟩  over the rows i that both the training triple z and the query read.

A gradient is stored as its norm and its numbers over the norm, these as integers of 24 bits: none changes by more than
2⁻²⁴ √d of its norm, about as much as it differs from one batch to another.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.reads import Reads
from kgtrace_indexer.index.bases import FLOOR
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.models.checkpoints import checkpoint_count, checkpoint_of
from kgtrace_store.arrays import let_go

Result = TypeVar("Result")

STORED = ("row", "norm", "high", "low")
"""Ends the names of the arrays of a table with a row for each training triple: ``TABLE.row`` and so on."""
LISTED = ("offsets", "listed")
"""Ends the names of the arrays that list the reads of a table by row."""

LARGEST = (1 << 23) - 1
"""Largest integer: it fills a sign and 23 bits."""
_TINY = 1e-300
"""In place of a norm of 0."""
_BLOCK = 4096
"""Reads whose gradients are in memory together."""
_KEPT = 32
"""Blocks of reads whose pages stay in memory in a pass over all of them."""


def listed_tables(names: Iterable[str]) -> list[str]:
    """Return the tables whose gradients are among arrays of these names, sorted."""
    return sorted(name.removesuffix(".high") for name in names if name.endswith(".high"))


def is_read(name: str) -> bool:
    """Return whether an array of a training triple is of its reads of a table."""
    return name.rpartition(".")[2] in STORED


def read_codes(reads: Reads) -> dict[str, Tensor]:
    """Encode reads by n triples: the arrays of `STORED` of each table, on the device of the reads.

    Read number i · D + direction of a triple is use i by the loss term of a direction.
    """
    norm = torch.linalg.vector_norm(reads.grad, dim=2, dtype=torch.float64).float()  # (n, R)
    unit = torch.div(torch.tensor(LARGEST), norm.double().clamp_min_(_TINY))
    code = (reads.grad * unit[:, :, None]).round_().int()  # no number exceeds the norm
    high, low = (torch.empty(code.shape, dtype=kind, device=code.device) for kind in (torch.int16, torch.uint8))
    torch.bitwise_right_shift(code, 8, out=high)
    torch.bitwise_and(code, 255, out=low)
    row = reads.index.int()
    codes: dict[str, Tensor] = {}
    for table, places in reads.tables.items():
        of, numbers = slice(places.start, places.stop), slice(reads.widths[table])
        columns = (row[:, of], norm[:, of], high[:, of, numbers], low[:, of, numbers])
        codes |= {f"{table}.{name}": column for name, column in zip(STORED, columns, strict=True)}
    return codes


def read_gradients(codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``TABLE.grad`` (n, R, d) float64, the gradients that arrays of `STORED` hold, of each table."""
    return {
        f"{table}.grad": _decoded(*(codes[f"{table}.{name}"] for name in ("norm", "high", "low")))
        for table in listed_tables(codes)
    }


def _decoded(norm: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return gradients (…, d) float64 of norms (…)."""
    grad: np.ndarray = high.astype(np.float64)
    grad *= 256
    grad += low
    grad *= (norm.astype(np.float64) / LARGEST)[..., None]
    return grad


def list_reads(row: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Return the list of reads (n, R) of a table of `rows` rows: the arrays of `LISTED`."""
    order = np.argsort(row, axis=None, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row.ravel(), minlength=rows))])
    return {"offsets": offsets, "listed": order.astype(list_dtype(row.size))}


def sparingly(lists: Sequence["RowList"], results: Iterable[Result]) -> Iterator[Result]:
    """Yield the results of blocks of reads, and from time to time give back the memory of pages of the lists."""
    for number, result in enumerate(results):
        yield result
        if number % _KEPT == 0:
            for piece in lists:
                let_go(piece.high)
                let_go(piece.low)


def list_dtype(reads: int) -> np.dtype:
    """Return the type of a list of so many reads."""
    return np.dtype(np.int32 if reads < 1 << 31 else np.int64)


@dataclass(frozen=True, slots=True)
class RowList:
    """The m = n · R reads of a table by the n training triples of a shard."""

    start: int
    """The shard's first training triple."""
    row: np.ndarray
    """(n, R) int32: the rows that each triple reads."""
    norm: np.ndarray
    """(m,) float32: ‖g‖."""
    high: np.ndarray
    """(m, d) int16: the integers, but for their last 8 bits."""
    low: np.ndarray
    """(m, d) uint8: the last 8 bits of the integers."""
    offsets: np.ndarray
    """(rows of the table + 1,) int64: where the reads of each row begin in the list."""
    listed: np.ndarray
    """(m,) int32, or int64 where there are too many: the list."""
    slopes: np.ndarray | None = None
    """(n, D): factors of the stored gradients of each loss term; None for 1."""

    @classmethod
    def of(cls, start: int, table: str, arrays: Mapping[str, np.ndarray]) -> "RowList":
        """Read the arrays of a generation."""
        row, norm, high, low, offsets, listed = (  # views of maps are slow
            np.asarray(arrays[f"{table}.{name}"]) for name in (*STORED, *LISTED)
        )
        width = high.shape[2]
        return cls(start, row, norm.ravel(), high.reshape(-1, width), low.reshape(-1, width), offsets, listed)

    def __len__(self) -> int:
        """Return n."""
        return len(self.row)

    @property
    def width(self) -> int:
        """Return d."""
        return int(self.high.shape[1])

    def gradients(self, reads: np.ndarray) -> np.ndarray:
        """Return the gradients of reads (k,), (k, d) float64."""
        return _decoded(self.norms(reads), self.high[reads], self.low[reads])

    def norms(self, reads: np.ndarray) -> np.ndarray:
        """Return the norms of the gradients of reads (k,), (k,) float64."""
        norm: np.ndarray = self.norm[reads].astype(np.float64)
        if self.slopes is not None:
            triple, read = np.divmod(reads, self.row.shape[1])
            norm *= self.slopes[triple, read % self.slopes.shape[1]]
        return norm

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return places of the reads of rows (r,) in the list, and the number of each one's row: (k,) int64 each."""
        starts, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        owner = np.arange(len(rows)).repeat(counts)
        return np.arange(len(owner)) + (starts - np.cumsum(counts) + counts)[owner], owner

    def summed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return g_i(z) for rows i (r,): the number of the row (e,), the triple z (e,), and the sum over reads (e, d).

        Triples are counted from the first of all.
        """
        places, owner = self.places(rows)
        return self._summed(owner, self.listed[places])

    def sums(self, span: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows i (e,), triples z (e,) and g_i(z) (e, d) of reads that stand side by side in the list."""
        reads = self.listed[span.start : span.stop]
        return self._summed(self.row.ravel()[reads], reads)

    def spans(self, start: int, stop: int, size: int) -> Iterator[range]:
        """Yield the places between two, about `size` at a time; reads of one row by one triple stay together."""
        while start < stop:
            end = min(start + size, stop)
            while end < stop and self._same(end):
                end += 1
            yield range(start, end)
            start = end

    def _same(self, place: int) -> bool:
        """Return whether a read is of the same row, and by the same triple, as the one before it in the list."""
        before, read = self.listed[place - 1 : place + 1]
        rows, reads_per_triple = self.row.ravel(), self.row.shape[1]
        return bool(before // reads_per_triple == read // reads_per_triple and rows[before] == rows[read])

    def _summed(self, owner: np.ndarray, reads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        triple = reads.astype(np.int64) // self.row.shape[1] + self.start
        grad = self.gradients(reads)
        first = np.flatnonzero((np.diff(triple, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0))
        if len(first) < len(triple):
            counts, total = np.diff(first, append=len(triple)), grad[first]
            for further in range(1, counts.max(initial=1)):
                more = np.flatnonzero(counts > further)
                total[more] += grad[first[more] + further]
            grad = total
        return owner[first], triple[first], grad


@dataclass(frozen=True, slots=True)
class RowLists:
    """The lists of all tables, of all shards."""

    tables: Mapping[str, Sequence[RowList]]

    def weighted(self, slopes: np.ndarray) -> "RowLists":
        """Return the lists with each loss term's gradients multiplied by a slope (n, checkpoints · D)."""
        by_checkpoint = np.split(slopes, checkpoint_count(self.tables), 1)

        def of(table: str, piece: RowList) -> RowList:
            return replace(piece, slopes=by_checkpoint[checkpoint_of(table)][piece.start : piece.start + len(piece)])

        return RowLists({table: [of(table, piece) for piece in pieces] for table, pieces in self.tables.items()})

    def width(self, table: str) -> int:
        """Return d."""
        return self.tables[table][0].width

    def read_counts(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Return the number of reads of rows (r,), (r,) int64."""
        counts: np.ndarray = np.sum([piece.offsets[rows + 1] - piece.offsets[rows] for piece in self.tables[table]], 0)
        return counts

    def reader_counts(self, table: str) -> np.ndarray:
        """Return the number of training triples that read each row of a table, (rows,) int64."""
        counts = np.zeros(len(self.tables[table][0].offsets) - 1, np.int64)
        for piece in self.tables[table]:
            for start in range(0, len(piece), _BLOCK):
                row = np.sort(piece.row[start : start + _BLOCK], axis=1)
                once = np.diff(row, axis=1, prepend=-1) != 0
                counts += np.bincount(row[once], minlength=len(counts))
        return counts

    def mean_squares(self) -> np.ndarray:
        """Return the unit of damping of each checkpoint, (checkpoints,) float64.

        It is the mean over training triples of Σ ‖g‖², over their reads of embedding rows. Each read is squared by
        itself: of a row that a triple reads twice this is not the squared norm of its gradient.
        """
        count = sum(map(len, next(iter(self.tables.values()))))
        mean_squares = np.full(checkpoint_count(self.tables), FLOOR)
        for table, pieces in self.tables.items():
            total = sum(float(np.square(piece.norm, dtype=np.float64).sum()) for piece in pieces)
            mean_squares[checkpoint_of(table)] += total / count
        return mean_squares

    def moment(self, table: str, row: int) -> np.ndarray:
        """Return F of a row, (d, d) float64."""
        moment = torch.zeros(self.width(table), self.width(table), dtype=torch.float64)
        for piece in self.tables[table]:
            start, stop = piece.offsets[row : row + 2].tolist()
            for span in piece.spans(start, stop, _BLOCK):
                grad = torch.from_numpy(piece.sums(span)[2])
                moment += grad.T @ grad
        return moment.numpy()

    def padded(self, table: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the training triples that read each of rows (r,), and g_i(z), (r, n) int64 and (r, n, d) float64.

        Where a row has fewer readers than others the triple is −1, and the gradient zero.
        """
        pieces = [piece.summed(rows) for piece in self.tables[table]]
        owner, triple, grad = (np.concatenate(part) for part in zip(*pieces, strict=True))
        order = np.argsort(owner, kind="stable") if len(pieces) > 1 else slice(None)
        owner, triple, grad = owner[order], triple[order], grad[order]
        counts = np.bincount(owner, minlength=len(rows))
        number = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
        triples = np.full((len(rows), int(counts.max(initial=0))), -1)
        grads = np.zeros((*triples.shape, grad.shape[1]))
        triples[owner, number], grads[owner, number] = triple, grad
        return triples, grads

    def readers(self, table: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the number of the row, of rows (r,), and the training triple of each read, (m,) int64 each, by shard.

        A training triple that reads a row twice comes twice.
        """
        for piece in self.tables[table]:
            places, owner = piece.places(rows)
            yield owner, piece.listed[places].astype(np.int64) // piece.row.shape[1] + piece.start

    def matches(
        self, table: str, queries: RowQueries, query: np.ndarray, triples: np.ndarray
    ) -> Iterator[tuple[RowList, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the reads by training triples (m,) of rows that test triples (m,) read: k of them in each shard.

        Each shard's are the list and, (k,) each, the number of the training triple, the pair of `queries`, the read.
        """
        for piece, of, row, read in self.reads(table, triples):
            pairs = queries.pairs[query[of]]  # (reads, ·)
            which, use = np.nonzero((queries.row[pairs] == row[:, None]) & (pairs >= 0))
            yield piece, of[which], pairs[which, use], read[which]

    def influences(self, queries: Mapping[str, RowQueries], query: np.ndarray, triples: np.ndarray) -> np.ndarray:
        """Return the influence of training triples (m,) on test triples (m,) by rows, (m,) float64."""
        total = np.zeros(len(triples))
        for start in range(0, len(triples), _BLOCK):
            block = slice(start, start + _BLOCK)
            for table, gradients in queries.items():
                for piece, of, pair, read in self.matches(table, gradients, query[block], triples[block]):
                    products = np.einsum("kd,kd->k", piece.gradients(read), gradients.grad[pair])
                    total[block] += np.bincount(of, products, len(total[block]))
        return total

    def norm_products(self, queries: Mapping[str, RowQueries], query: np.ndarray, triples: np.ndarray) -> np.ndarray:
        """Return Σ ‖g‖‖p‖ over the rows that training triples (m,) and test triples (m,) both read, (m,) float64."""
        total = np.zeros(len(triples))
        for table, gradients in queries.items():
            norms = np.linalg.norm(gradients.grad, axis=1)
            for piece, of, pair, read in self.matches(table, gradients, query, triples):
                total += np.bincount(of, piece.norms(read) * norms[pair], len(total))
        return total

    def reads(self, table: str, triples: np.ndarray) -> Iterator[tuple[RowList, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield all reads of a table by training triples (m,), k of them in each shard.

        Each shard's are the list and, (k,) each, the number of the training triple, the row, the read. A table that is
        not listed has none.
        """
        for piece in self.tables.get(table, ()):
            here = np.flatnonzero((triples >= piece.start) & (triples < piece.start + len(piece)))
            local, reads_per_triple = triples[here] - piece.start, piece.row.shape[1]
            yield piece, here.repeat(reads_per_triple), piece.row[local].ravel(), _reads(local, reads_per_triple)

    def gradients(self, table: str, triples: np.ndarray) -> np.ndarray:
        """Return the gradient of every read by training triples (m,), (m, R, d) float32."""
        reads_per_triple = self.tables[table][0].row.shape[1]
        grads = np.empty((len(triples), reads_per_triple, self.width(table)), np.float32)
        for piece in self.tables[table]:
            here = np.flatnonzero((triples >= piece.start) & (triples < piece.start + len(piece)))
            grads[here] = piece.gradients(_reads(triples[here] - piece.start, reads_per_triple)).reshape(
                len(here), reads_per_triple, -1
            )
        return grads

    def queries(self, triples: np.ndarray) -> dict[str, RowQueries]:
        """Return the gradients of training triples (m,) in the rows of each table, as those of test triples."""
        queries = {}
        for table, pieces in self.tables.items():
            index = np.empty((len(triples), pieces[0].row.shape[1]), np.int64)
            grads = np.empty((*index.shape, self.width(table)))
            for piece, of, row, read in self.reads(table, triples):
                here = of[:: index.shape[1]]
                index[here] = row.reshape(len(here), index.shape[1])
                grads[here] = piece.gradients(read).reshape(len(here), *grads.shape[1:])
            queries[table] = RowQueries.merged(index, grads)
        return queries

    def against(self, tables: Mapping[str, tuple[np.ndarray, np.ndarray]], triples: np.ndarray) -> np.ndarray:
        """Return the influence of training triples (m,) on gradients of some rows of tables, (m,) float64.

        Of each table there are the rows (u,) int64, ascending, and their gradients (u + 1, d), the last of no row.
        """
        total = np.zeros(len(triples))
        for start in range(0, len(triples), _BLOCK):
            block = triples[start : start + _BLOCK]
            for table, (index, grads) in tables.items():
                for piece, of, rows, read in self.reads(table, block):
                    place = np.searchsorted(index, rows)
                    hit = np.flatnonzero(np.append(index, -1)[place] == rows)
                    products = np.einsum("kd,kd->k", piece.gradients(read[hit]), grads[place[hit]])
                    total[start : start + len(block)] += np.bincount(of[hit], products, len(block))
        return total


def _reads(triples: np.ndarray, reads_per_triple: int) -> np.ndarray:
    """Return the numbers of all reads by triples (m,), (m · R,) int64."""
    return (triples[:, None] * reads_per_triple + np.arange(reads_per_triple)).ravel()
