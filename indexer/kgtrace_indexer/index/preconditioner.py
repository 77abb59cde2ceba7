"""Influence preconditioned by the second moment of each embedding row's gradients.

Plain TracIn weighs a direction in which all training triples pull at a row as much as one in which few do. Influence
functions (Koh and Liang, 2017, https://arxiv.org/abs/1703.04730) turn the former down, by the inverse Fisher matrix;
here block by block, g_i being the gradient of row i of an embedding table (of ConvE's entities with the row's bias):

    gᵀ P g',    P = ⊕_i σ² (F_i + σ²I)⁻¹,    F_i = Σ_z g_i(z) g_i(z)ᵀ over the indexed training triples z.

Parameters outside of embedding tables have no part in it. With σ² → ∞ it is plain influence on the rows alone. P acts
on the test triple's gradient, and Pg' is a sum of the same terms as g': every bound, and with them index and
certificate, holds for it as it does for any other gradient.

Of a row of d numbers that more than d training triples read, the index has the eigenvectors v and values λ of F_i, and
P divides by λ + σ² along these; of any other row the gradients are the rows of a matrix G, read when they are needed:

    σ² (F + σ²I)⁻¹ = Σ σ²/(λ + σ²) vvᵀ,        σ² (GᵀG + σ²I)⁻¹ = I − Gᵀ (GGᵀ + σ²I)⁻¹ G.

All of it is computed in float64, of a whole batch at once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import inf
from typing import ClassVar

import numpy as np
import torch

from kgtrace_indexer.gradients.terms import Rows, Terms
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import RowLists, listed_tables, sparingly
from kgtrace_indexer.models.checkpoints import checkpoint_of
from kgtrace_indexer.names import Damping
from kgtrace_indexer.threads import side_by_side
from kgtrace_store.errors import BadRequest

AUTO_DAMPING = 3.0
"""σ² by default, in units of `RowLists.mean_squares`. Of 0.1, 0.3, 1, 3 and 10 it predicted the effect of retraining
best, on average (``python -m benchmarks.truth.lds``)."""

_SIZES = (16, 64, 256)
"""Pairs whose rows have up to so many readers are solved together, padded to the largest."""
_NUMBERS = 1 << 21
"""Numbers of the gradients of a batch's rows that are in memory together: 16 MiB."""
_HUBS = 64
"""Rows whose eigenvectors are in memory together while they are computed."""


def check_damping(damping: Damping | None) -> None:
    """Raise `BadRequest` for a σ² that is neither a positive number nor ``auto`` nor None."""
    if isinstance(damping, str):
        if damping != "auto":
            raise BadRequest(f"damping is {damping!r}, must be a number greater than 0, or auto")
    elif damping is not None and not 0 < damping < inf:
        raise BadRequest(f"damping is {damping}, must be greater than 0")


def has_slopes(stored: Iterable[str]) -> bool:
    """Return whether arrays of these names hold gradients of tables all of whose rows are scored."""
    return any(name.endswith(".spread.index") for name in stored)


