"""The codes of test triples; unlike those of training triples, in full precision.

Letters are those of `kgtrace_indexer.gradients.terms`: b test triples of D' loss terms each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Spread, Terms
from kgtrace_indexer.index.bases import FLOAT32, FLOOR, Bases, KronBasis, index_code, rest_norm
from kgtrace_indexer.index.row_queries import RowQueries


@dataclass(frozen=True, slots=True)
class QueryFactors:
    """One vector of each loss term in a basis."""

    coordinates: Tensor
    """(b, D', c)."""
    length: Tensor
    """(b, D'): norms of the coordinates."""
    norm: Tensor
    """(b, D')."""
    rest: Tensor
    """(b, D'): norms of the parts outside the basis, with slack for rounding."""

    def take(self, query: Tensor) -> "QueryFactors":
        """Return the vectors of test triples (m,); of a single test triple, without a copy, one for all m."""
        if len(self.norm) == 1:
            return self
        return QueryFactors(self.coordinates[query], self.length[query], self.norm[query], self.rest[query])

    def one(self, i: int) -> "QueryFactors":
        """Return those of a single test triple."""
        parts = (self.coordinates, self.length, self.norm, self.rest)
        return QueryFactors(*(part[i : i + 1] for part in parts))


@dataclass(frozen=True, slots=True)
class QuerySlopes:
    """Each loss term's slopes u' over all entities, and their x'."""

    tail: Tensor
    """(b, D') int64: t', the loss term's own tail."""
    at_tail: Tensor
    """(b, D'): u' at t'."""
    all: Tensor
    """(b, D', E): u'."""
    others: Tensor
    """(b, D', E): u' without t'."""
    inside: Tensor
    """(b, D', c): coordinates of `others`."""
    outside: Tensor
    """(b, D'): norms of the part of `others` outside these coordinates, with slack for rounding."""
    length: Tensor
    """(b, D'): norms of `others` and `inside` together."""
    x: QueryFactors
    vector: Tensor
    """(b, D', d): x itself."""

    def one(self, i: int) -> "QuerySlopes":
        """Return those of a single test triple."""
        only = slice(i, i + 1)
        return QuerySlopes(
            tail=self.tail[only],
            at_tail=self.at_tail[only],
            all=self.all[only],
            others=self.others[only],
            inside=self.inside[only],
            outside=self.outside[only],
            length=self.length[only],
            x=self.x.one(i),
            vector=self.vector[only],
        )


@dataclass(frozen=True, slots=True)
class QueryCodes:
    """The codes of b test triples."""

    phi: Tensor
    """(b, k)."""
    residual: Tensor
    """(b, blocks)."""
    on_cpu: np.ndarray
    """(b, k + blocks) float32: both, side by side."""
    flat_dims: int
    """How many leading coordinates of φ belong to the flat blocks."""
    kron: Mapping[str, tuple[QueryFactors, QueryFactors]]
    """u and v, by block."""
    rows: Mapping[str, RowQueries]
    """Gradients of embedding rows, by table."""
    spread: Mapping[str, QuerySlopes]
    """By table whose rows were all scored."""
    entries: Mapping[str, tuple[Tensor, QueryFactors]]
    """Of such a table the row (b, uses · D') that each use reads, and its gradient."""
    norm: Tensor
    """(b,): ‖g'‖."""

    def __len__(self) -> int:
        """Return b."""
        return len(self.phi)

    def one(self, i: int) -> "QueryCodes":
        """Return those of a single test triple, without a copy of what is large."""
        return QueryCodes(
            phi=self.phi[i : i + 1],
            residual=self.residual[i : i + 1],
            on_cpu=self.on_cpu[i : i + 1],
            flat_dims=self.flat_dims,
            kron={name: (u.one(i), v.one(i)) for name, (u, v) in self.kron.items()},
            rows={table: rows.of_triple(i) for table, rows in self.rows.items()},
            spread={table: slopes.one(i) for table, slopes in self.spread.items()},
            entries={table: (index[i : i + 1], grad.one(i)) for table, (index, grad) in self.entries.items()},
            norm=self.norm[i : i + 1],
        )

    def reads(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the rows of each table that are read, or scored as a loss term's own tail, with their test triples.

        Test triples and rows are (·,) int64 each; a pair may come more than once.
        """
        pairs = {table: (gradients.query, gradients.row) for table, gradients in self.rows.items()}
        for table in pairs.keys() & self.spread.keys():
            tails = self.spread[table].tail.cpu().numpy()
            tail_pairs = np.arange(len(tails)).repeat(tails.shape[1]), tails.ravel()
            query, row = (np.concatenate(both) for both in zip(pairs[table], tail_pairs, strict=True))
            pairs[table] = query, row
        return pairs


def encode_queries(terms: Terms, bases: Bases, device: torch.device) -> QueryCodes:
    """Encode the gradients of test triples, for stored codes that are on a device, wherever the model is."""
    code = index_code([terms], bases)
    shape = (len(terms), terms.per_triple)
    kron = {}
    for name, block in terms.kron.items():
        basis = bases.kron[name]
        kron[name] = (
            _factors(block.u, basis.u, shape, device), _factors(block.v[block.group], basis.v, shape, device)
        )  # fmt: skip
    entries = {}
    for table in terms.spread:
        if uses := terms.rows.get(table, ()):
            index = torch.cat([use.index.view(shape) for use in uses], 1)
            grad = torch.cat([use.grad.view(*shape, -1) for use in uses], 1)
            factors = _factors(grad.flatten(0, 1), bases.kron[table].v, (len(terms), index.shape[1]), device)
            entries[table] = index.to(device), factors
    rows, on_cpu = RowQueries.with_others(terms, {"code": torch.cat([code.phi, code.residual], 1)})
    return QueryCodes(
        phi=code.phi.to(device),
        residual=code.residual.to(device),
        on_cpu=on_cpu["code"],
        flat_dims=bases.flat.shape[1],
        kron=kron,
        rows=rows,
        spread={table: _slopes(block, bases.kron[table], shape, device) for table, block in terms.spread.items()},
        entries=entries,
        norm=(code.squared_norm + FLOOR).sqrt().to(device),
    )


def _factors(vectors: Tensor, basis: Tensor, shape: tuple[int, int], device: torch.device) -> QueryFactors:
    """Encode vectors (b · D', d) in a basis (d, c)."""
    coordinates = vectors @ basis
    squared_norm = vectors.square().sum(1)
    sizes = coordinates.norm(dim=1), (squared_norm + FLOOR).sqrt(), rest_norm(squared_norm, coordinates)
    return QueryFactors(coordinates.view(*shape, -1).to(device), *(size.view(shape).to(device) for size in sizes))


def _slopes(block: Spread, basis: KronBasis, shape: tuple[int, int], device: torch.device) -> QuerySlopes:
    every = torch.arange(block.u.base.shape[1], device=block.x.device)
    vectors = block.x[block.u.group]
    u, tail = block.u.entries(every), block.u.tail[:, None]
    others = u.scatter(1, tail, 0.0)
    inside = others @ basis.u
    length = others.norm(dim=1)
    outside = (others - inside @ basis.u.T).norm(dim=1) + FLOAT32 * length
    numbers = tail, u.gather(1, tail), outside, inside.norm(dim=1) + length
    tail, at_tail, outside, total = (number.view(shape).to(device) for number in numbers)
    u, others, inside, vector = (tensor.view(*shape, -1).to(device) for tensor in (u, others, inside, vectors))
    x = _factors(vectors, basis.v, shape, device)
    return QuerySlopes(tail, at_tail, u, others, inside, outside, total, x, vector)
