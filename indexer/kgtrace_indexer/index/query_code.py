"""The codes of test triples; unlike those of training triples, in full precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Spread, Terms
from kgtrace_indexer.index.bases import FLOAT32, FLOOR, Bases, KronBasis, index_code, rest_norm
from kgtrace_indexer.index.row_queries import RowQueries


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
    vector: Tensor
    """(d,): x itself."""


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
    number: int
    """Which of the test triples of `rows` it is."""
    rows: Mapping[str, RowQueries]
    """Gradients of embedding rows, by table."""
    spread: Mapping[str, Sequence[QuerySlopes]]
    """Slopes and x of each loss term, by table whose rows were all scored."""
    entries: Mapping[str, Sequence[tuple[int, QueryFactor]]]
    """Row read and its gradient, for each use of such a table."""
    norm: float
    """‖g'‖."""

    def reads(self) -> dict[str, list[int]]:
        """Return the rows of each table that are read, or scored as a loss term's own tail."""
        found = {table: asked.row[asked.query == self.number].tolist() for table, asked in self.rows.items()}
        for table in found.keys() & self.spread.keys():
            found[table] = sorted({*found[table], *(each.tail for each in self.spread[table])})
        return found


def encode_queries(terms: Terms, bases: Bases, device: torch.device) -> list[QueryCode]:
    """Encode the gradients of test triples, for stored codes that are on a device, wherever the model is."""
    code = index_code([terms], bases)
    phi, residual = code.phi.to(device), code.residual.to(device)
    norms = (code.squared_norm + FLOOR).sqrt().tolist()
    factors = partial(_factors, device=device)
    kron = {
        name: list(zip(factors(b.u, bases.kron[name].u), factors(b.v[b.group], bases.kron[name].v), strict=True))
        for name, b in terms.kron.items()
    }
    rows = RowQueries.of(terms)
    entries = {
        table: [
            list(zip(use.index.tolist(), factors(use.grad, bases.kron[table].v), strict=True))
            for use in terms.rows.get(table, ())
        ]
        for table in terms.spread
    }
    spread = {table: _all_slopes(block, bases.kron[table], device) for table, block in terms.spread.items()}

    def of(i: int) -> QueryCode:
        these = slice(i * terms.per_triple, (i + 1) * terms.per_triple)
        return QueryCode(
            phi=phi[i],
            residual=residual[i],
            flat_dims=bases.flat.shape[1],
            kron={name: factors[these] for name, factors in kron.items()},
            number=i,
            rows=rows,
            spread={table: slopes[these] for table, slopes in spread.items()},
            entries={table: [pair for use in uses for pair in use[these]] for table, uses in entries.items()},
            norm=norms[i],
        )

    return [of(i) for i in range(len(terms))]


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
    vectors = block.x[block.u.group]
    x = zip(_factors(vectors, basis.v, device), vectors.to(device), strict=True)
    return [
        _slopes(u, tail, basis.u, *each, device)
        for u, tail, each in zip(block.u.entries(every), block.u.tail.tolist(), x, strict=True)
    ]


def _slopes(u: Tensor, tail: int, basis: Tensor, x: QueryFactor, vector: Tensor, device: torch.device) -> QuerySlopes:
    others = u.clone()
    others[tail] = 0
    inside = others @ basis
    length = float(others.norm())
    outside = float((others - basis @ inside).norm()) + FLOAT32 * length
    total = float(inside.norm()) + length
    at_tail = float(u[tail])
    u, others, inside = (tensor.to(device) for tensor in (u, others, inside))
    return QuerySlopes(tail, at_tail, u, others, inside, outside, total, x, vector)
