"""Preconditioned self-influence: how much the model's prediction of a training triple rests on the triple itself.

With P as in `kgtrace_indexer.index.preconditioner`, of all training triples at once,

    gᵀPg = Σ_i σ² g_iᵀ (F_i + σ²I)⁻¹ g_i,

where i are the embedding rows that a triple reads, and g is its gradient under TracIn's loss: where that is ``bce`` and
F is of ``removal``, the squared slope times the leverage of statistics.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from kgtrace_indexer.index.preconditioner import Moments, Preconditioner, by_readers
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.rows import RowList, RowLists, sparingly
from kgtrace_indexer.names import Damping
from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.threads import side_by_side
from kgtrace_indexer.transfers import to_host

_NUMBERS = 1 << 20
"""Numbers of the gradients of embedding rows that are looked at together."""


def preconditioned_self_influences(
    preconditioner: Preconditioner, plain: RowLists, count: int, damping: Damping | None
) -> np.ndarray:
    """Return gᵀPg of all `count` training triples, (n,) float32; `damping` is as in `Preconditioner`.

    `plain` are the gradients g, of TracIn's loss.
    """
    if preconditioner.resident is not None:
        return _on_gpu(preconditioner, preconditioner.resident, plain, count, damping)
    rows = preconditioner.rows
    self_influences = np.zeros(count)
    for table, moments in preconditioner.moments.items():
        sigma, together = preconditioner.sigma(table, damping), max(1, _NUMBERS // rows.width(table))
        hubs = (
            (place, piece, span)
            for place, row in enumerate(moments.row)
            for piece in plain.tables[table]
            for span in piece.spans(int(piece.offsets[row]), int(piece.offsets[row + 1]), together)
        )
        of_hubs = side_by_side(partial(_of_hub, moments, sigma), hubs)
        for triples, own in sparingly(plain.tables[table], of_hubs):
            self_influences[triples] += own
        counts = rows.reader_counts(table)
        counts[moments.row] = 0
        of_others = side_by_side(partial(_of_rows, rows, plain, table, sigma), _alike(counts, together))
        for triples, own in sparingly(rows.tables[table], of_others):
            np.add.at(self_influences, triples, own)
    return self_influences.astype(np.float32)


def _on_gpu(
    preconditioner: Preconditioner, resident: ResidentRows, plain: RowLists, count: int, damping: Damping | None
) -> np.ndarray:
    """Do the same where the gradients are in a GPU's memory."""
    weighted = resident.weighted(plain)
    self_influences = torch.zeros(count, dtype=torch.float64, device=resident.device)
    for table, moments in preconditioner.moments.items():
        sigma, width = preconditioner.sigma(table, damping), preconditioner.rows.width(table)
        for place, row in enumerate(moments.row.tolist()):
            values, vectors = preconditioner.eigenvectors(table, np.array([place]))
            for triples, grad in weighted.sums(table, row):
                own = (grad @ vectors[0].T).square() @ (sigma / (values[0] + sigma))
                self_influences.index_add_(0, triples, own)
        counts = preconditioner.rows.reader_counts(table)
        counts[moments.row] = 0
        for batch in _alike(counts, max(1, piece_floats(resident.device) // (2 * width))):
            triples, grads = resident.padded(table, batch)
            x = weighted.padded(table, batch)[1]
            own = torch.linalg.vecdot(x, by_readers(grads, x, sigma))
            self_influences.index_add_(0, triples.flatten(), own.flatten())
    return to_host({"": self_influences.float()})()[""]


def _of_hub(moments: Moments, sigma: float, reads: tuple[int, RowList, range]) -> tuple[np.ndarray, np.ndarray]:
    """Return the training triples (e,) of some reads of a row, and g_iᵀ P g_i (e,), given the table's moments."""
    place, piece, span = reads
    _, triples, grad = piece.sums(span)
    along = torch.from_numpy(grad) @ torch.from_numpy(moments.vectors[place].astype(np.float64)).T  # ⟨v, g⟩
    return triples, (along.square() @ torch.from_numpy(sigma / (moments.values[place] + sigma))).numpy()


def _of_rows(
    rows: RowLists, plain: RowLists, table: str, sigma: float, batch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the training triples (e,) of all reads of a batch of rows (r,), and g_iᵀ P g_i (e,)."""
    triples, grads = rows.padded(table, batch)
    x = plain.padded(table, batch)[1]
    changed = by_readers(torch.from_numpy(grads), torch.from_numpy(x), sigma).numpy()
    own = np.einsum("rnd,rnd->rn", x, changed)
    return triples[triples >= 0], own[triples >= 0]


def _alike(counts: np.ndarray, together: int) -> Iterator[np.ndarray]:
    """Yield rows of a table that about as many training triples (rows,) read each, no more than `together` of all."""
    degree = np.floor(4 * np.log2(np.maximum(counts, 1)))  # two of the same differ by less than a fifth
    for level in np.unique(degree[counts > 0]):
        rows = np.flatnonzero((degree == level) & (counts > 0))
        share = max(1, together // int(counts[rows].max()))
        yield from np.split(rows, range(share, len(rows), share))
