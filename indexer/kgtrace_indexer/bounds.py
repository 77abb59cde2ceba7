"""Upper and lower bounds of influence from stored codes, without touching the model.

`Codes.index_upper` gives the loose bound that is an inner product of short vectors; `Codes.bracket` the tight one, an
``estimate ± slack`` within which the exact influence lies. See `kgtrace_indexer.projection` for why they hold.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.projection import FLOOR, ROUNDING, Bases, index_code, rest_norm
from kgtrace_indexer.terms import Terms


@dataclass(frozen=True, slots=True)
class _Factor:
    """One vector of the query in a basis."""

    coordinates: Tensor
    """(m,)."""
    length: float
    """Norm of the coordinates."""
    norm: float
    rest: float
    """Norm of what the basis leaves out, with slack for rounding."""


@dataclass(frozen=True, slots=True)
class QueryCode:
    """The codes of one test triple; unlike stored ones, in full precision."""

    phi: Tensor
    """(k,)."""
    residual: Tensor
    """(blocks,)."""
    flat_dims: int
    """How many leading coordinates of φ belong to the flat blocks."""
    kron: Mapping[str, Sequence[tuple[_Factor, _Factor]]]
    """(u, v) of each loss term, by block."""
    rows: Mapping[str, Sequence[tuple[int, _Factor]]]
    """Row read and its gradient, for each use of each table."""
    norm: float
    """‖g'‖."""

    def search_vector(self, sign: int) -> Tensor:
        """Return [sign · φ', ρ'], (k + blocks,): its inner product with [φ, ρ] bounds sign · (dense influence)."""
        return torch.cat([sign * self.phi, self.residual])


def encode_query(terms: Terms, bases: Bases) -> QueryCode:
    """Encode the gradient of one test triple. The code is on the CPU, as stored codes are, wherever the model is."""
    code = index_code(terms, bases)
    kron = {
        name: [
            (_factor(u, bases.kron[name].u), _factor(v, bases.kron[name].v))
            for u, v in zip(block.u, block.v[block.group], strict=True)
        ]
        for name, block in terms.kron.items()
    }
    rows = {
        table: [
            (int(index), _factor(grad, bases.rows[table]))
            for use in uses
            for index, grad in zip(use.index, use.grad, strict=True)
        ]
        for table, uses in terms.rows.items()
    }
    norm = float((code.squared_norm[0] + FLOOR).sqrt())
    return QueryCode(code.phi[0].cpu(), code.residual[0].cpu(), bases.flat.shape[1], kron, rows, norm)


def _factor(vector: Tensor, basis: Tensor) -> _Factor:
    coordinates = vector @ basis
    squared_norm = vector.square().sum()
    rest = rest_norm(squared_norm, coordinates)
    return _Factor(coordinates.cpu(), float(coordinates.norm()), float((squared_norm + FLOOR).sqrt()), float(rest))


def _stored_error(dtype: torch.dtype) -> float:
    """Return how far a stored direction, of length at most 1, may lie from the true one."""
    return 2.0**-11 + 1e-6 if dtype == torch.float16 else 2.0**-24  # half a unit in the last place, and subnormals


@dataclass(frozen=True, slots=True)
class Codes:
    """The stored codes of n training triples, as `factor_codes` and `index_code` made them."""

    arrays: Mapping[str, Tensor]
    """By their names in a generation; memory-mapped on the CPU."""
    uses: Mapping[str, int]
    """How often a loss term reads each embedding table."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Codes":
        """Wrap the arrays of a generation, without a copy."""
        names = [name for name in arrays if not name.startswith("basis.")]
        uses: dict[str, int] = {}
        for name in names:
            if name.endswith(".index"):
                table = name.removesuffix(".index").rpartition(".")[0]
                uses[table] = uses.get(table, 0) + 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written
            return cls({name: torch.from_numpy(arrays[name]) for name in names}, uses)

    def __len__(self) -> int:
        """Return n."""
        return len(self.arrays["projected"])

    def index_upper(self, query: QueryCode, sign: int, rows: Tensor) -> Tensor:
        """Bound sign · influence of training triples (m,) by the index codes and the norms of shared rows, (m,)."""
        upper = sign * (self.arrays["projected"][rows] @ query.phi) + self.arrays["residual"][rows] @ query.residual
        for table, i, index, factor in self._uses(query):
            match = self.arrays[f"{table}.{i}.index"][rows] == index  # (m, directions)
            norms = self.arrays[f"{table}.{i}.size"][rows][:, :, 0]
            upper += (match * norms).sum(1) * factor.norm * (1 + ROUNDING)
        return upper

    def bracket(self, query: QueryCode, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the influence of training triples (m,) by the factor codes, (m,) each.

        Both are exactly 0 for a triple that shares no row with the query when there are no dense blocks either.
        """
        flat = query.flat_dims
        estimate = self.arrays["projected"][rows, :flat] @ query.phi[:flat]
        slack = self.arrays["residual"][rows, 0] * query.residual[0]
        slack += ROUNDING * query.norm * (self.arrays["self_influence"][rows] + FLOOR).sqrt()
        related = torch.full_like(slack, float(query.residual[0] > 0 or len(query.kron) > 0))
        for name, factors in query.kron.items():
            for u, v in factors:
                x, x_error = self._product(f"{name}.u", u, rows)  # (m, directions)
                y, y_error = self._product(f"{name}.v", v, rows)
                estimate += (x * y).sum(1)
                slack += (x.abs() * y_error + y.abs() * x_error + x_error * y_error).sum(1)
        for table, i, index, factor in self._uses(query):
            place, direction = torch.nonzero(self.arrays[f"{table}.{i}.index"][rows] == index, as_tuple=True)
            if len(place):
                product, error = self._product(f"{table}.{i}", factor, rows[place], direction)
                estimate.index_add_(0, place, product)
                slack.index_add_(0, place, error)
                related[place] = 1
        return estimate, slack * related

    def _uses(self, query: QueryCode) -> list[tuple[str, int, int, _Factor]]:
        """Return every pairing of a stored use of a table with one of the query's."""
        return [
            (table, i, index, factor)
            for table, factors in query.rows.items()
            for i in range(self.uses[table])
            for index, factor in factors
        ]

    def _product(
        self, name: str, factor: _Factor, rows: Tensor, direction: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ⟨v, v'⟩ and its error for stored vectors v: (m, directions), or (m,) for one direction of each."""
        code, size = self.arrays[f"{name}.code"], self.arrays[f"{name}.size"]
        at = rows if direction is None else (rows, direction)
        norm, rest = size[at].unbind(-1)
        product = (code[at].float() @ factor.coordinates) * norm
        return product, norm * (_stored_error(code.dtype) * factor.length) + rest * factor.rest
