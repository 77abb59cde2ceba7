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

All of it is computed in float64, of a whole batch at once; where the gradients are in a GPU's memory, on the GPU.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Rows, Terms
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import RowLists, listed_tables, sparingly
from kgtrace_indexer.models.checkpoints import checkpoint_of
from kgtrace_indexer.names import Damping
from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.threads import side_by_side
from kgtrace_indexer.transfers import to_device, to_host
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

    def moved(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return values and vectors on a device."""
        return to_device(np.array(self.values), device), to_device(np.array(self.vectors), device)


def moments(rows: RowLists, table: str, resident: ResidentRows | None = None) -> Iterator[Moments]:
    """Compute the moments of a table, a batch of rows at a time; where the lists are resident, on the GPU."""
    width = rows.width(table)
    hubs = np.flatnonzero(rows.reader_counts(table) > width)
    batches = np.split(hubs, range(_HUBS, len(hubs), _HUBS))
    if resident is not None:
        for batch in batches:
            of_rows = [resident.moment(table, row) for row in batch.tolist()]
            none = torch.empty(0, width, width, dtype=torch.float64)
            found = _eigenvectors(torch.stack(of_rows) if of_rows else none)
            arrays = to_host(dict(zip(Moments.NAMES[1:], found, strict=True)))()
            yield Moments(batch, arrays["values"], arrays["vectors"].astype(np.float32))
        return

    def of(row: int) -> tuple[Tensor, Tensor]:
        return _eigenvectors(torch.from_numpy(rows.moment(table, row)))

    decompositions = sparingly(rows.tables[table], side_by_side(of, hubs.tolist()))
    for batch in batches:
        values, vectors = np.empty((len(batch), width)), np.empty((len(batch), width, width), np.float32)
        for number in range(len(batch)):
            values[number], vectors[number] = next(decompositions)
        yield Moments(batch, values, vectors)


def _eigenvectors(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of F (…, d, d), (…, d) float64, and eigenvectors, one in each row, (…, d, d) float64."""
    values, vectors = torch.linalg.eigh(moment)
    return values.clamp_min(0), vectors.mT


class Preconditioner:
    """P for the training triples of a generation."""

    def __init__(
        self,
        rows: RowLists,
        moments: Mapping[str, Moments],
        mean_squares: np.ndarray,
        resident: ResidentRows | None = None,
    ) -> None:
        """`moments` are by table; `mean_squares` (checkpoints,) are units of damping; `resident` is `rows` on a GPU."""
        self.rows = rows
        self.moments = moments
        self.mean_squares = mean_squares
        self.resident = resident
        self._on_gpu: dict[str, tuple[Tensor, Tensor]] = {}
        if resident is not None:
            self._on_gpu = {table: each.moved(resident.device) for table, each in moments.items()}

    def __call__(self, terms: Terms, damping: Damping | None = None) -> Terms:
        """Return Pg' of test triples, with σ² so many times `mean_squares`; ``auto`` and None for `AUTO_DAMPING`."""
        return row_terms(self.changed(RowQueries.of(terms), damping), terms)

    def changed(self, queries: Mapping[str, RowQueries], damping: Damping | None) -> dict[str, RowQueries]:
        """Return Pg' of test triples, by pairs of a test triple and a row."""
        by_row = {table: _ByRow.of(gradients.row, gradients.grad) for table, gradients in queries.items()}
        parts = [
            (grads, part, solved)
            for table, grads in by_row.items()
            for part, solved in self._solved(table, grads, self.sigma(table, damping))
        ]
        arrays = to_host({str(number): solved for number, (_, _, solved) in enumerate(parts)})()  # waits once
        for number, (grads, part, _) in enumerate(parts):
            grads.grad[part] = arrays[str(number)]
        return {table: replace(gradients, grad=by_row[table].by_pair()) for table, gradients in queries.items()}

    def sigma(self, table: str, damping: Damping | None) -> float:
        """Return σ² of a table."""
        units = AUTO_DAMPING if damping is None or isinstance(damping, str) else damping
        return units * float(self.mean_squares[checkpoint_of(table)])

    def _solved(self, table: str, grads: "_ByRow", sigma: float) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield numbers of rows (r,), and σ² (F_i + σ²I)⁻¹ g of the gradients g (r, k, d) of each of these rows i."""
        device = torch.device("cpu") if self.resident is None else self.resident.device
        numbers, sizes = (_NUMBERS, _SIZES) if device.type == "cpu" else (piece_floats(device) // 2, ())
        moments, rows = self.moments[table], grads.rows
        at, counts = moments.find(rows), self.rows.read_counts(table, rows)
        few = max(1, numbers // grads.grad.shape[2] ** 2)
        for part in _split(at >= 0, few):
            values, vectors = self.eigenvectors(table, at[part])
            yield part, by_moments(values, vectors, to_device(grads.grad[part], device), sigma)
        for least, most in pairwise((0, *sizes, inf)):
            for part in _split((at < 0) & (counts > least) & (counts <= most), few):
                yield part, by_readers(self._readers(table, rows[part]), to_device(grads.grad[part], device), sigma)

    def eigenvectors(self, table: str, at: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return eigenvalues (r, d) and eigenvectors (r, d, d), float64, of rows that have moments, by place (r,)."""
        if self.resident is not None:
            values, vectors = self._on_gpu[table]
            place = to_device(at, values.device)
            return values.index_select(0, place), vectors.index_select(0, place).double()
        moments = self.moments[table]
        return torch.from_numpy(moments.values[at]), torch.from_numpy(moments.vectors[at].astype(np.float64))

    def _readers(self, table: str, rows: np.ndarray) -> Tensor:
        """Return the gradients of the readers of rows (r,), (r, n, d) float64, filled up with zeros."""
        if self.resident is not None:
            return self.resident.padded(table, rows)[1]
        return torch.from_numpy(self.rows.padded(table, rows)[1])


@dataclass(frozen=True, slots=True)
class _ByRow:
    """Gradients in rows of a table, some of them in the same, by row."""

    rows: np.ndarray
    """(r,) int64: each once."""
    row: np.ndarray
    """(m,) int64: the number of each gradient's row."""
    use: np.ndarray
    """(m,) int64: the number of each gradient among those of its row."""
    grad: np.ndarray
    """(r, k, d) float64: zeros where a row has fewer than others."""

    @classmethod
    def of(cls, index: np.ndarray, grad: np.ndarray) -> Self:
        """Sort the gradients (m, d) float64 of rows (m,)."""
        rows, row = np.unique(index, return_inverse=True)
        uses = np.bincount(row)
        use = np.empty(len(row), np.int64)
        use[np.argsort(row, kind="stable")] = np.arange(len(row)) - (np.cumsum(uses) - uses).repeat(uses)
        grads = np.zeros((len(rows), int(uses.max(initial=0)), grad.shape[1]))
        grads[row, use] = grad
        return cls(rows, row, use, grads)

    def by_pair(self) -> np.ndarray:
        """Return the gradients in the order that they came in, (m, d) float64."""
        grad: np.ndarray = self.grad[self.row, self.use]
        return grad


def row_terms(queries: Mapping[str, RowQueries], like: Terms) -> Terms:
    """Return gradients in embedding rows alone as terms, with the losses of `like`."""
    rows: dict[str, list[Rows]] = {}
    for table, gradients in queries.items():
        for number in range(gradients.pairs.shape[1]):
            index, grad = gradients.use(number)
            moved = Rows(to_device(index, like.loss.device), to_device(grad, like.loss.device).to(like.loss.dtype))
            rows.setdefault(table, []).append(moved)
    return Terms(1, like.losses(), {}, {}, rows)


def _split(which: np.ndarray, size: int) -> list[np.ndarray]:
    """Return the numbers of the rows in a mask, `size` at a time."""
    numbers = np.flatnonzero(which)
    return np.split(numbers, range(size, len(numbers), size)) if len(numbers) else []


def by_moments(values: Tensor, vectors: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return σ² (F + σ²I)⁻¹ x for x (r, k, d), given eigenvalues (r, d) and vectors (r, d, d) of F, all float64."""
    shrunk = (x @ vectors.mT) * (sigma / (values + sigma))[:, None]
    return shrunk @ vectors


def by_readers(readers: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return σ² (F + σ²I)⁻¹ x for x (r, k, d), where G (r, n, d) holds the gradients of a row's readers, and zeros."""
    system = readers @ readers.mT
    system.diagonal(dim1=1, dim2=2).add_(sigma)
    # a GPU would be waited for to learn what holds: that the system is positive definite
    factor, _ = torch.linalg.cholesky_ex(system, check_errors=system.device.type == "cpu")
    solved = torch.cholesky_solve(readers @ x.mT, factor)  # (r, n, k)
    return x - solved.mT @ readers
