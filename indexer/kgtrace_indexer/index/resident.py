"""Stored gradients of embedding rows in the memory of a GPU, where all that read a row are looked at without bounds.

They are those of `kgtrace_indexer.index.rows`, number by number as they lie on disk. On a GPU it takes fewer operations
to multiply all gradients of the rows of many test triples than to learn which of them matter: nothing here waits for a
number, and the number of operations does not depend on that of test triples, unless memory is short.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import LARGEST, RowList, RowLists
from kgtrace_indexer.pieces import free_bytes, piece_floats
from kgtrace_indexer.transfers import to_device

_log = logging.getLogger(__name__)

_ROOM = 4
"""Lists go to a GPU that has room for them so many times: with them go eigenvectors, no larger than 4/3 of them."""


@dataclass(frozen=True, slots=True)
class ResidentList:
    """The m = n · R reads of a table by the n training triples of a shard, as `RowList` has them, on a device."""

    of: RowList
    """The same on disk, which knows where the reads of a row stand in the list."""
    listed: Tensor
    """(m,) int32, or int64: the list."""
    triple: Tensor
    """(m,) int64: the training triple of each read in the list, counted from the first of all."""
    before: Tensor
    """(m,) int64: how many reads just before it in the list are of the same row and triple."""
    scale: Tensor
    """(m,) float64: ‖g‖ of each read, in units of the integers."""
    high: Tensor
    """(m, d) int16."""
    low: Tensor
    """(m, d) uint8."""

    @classmethod
    def moved(cls, rows: RowList, device: torch.device) -> Self:
        """Copy a list to a device."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written
            listed, norm, high, low = (
                torch.from_numpy(array).to(device) for array in (rows.listed, rows.norm, rows.high, rows.low)
            )
        triple = torch.div(listed, rows.row.shape[1], rounding_mode="floor").long() + rows.start
        number, new = torch.arange(len(triple), device=device), torch.ones_like(triple, dtype=torch.bool)
        new[1:] = triple.diff() != 0
        begins = rows.offsets[:-1][np.diff(rows.offsets) > 0]
        new.index_fill_(0, to_device(begins, device), True)
        before = number - torch.where(new, number, 0).cummax(0).values
        return cls(rows, listed, triple, before, norm.double() / LARGEST, high, low)

    def weighted(self, other: RowList) -> Self:
        """Return the same reads with the slopes of another list."""
        if other.slopes is None:
            return self
        slopes = to_device(np.ascontiguousarray(other.slopes), self.scale.device)
        scale = self.scale.view(len(slopes), -1, slopes.shape[1]) * slopes[:, None]
        return replace(self, scale=scale.flatten())

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of reads of rows (r,), (r,) int64."""
        counts: np.ndarray = self.of.offsets[rows + 1] - self.of.offsets[rows]
        return counts

    def places(self, rows: np.ndarray, together: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the number of its row and the place in the list of each read of rows (r,), (k,) int64 each.

        They come `together` at a time, or all at once.
        """
        counts = self.counts(rows)
        ends, total = np.cumsum(counts), int(counts.sum())
        last, shift = to_device(np.stack([ends, self.of.offsets[rows] - ends + counts]), self.scale.device)
        for start in range(0, total, together or max(1, total)):
            number = torch.arange(start, min(start + (together or total), total), device=last.device)
            owner = torch.searchsorted(last, number, right=True)
            yield owner, number + shift.index_select(0, owner)

    def gradients(self, places: Tensor) -> Tensor:
        """Return the gradients of the reads at places of the list (k,), (k, d) float64."""
        read = self.listed.index_select(0, places)
        grad = torch.add(self.low.index_select(0, read).double(), self.high.index_select(0, read), alpha=256)
        return grad.mul_(self.scale.index_select(0, read)[:, None])