def check_rows(stored: Collection[str]) -> None:
    """Raise `BadRequest` where arrays of these names hold no gradients of single embedding rows to precondition."""
    if has_slopes(stored):
        raise BadRequest(
            "with this loss every training triple has a gradient in all rows of the entity table; the preconditioned "
            "score needs a loss of single tails, such as bce or removal"
        )
    if not listed_tables(stored):
        raise BadRequest(
            "these layers hold no gradients of embedding rows; the preconditioned score needs some, and projection pca"
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """F_i of the rows of a table that more training triples read than a row has numbers."""

    NAMES: ClassVar = ("row", "values", "vectors")
    row: np.ndarray
    """(s,) int64, ascending."""
    values: np.ndarray
    """(s, d) float64: eigenvalues λ."""
    vectors: np.ndarray
    """(s, d, d) float32: eigenvectors, one in each row."""

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the places of rows (r,), −1 for rows without moments: (r,) int64."""
        at = np.searchsorted(self.row, rows)
        has_moments = (
            self.row[np.minimum(at, len(self.row) - 1)] == rows if len(self.row) else np.zeros(len(rows), bool)
        )
        return np.where(has_moments, at, -1)


def moments(rows: RowLists, table: str) -> Iterator[Moments]:
    """Compute the moments of a table, a batch of rows at a time."""
    width = rows.width(table)
    hubs = np.flatnonzero(rows.reader_counts(table) > width)
    decompositions = sparingly(rows.tables[table], side_by_side(partial(_eigenvectors, rows, table), hubs.tolist()))
    for batch in np.split(hubs, range(_HUBS, len(hubs), _HUBS)):
        values, vectors = np.empty((len(batch), width)), np.empty((len(batch), width, width), np.float32)
        for number in range(len(batch)):
            values[number], vectors[number] = next(decompositions)
        yield Moments(batch, values, vectors)


def _eigenvectors(rows: RowLists, table: str, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of a row's F, (d,) float64, and its eigenvectors, one in each row, (d, d) float64."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(rows.moment(table, row)))
    return values.clamp_min(0).numpy(), vectors.T.numpy()


class Preconditioner:
    """P for the training triples of a generation."""

    def __init__(self, rows: RowLists, moments: Mapping[str, Moments], mean_squares: np.ndarray) -> None:
        """`moments` are by table; `mean_squares` (checkpoints,) are units of damping."""
        self.rows = rows
        self.moments = moments
        self.mean_squares = mean_squares

    def __call__(self, terms: Terms, damping: Damping | None = None) -> Terms:
        """Return Pg' of test triples, with σ² so many times `mean_squares`; ``auto`` and None for `AUTO_DAMPING`."""
        return row_terms(self.changed(RowQueries.of(terms), damping), terms)

    def changed(self, queries: Mapping[str, RowQueries], damping: Damping | None) -> dict[str, RowQueries]:
        """Return Pg' of test triples, by pairs of a test triple and a row."""
        return {
            table: replace(
                gradients, grad=self._changed(table, gradients.row, gradients.grad, self.sigma(table, damping))
            )
            for table, gradients in queries.items()
        }

    def sigma(self, table: str, damping: Damping | None) -> float:
        """Return σ² of a table."""
        units = AUTO_DAMPING if damping is None or isinstance(damping, str) else damping
        return units * float(self.mean_squares[checkpoint_of(table)])

    def _changed(self, table: str, index: np.ndarray, grad: np.ndarray, sigma: float) -> np.ndarray:
        """Return σ² (F_i + σ²I)⁻¹ g for the gradients g (m, d) float64 of rows i (m,), some of them equal."""
        moments, (rows, row) = self.moments[table], np.unique(index, return_inverse=True)
        uses = np.bincount(row)
        use = np.empty(len(row), np.int64)  # the number of each gradient among the gradients of its row
        use[np.argsort(row, kind="stable")] = np.arange(len(row)) - (np.cumsum(uses) - uses).repeat(uses)
        at, counts = moments.find(rows), self.rows.read_counts(table, rows)
        few = max(1, _NUMBERS // grad.shape[1] ** 2)
        changed = np.zeros((len(rows), int(uses.max(initial=0)), grad.shape[1]))
        changed[row, use] = grad
        for part in _split(at >= 0, few):
            changed[part] = by_moments(moments, at[part], changed[part], sigma)
        for least, most in pairwise((0, *_SIZES, inf)):
            for part in _split((at < 0) & (counts > least) & (counts <= most), few):
                changed[part] = by_readers(self.rows.padded(table, rows[part])[1], changed[part], sigma)
        preconditioned: np.ndarray = changed[row, use]
        return preconditioned


def row_terms(queries: Mapping[str, RowQueries], like: Terms) -> Terms:
    """Return gradients in embedding rows alone as terms, with the losses of `like`."""
    rows: dict[str, list[Rows]] = {}
    for table, gradients in queries.items():
        for number in range(gradients.pairs.shape[1]):
            index, grad = gradients.use(number)
            rows.setdefault(table, []).append(
                Rows(torch.from_numpy(index).to(like.loss.device), torch.from_numpy(grad).to(like.loss))
            )
    return Terms(1, like.losses(), {}, {}, rows)


def _split(which: np.ndarray, size: int) -> list[np.ndarray]:
    """Return the numbers of the rows in a mask, `size` at a time."""
    numbers = np.flatnonzero(which)
    return np.split(numbers, range(size, len(numbers), size)) if len(numbers) else []


def by_moments(moments: Moments, at: np.ndarray, x: np.ndarray, sigma: float) -> np.ndarray:
    """Return σ² (F + σ²I)⁻¹ x for x (r, k, d) and r of the rows that have moments."""
    vectors = torch.from_numpy(moments.vectors[at].astype(np.float64))
    shrunk = (torch.from_numpy(x) @ vectors.mT) * torch.from_numpy(sigma / (moments.values[at] + sigma))[:, None]
    preconditioned: np.ndarray = (shrunk @ vectors).numpy()
    return preconditioned


def by_readers(grads: np.ndarray, x: np.ndarray, sigma: float) -> np.ndarray:
    """Return σ² (F + σ²I)⁻¹ x, where rows of G (r, n, d) are the gradients of a row's readers, or zero."""
    readers, right = torch.from_numpy(grads), torch.from_numpy(x)
    system = readers @ readers.mT
    system.diagonal(dim1=1, dim2=2).add_(sigma)
    solved = torch.cholesky_solve(readers @ right.mT, torch.linalg.cholesky(system))  # (r, n, k)
    preconditioned: np.ndarray = (right - solved.mT @ readers).numpy()
    return preconditioned
