"""Preconditioned self-influence: how much of what the model makes of a training triple rests on the triple itself.

With P as in `kgtrace_indexer.index.preconditioner`, of all training triples at once,

    gᵀPg = Σ_i σ² g_iᵀ (F_i + σ²I)⁻¹ g_i,

where i are the embedding rows that a triple reads, and g is its gradient under ``bce`` where the index has ``removal``,
whose F is kept: the squared slope times what statistics call leverage. Where n triples read a row of c coordinates,
the smaller of two systems is solved, GᵀG + σ²I of c equations, or GGᵀ + σ²I of n, since with gradients as rows of G

    σ² (GᵀG + σ²I)⁻¹ = I − Gᵀ (GGᵀ + σ²I)⁻¹ G.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.index.bases import Bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.preconditioner import mean_square, resolve_damping
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.names import Damping

_NUMBERS = 1 << 22
"""Numbers of the gradients of embedding rows that are looked at together."""


def preconditioned_self_influences(
    codes: Codes, bases: Bases, training: TrainingSet, damping: Damping | None
) -> np.ndarray:
    """Return gᵀPg of all training triples, (n,) float32; `damping` is as in `Preconditioner`."""
    sigma = resolve_damping(damping) * mean_square(codes)
    found = torch.zeros(len(codes), dtype=torch.float64)
    for table in codes.uses:
        width, coordinates = bases.of_rows(table).shape
        offsets, readers = training.readers(table)
        counts = np.diff(offsets)
        together = max(1, _NUMBERS // coordinates)
        for rows, most in _alike(counts, together):
            if most > together:
                (row,) = rows.tolist()
                blocks = torch.from_numpy(training.reading(table, row)).split(together)
                moment, left = torch.zeros(coordinates, coordinates, dtype=torch.float64), 0.0
                for triples in blocks:
                    reads = _Reads.of(codes, table, torch.full_like(triples, row), triples)
                    moment += reads.grads.T @ reads.grads
                    left += float(reads.left.sum()) / max(1, width - coordinates)
                for triples in blocks:
                    reads = _Reads.of(codes, table, torch.full_like(triples, row), triples)
                    inside = _by_coordinates(moment, reads.scaled.T, sigma)
                    found.index_add_(0, triples, inside + sigma / (left + sigma) * reads.scaled_left)
                continue
            held = np.arange(most) < counts[rows][:, None]  # (s, most)
            triples = torch.from_numpy(readers[(offsets[rows][:, None] + np.arange(most))[held]].astype(np.int64))
            place = torch.from_numpy(np.nonzero(held)[0])  # (m,): whose readers they are
            reads = _Reads.of(codes, table, torch.from_numpy(rows)[place], triples)
            grads, scaled = torch.zeros(2, *held.shape, coordinates, dtype=torch.float64)
            grads[torch.from_numpy(held)], scaled[torch.from_numpy(held)] = reads.grads, reads.scaled
            inside = _damped(grads, scaled, sigma)[torch.from_numpy(held)]
            outside = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, place, reads.left) / max(
                1, width - coordinates
            )
            found.index_add_(0, triples, inside + sigma / (outside[place] + sigma) * reads.scaled_left)
    return found.float().numpy()


@dataclass(frozen=True, slots=True)
class _Reads:
    """Gradients of embedding rows as training triples (m,) have them that read one each, float64.

    In float32, systems that little is added to would not be positive definite.
    """

    grads: Tensor
    """(m, c): stored coordinates."""
    scaled: Tensor
    """(m, c): with the slopes."""
    left: Tensor
    """(m,): squared norm of what these leave out."""
    scaled_left: Tensor
    """(m,)"""

    @classmethod
    def of(cls, codes: Codes, table: str, index: Tensor, triples: Tensor) -> "_Reads":
        """Gather those of rows `index` (m,) of a table."""
        coordinates = codes.arrays[f"{table}.0.code"].shape[2]
        shape = (2, len(triples))
        grads, left = torch.zeros(*shape, coordinates, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        found = cls(*grads, *left)
        for read in codes.row_reads(table, index, triples):
            found.grads.index_add_(0, read.place, read.grad.double())
            found.scaled.index_add_(0, read.place, read.slope[:, None] * read.grad.double())
            found.left.index_add_(0, read.place, read.left.double())
            found.scaled_left.index_add_(0, read.place, read.scaled_left.double())
        found.left.clamp_min_(0)  # shares of parts that cancel may sum to less than nothing
        found.scaled_left.clamp_min_(0)
        return found


def _alike(counts: np.ndarray, together: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield rows of a table that about as many training triples (rows,) read each, and how many at most.

    These are no more than `together` of all, unless it is a single row.
    """
    degree = np.floor(4 * np.log2(np.maximum(counts, 1)))  # two of the same differ by less than a fifth
    for each in np.unique(degree[counts > 0]):
        rows = np.flatnonzero((degree == each) & (counts > 0))
        most = int(counts[rows].max())
        share = max(1, together // most)
        for start in range(0, len(rows), share):
            some = rows[start : start + share]
            yield some, int(counts[some].max())


def _damped(grads: Tensor, scaled: Tensor, sigma: float) -> Tensor:
    """Return σ² gᵀ (GᵀG + σ²I)⁻¹ g for the gradients G (s, n, c) of s rows and g (s, n, c), (s, n), all float64."""
    _, count, coordinates = grads.shape
    if count >= coordinates:
        return _by_coordinates(grads.mT @ grads, scaled.mT, sigma)
    right = grads @ scaled.mT  # (s, n, n)
    return scaled.square().sum(2) - (right * _solved(grads @ grads.mT, right, sigma)).sum(1)


def _by_coordinates(moment: Tensor, scaled: Tensor, sigma: float) -> Tensor:
    """Return σ² gᵀ (F + σ²I)⁻¹ g for F (…, c, c) and g (…, c, n), (…, n)."""
    return sigma * (scaled * _solved(moment, scaled, sigma)).sum(-2)


def _solved(system: Tensor, right: Tensor, sigma: float) -> Tensor:
    """Return (A + σ²I)⁻¹ B for A (…, m, m) and B (…, m, n)."""
    damped = system + sigma * torch.eye(system.shape[-1], dtype=torch.float64)
    return torch.cholesky_solve(right, torch.linalg.cholesky(damped))