@dataclass(frozen=True, slots=True)
class ResidentRows:
    """The lists of all tables, of all shards, on a device."""

    tables: Mapping[str, Sequence[ResidentList]]

    @classmethod
    def fitting(cls, lists: RowLists, device: torch.device) -> Self | None:
        """Copy lists to a GPU that has room for them; None where there is no GPU, or too little room."""
        pieces = [piece for table in lists.tables.values() for piece in table]
        if device.type == "cpu" or not pieces:
            return None
        size = sum(array.nbytes for piece in pieces for array in (piece.listed, piece.norm, piece.high, piece.low))
        fits = _ROOM * size < free_bytes(device)
        where = "in the GPU's memory" if fits else "on the CPU: the GPU is too full"
        _log.info("stored gradients of embedding rows (%.1f GB) are %s", size / 1e9, where)
        if not fits:
            return None
        tables = lists.tables.items()
        return cls({table: [ResidentList.moved(piece, device) for piece in pieces] for table, pieces in tables})

    @property
    def device(self) -> torch.device:
        """Where the lists are."""
        return next(iter(self.tables.values()))[0].high.device

    def weighted(self, lists: RowLists) -> "ResidentRows":
        """Return the lists with the slopes of others, of the same reads."""
        tables = {
            table: [own.weighted(other) for own, other in zip(pieces, lists.tables[table], strict=True)]
            for table, pieces in self.tables.items()
        }
        return ResidentRows(tables)

    def influences(self, queries: Mapping[str, RowQueries], tests: range, count: int) -> tuple[Tensor, Tensor]:
        """Return the influence of all `count` training triples on some test triples, (b, n) float64 and (b, n) bool.

        The second tensor says which training triples read a row of the test triple at all.
        """
        influence = torch.zeros(len(tests) * count, dtype=torch.float64, device=self.device)
        linked = torch.zeros(len(tests) * count, dtype=torch.bool, device=self.device)
        for table, gradients in queries.items():
            pairs = slice(*np.searchsorted(gradients.query, [tests.start, tests.stop]))
            first = to_device((gradients.query[pairs] - tests.start) * count, self.device)
            grad = to_device(np.ascontiguousarray(gradients.grad[pairs]), self.device)
            together = max(1, piece_floats(self.device) // (2 * grad.shape[1]))
            for piece in self.tables[table]:
                for owner, place in piece.places(gradients.row[pairs], together):
                    products = torch.linalg.vecdot(piece.gradients(place), grad.index_select(0, owner))
                    at = first.index_select(0, owner) + piece.triple.index_select(0, place)
                    influence.index_add_(0, at, products)
                    linked.index_fill_(0, at, True)
        return influence.view(len(tests), count), linked.view(len(tests), count)

    def padded(self, table: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return training triples that read each of rows (r,), and g_i(z), (r, m) int64 and (r, m, d) float64.

        Unlike in `RowLists.padded` there are empty places between, of a gradient of zero, and of any triple.
        """
        counts = [piece.counts(rows) for piece in self.tables[table]]
        most = int(np.sum(counts, 0).max(initial=0))
        triples = torch.zeros(len(rows) * most, dtype=torch.int64, device=self.device)
        grads = torch.zeros(len(rows) * most, self.tables[table][0].of.width, dtype=torch.float64, device=self.device)
        first = np.arange(len(rows)) * most
        for piece, count in zip(self.tables[table], counts, strict=True):
            shift = to_device(first - piece.of.offsets[rows], self.device)
            for owner, place in piece.places(rows):
                at = shift.index_select(0, owner) + place - piece.before.index_select(0, place)
                triples.index_copy_(0, at, piece.triple.index_select(0, place))
                grads.index_add_(0, at, piece.gradients(place))
            first = first + count
        return triples.view(len(rows), most), grads.view(len(rows), most, -1)

    def moment(self, table: str, row: int) -> Tensor:
        """Return F of a row, (d, d) float64."""
        width = self.tables[table][0].of.width
        moment = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        for _, grad in self.sums(table, row):
            moment.addmm_(grad.T, grad)
        return moment

    def sums(self, table: str, row: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training triples z that read a row, and g_i(z), (k,) int64 and (k, d) float64; some are zero, too."""
        for piece in self.tables[table]:
            together = max(1, piece_floats(self.device) // (2 * piece.of.width))
            start, stop = piece.of.offsets[row : row + 2].tolist()
            for span in piece.of.spans(start, stop, together):
                place = torch.arange(span.start, span.stop, device=self.device)
                at = place - piece.before[span.start : span.stop] - span.start
                grad = piece.gradients(place)
                yield piece.triple[span.start : span.stop], torch.zeros_like(grad).index_add_(0, at, grad)
