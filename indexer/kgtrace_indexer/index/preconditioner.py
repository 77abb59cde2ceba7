"""Influence preconditioned by the second moment of each embedding row's gradients.

Plain TracIn weighs a direction in which all training triples pull at a row as much as one in which few do. Influence
functions (Koh and Liang, 2017, https://arxiv.org/abs/1703.04730) turn the former down, by the inverse Fisher matrix;
here block by block, g_i being the gradient of row i of an embedding table (of ConvE's entities with the row's bias):

    gᵀ P g',    P = ⊕_i σ² (F_i + σ²I)⁻¹,    F_i = Σ_z g_i(z) g_i(z)ᵀ over the indexed training triples z.

Parameters outside of embedding tables have no part in it. With σ² → ∞ it is plain influence on the rows alone. P acts
on the test triple's gradient, and Pg' is a sum of the same terms as g': every bound, and with them index, posting
lists and certificate, holds for it as it does for any other gradient.

F_i is made of the stored row codes: of all coordinates of rows up to 256 long, in the stored precision. What the
coordinates of longer rows leave out counts as equal in all directions.
"""

from collections.abc import Collection
from functools import cached_property, lru_cache, partial
from math import inf

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Rows, Terms
from kgtrace_indexer.index.bases import FLOOR, Bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.names import Damping
from kgtrace_store.errors import BadRequest

AUTO_DAMPING = 3.0
"""σ² unless asked otherwise, in units of `mean_square`. Of 0.1, 0.3, 1, 3 and 10 it predicted best, on average, what
retraining did (``python -m benchmarks.truth.lds``)."""

_BLOCK = 65_536
"""Training triples whose gradients of a row are in memory together."""

_REMEMBERED = 128
"""Rows whose second moment is kept: 40 MB for rows of 200 numbers."""


def check_rows(stored: Collection[str]) -> None:
    """Raise `BadRequest` where arrays of these names hold no gradients of single embedding rows to precondition."""
    if any(name.endswith(".spread.index") for name in stored):
        raise BadRequest(
            "with this loss every training triple has a gradient in all rows of the entity table; the preconditioned "
            "score needs a loss of single tails, such as bce or removal"
        )
    if not any(name.endswith(".index") for name in stored):
        raise BadRequest(
            "these layers hold no embedding rows with codes; the preconditioned score needs some, and projection pca"
        )


def check_damping(damping: Damping | None) -> None:
    """Raise `BadRequest` for a σ² that is neither a positive number nor ``auto`` nor None."""
    if isinstance(damping, str):
        if damping != "auto":
            raise BadRequest(f"damping is {damping!r}, must be a number greater than 0, or auto")
    elif damping is not None and not 0 < damping < inf:
        raise BadRequest(f"damping is {damping}, must be greater than 0")


def resolve_damping(damping: Damping | None) -> float:
    """Return σ² in units of `mean_square`: `AUTO_DAMPING` for ``auto`` and None."""
    return AUTO_DAMPING if damping is None or isinstance(damping, str) else damping


class Preconditioner:
    """P for the training triples of a generation."""

    def __init__(self, codes: Codes, bases: Bases, training: TrainingSet) -> None:
        """Raise `BadRequest` as `check_rows` does."""
        check_rows(codes.arrays)
        self._codes = codes
        self._bases = bases
        # not of a method: what a cache holds of its owner keeps the files of a closed index mapped
        self._moment = lru_cache(_REMEMBERED)(partial(_moment_of, codes, bases, training))

    def __call__(self, terms: Terms, damping: Damping | None = None) -> Terms:
        """Return Pg' of test triples, with σ² so many times `mean_square`; ``auto`` and None for `AUTO_DAMPING`."""
        sigma = resolve_damping(damping) * self._mean_square
        rows = {
            table: [Rows(use.index, self._preconditioned(table, use, sigma)) for use in uses]
            for table, uses in terms.rows.items()
        }
        return Terms(terms.per_triple, terms.loss, {}, {}, rows)

    @cached_property
    def _mean_square(self) -> float:
        return mean_square(self._codes)

    def _preconditioned(self, table: str, use: Rows, sigma: float) -> Tensor:
        """Return σ² (F_i + σ²I)⁻¹ g for the gradients g (m, d) of rows i (m,)."""
        basis = self._bases.of_rows(table).double()  # (d, c)
        grads = use.grad.double()
        inside = grads @ basis
        outside = grads - inside @ basis.T
        found = []
        for index, coordinates, rest in zip(use.index.tolist(), inside, outside, strict=True):
            moment, left = self._moment(table, index)
            damped = moment.clone()
            damped.diagonal().add_(sigma)
            solved = sigma * torch.linalg.solve(damped, coordinates.to(moment.device))
            found.append(basis @ solved.to(basis.device) + sigma / (left + sigma) * rest)
        return torch.stack(found).to(use.grad.dtype)


def mean_square(codes: Codes) -> float:
    """Return the unit of damping: the mean over training triples of Σ ‖g‖², over their reads of embedding rows.

    Each read is squared by itself: of a row that a triple reads twice this is not the squared norm of its gradient.
    """
    names = [f"{table}.{i}.size" for table, uses in codes.uses.items() for i in range(uses)]
    sizes = [piece for name in names for piece in codes.arrays[name].pieces]
    squares = [size[:, :, 0].square().sum(dtype=torch.float64) for size in sizes]
    return float(sum(squares)) / len(codes) + FLOOR


def _moment_of(codes: Codes, bases: Bases, training: TrainingSet, table: str, index: int) -> tuple[Tensor, float]:
    """Return F_i in the coordinates of a table's rows, (c, c) float64, and its mean on what these leave out."""
    width, coordinates = bases.of_rows(table).shape
    moment = torch.zeros(coordinates, coordinates, dtype=torch.float64, device=codes.device)
    total = 0.0
    for rows in torch.from_numpy(training.reading(table, index)).split(_BLOCK):
        grads, left = codes.row_gradients(table, index, rows.to(codes.device))
        moment += grads.T @ grads
        total += float(left)
    return moment, total / max(1, width - coordinates)
