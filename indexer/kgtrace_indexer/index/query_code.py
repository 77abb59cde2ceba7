"""The codes of test triples; unlike those of training triples, in full precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Spread, Terms
from kgtrace_indexer.index.bases import FLOAT32, FLOOR, Bases, KronBasis, index_code, no_dense_code, rest_norm


@dataclass(frozen=True, slots=True)
class QueryFactor:
    """One vector of the query in a basis."""

    coordinates: Tensor
    """(m,)."""
    length: float
    """Norm of the coordinates."""
    norm: float
    rest: float
    """Norm of what the basis leaves out, with slack for rounding."""


@dataclass(frozen=True, slots=True)
class QuerySlopes:
    """One loss term's slopes over all entities, as the query has them, and what they are multiplied with."""

    tail: int
    """t', the loss term's own tail."""
    at_tail: float
    """u' at t'."""
    all: Tensor
    """(E,): u'."""
    others: Tensor
    """(E,): u' without t'."""
    inside: Tensor
    """(c,): coordinates of `others`."""
    outside: float
    """Norm of what they leave of it, with slack for rounding."""
    length: float
    """Norm of `others` and `inside` together."""
    x: QueryFactor


@dataclass(frozen=True, slots=True)
class QueryCode:
    """The codes of one test triple; unlike stored ones, in full precision."""

    phi: Tensor
    """(k,)."""
    residual: Tensor
    """(blocks,)."""
    flat_dims: int
    """How many leading coordinates of φ belong to the flat blocks."""
    kron: Mapping[str, Sequence[tuple[QueryFactor, QueryFactor]]]
    """(u, v) of each loss term, by block."""
    rows: Mapping[str, Sequence[tuple[int, QueryFactor]]]
    """Row read and its gradient, for each use of each table."""
    spread: Mapping[str, Sequence[QuerySlopes]]
    """Slopes and x of each loss term, by table whose rows were all scored."""
    norm: float
    """‖g'‖."""

    @property
    def dense(self) -> bool:
        """Whether training triples that read none of its rows may have any influence on it."""
        return bool(self.phi.any() or self.residual.any())

    def reads(self) -> dict[str, set[int]]:
        """Return the rows of each table that are read, or scored as a loss term's own tail."""
        found = {table: {index for index, _ in uses} for table, uses in self.rows.items()}
        for table, slopes in self.spread.items():
            found.setdefault(table, set()).update(each.tail for each in slopes)
        return found


def encode_queries(terms: Terms, bases: Bases, device: torch.device) -> list[QueryCode]:
    """Encode the gradients of test triples, for stored codes that are on a device, wherever the model is."""
    code = index_code([terms], bases) if terms.dense else no_dense_code(terms, bases)
    phi, residual = code.phi.to(device), code.residual.to(device)
    norms = (code.squared_norm + FLOOR).sqrt().tolist()
    factors = partial(_factors, device=device)
    kron = {
        name: list(zip(factors(b.u, bases.kron[name].u), factors(b.v[b.group], bases.kron[name].v), strict=True))
        for name, b in terms.kron.items()
    }
    rows = {
        table: [list(zip(use.index.tolist(), factors(use.grad, bases.of_rows(table)), strict=True)) for use in uses]
        for table, uses in terms.rows.items()
    }
    spread = {table: _all_slopes(block, bases.kron[table], device) for table, block in terms.spread.items()}

    def of(i: int) -> QueryCode:
        these = slice(i * terms.directions, (i + 1) * terms.directions)
        return QueryCode(
            phi=phi[i],
            residual=residual[i],
            flat_dims=bases.flat.shape[1],
            kron={name: factors[these] for name, factors in kron.items()},
            rows={table: [pair for use in uses for pair in use[these]] for table, uses in rows.items()},
            spread={table: slopes[these] for table, slopes in spread.items()},
            norm=norms[i],
        )

    return [of(i) for i in range(len(terms))]


@dataclass(frozen=True, slots=True)
class RowCodes:
    """The codes of all rows of an embedding table's gradient, with a last row of zeros for those that have none."""

    coordinates: Tensor
    """(rows + 1, c)."""
    length: Tensor
    """(rows + 1,): norms of the coordinates, as those below."""
    norm: Tensor
    rest: Tensor
    """Norms of what the basis leaves out, with slack for rounding."""


def encode_rows(table: Tensor, basis: Tensor, device: torch.device) -> RowCodes:
    """Encode the gradients of a table's rows (rows + 1, d) in a basis (d, c), for stored codes that are on a device."""
    coordinates = table @ basis
    squared_norm = table.square().sum(1)
    there = squared_norm > 0
    sizes = (coordinates.norm(dim=1), squared_norm.sqrt(), rest_norm(squared_norm, coordinates) * there)
    return RowCodes(coordinates.to(device), *(size.to(device) for size in sizes))


def _factors(vectors: Tensor, basis: Tensor, device: torch.device) -> list[QueryFactor]:
    """Encode vectors (m, d) in a basis (d, c)."""
    coordinates = vectors @ basis
    squared_norm = vectors.square().sum(1)
    sizes = torch.stack(
        [coordinates.norm(dim=1), (squared_norm + FLOOR).sqrt(), rest_norm(squared_norm, coordinates)], 1
    )
    return [QueryFactor(row, *size) for row, size in zip(coordinates.to(device), sizes.tolist(), strict=True)]


def _all_slopes(block: Spread, basis: KronBasis, device: torch.device) -> list[QuerySlopes]:
    every = torch.arange(block.u.base.shape[1], device=block.x.device)
    x = _factors(block.x[block.u.group], basis.v, device)
    return [
        _slopes(u, tail, basis.u, factor, device)
        for u, tail, factor in zip(block.u.entries(every), block.u.index[:, 0].tolist(), x, strict=True)
    ]


def _slopes(u: Tensor, tail: int, basis: Tensor, x: QueryFactor, device: torch.device) -> QuerySlopes:
    others = u.clone()
    others[tail] = 0
    inside = others @ basis
    length = float(others.norm())
    outside = float((others - basis @ inside).norm()) + FLOAT32 * length
    total = float(inside.norm()) + length
    return QuerySlopes(tail, float(u[tail]), u.to(device), others.to(device), inside.to(device), outside, total, x)
