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
from kgtrace_indexer.index.rows import RowList, RowLists, sparingly
from kgtrace_indexer.names import Damping
from kgtrace_indexer.threads import side_by_side

_NUMBERS = 1 << 20
"""Numbers of the gradients of embedding rows that are looked at together."""


def preconditioned_self_influences(
    preconditioner: Preconditioner, plain: RowLists, count: int, damping: Damping | None
) -> np.ndarray:
    """Return gᵀPg of all `count` training triples, (n,) float32; `damping` is as in `Preconditioner`.

    `plain` are the gradients g, of TracIn's loss.
    """
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
    own = np.einsum("rnd,rnd->rn", x, by_readers(grads, x, sigma))
    return triples[triples >= 0], own[triples >= 0]


def _alike(counts: np.ndarray, together: int) -> Iterator[np.ndarray]:
    """Yield rows of a table that about as many training triples (rows,) read each, no more than `together` of all."""
    degree = np.floor(4 * np.log2(np.maximum(counts, 1)))  # two of the same differ by less than a fifth
    for level in np.unique(degree[counts > 0]):
        rows = np.flatnonzero((degree == level) & (counts > 0))
        share = max(1, together // int(counts[rows].max()))
        yield from np.split(rows, range(share, len(rows), share))
