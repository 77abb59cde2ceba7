"""Preconditioned self-influence: how much of what the model makes of a training triple rests on the triple itself.

With P as in `kgtrace_indexer.index.preconditioner`, of all training triples at once,

    gᵀPg = Σ_i σ² g_iᵀ (F_i + σ²I)⁻¹ g_i,

where i are the embedding rows that a triple reads, and g is its gradient under TracIn's loss: where that is ``bce`` and
F is of ``removal``, the squared slope times what statistics call leverage.
"""

from collections.abc import Iterator

import numpy as np

from kgtrace_indexer.index.preconditioner import Preconditioner, by_moments, by_readers
from kgtrace_indexer.models.checkpoints import checkpoint_count, checkpoint_of
from kgtrace_indexer.names import Damping

_NUMBERS = 1 << 22
"""Numbers of the gradients of embedding rows that are looked at together."""


def preconditioned_self_influences(
    preconditioner: Preconditioner, slopes: np.ndarray | None, count: int, damping: Damping | None
) -> np.ndarray:
    """Return gᵀPg of all `count` training triples, (n,) float32; `damping` is as in `Preconditioner`.

    `slopes` (n, checkpoints · directions) is what each loss term's gradient is multiplied with to have TracIn's.
    """
    sigma, rows = preconditioner.sigma(damping), preconditioner.rows
    found = np.zeros(count)
    for table, held in preconditioner.held.items():
        checkpoints = checkpoint_count(preconditioner.held)
        weight = None if slopes is None else np.split(slopes, checkpoints, 1)[checkpoint_of(table)]
        together = max(1, _NUMBERS // rows.width(table))
        for start in range(len(held.row)):
            some = held.row[start : start + 1]
            for triple, grad in rows.blocks(table, int(some[0]), together, weight):
                changed = by_moments(held, np.array([start]), grad[None], sigma)[0]
                np.add.at(found, triple, (grad * changed).sum(1))
        counts = rows.reader_counts(table)
        counts[held.row] = 0
        for some in _alike(counts, together):
            triples, grads = rows.padded(table, some)
            x = grads if weight is None else rows.padded(table, some, weight)[1]
            own = (x * by_readers(grads, x, sigma)).sum(2)
            np.add.at(found, triples[triples >= 0], own[triples >= 0])
    return found.astype(np.float32)


def _alike(counts: np.ndarray, together: int) -> Iterator[np.ndarray]:
    """Yield rows of a table that about as many training triples (rows,) read each, no more than `together` of all."""
    degree = np.floor(4 * np.log2(np.maximum(counts, 1)))  # two of the same differ by less than a fifth
    for each in np.unique(degree[counts > 0]):
        rows = np.flatnonzero((degree == each) & (counts > 0))
        share = max(1, together // int(counts[rows].max()))
        yield from np.split(rows, range(share, len(rows), share))
