"""Random projections of gradients that are sums of rank-1 terms, without forming u ⊗ v.

Coordinate j of the projection of a gradient Σ u ⊗ v is

    g_j = Σ (U_j·u)(V_j·v) / √dim

with independent random rows U_j and V_j of mean 0 and variance 1, so that E[g · g'] = ⟨g, g'⟩ (Johnson and
Lindenstrauss, 1984; for products of factors: Sun, Guo, Tropp and Udell, 2018, "Tensor random projection"). A flat block
has one factor, an embedding row e_i ⊗ g the factors U[:, i] and V·g. A table whose rows were all scored has the same U
and V, for its block is a part of the same parameter's gradient.

The estimate is unbiased and bounds nothing: its standard deviation is of the order of ‖g‖‖g'‖ / √dim, however small
⟨g, g'⟩ is.
"""

import hashlib
from math import sqrt
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.names import Kind
from kgtrace_store.errors import BadRequest

_COLUMNS = 256
"""Columns of a factor drawn from one generator, so that a table's size need not be known before its rows are met."""


class RandomProjection:
    """A seeded random projection of gradient terms to `dim` coordinates.

    Its matrices follow from the seed, the block's name and the factor alone, so the same gradient has the same
    projection in any batch, process and on any device, up to rounding. They are drawn when first needed and kept:
    4 · dim bytes for each input, output and table row of the blocks met.

    The matrices of a smaller projection with the same seed are the leading rows of a larger one's: see `leading`.
    """

    def __init__(self, kind: Kind, dim: int, seed: int) -> None:
        """Raise `BadRequest` for another kind, `dim` below 1 or a negative seed."""
        if kind not in get_args(Kind):
            raise BadRequest(f"projection {kind!r} is not one of {', '.join(get_args(Kind))}")
        if dim < 1:
            raise BadRequest(f"projection dimension is {dim}, must be at least 1")
        if seed < 0:
            raise BadRequest(f"seed is {seed}, must be at least 0")
        self.kind: Kind = kind
        self.dim = dim
        self.seed = seed
        self._drawn: dict[tuple[str, str], Tensor] = {}

    def project(self, terms: Terms) -> Tensor:
        """Return the projections of n gradients, (n, dim) float32."""
        total = terms.loss.new_zeros(len(terms.loss), self.dim)  # (m, dim)
        for name, block in terms.kron.items():
            u = block.u @ self.matrix(name, "u", block.u.shape[1], block.u.device)  # (m, p) @ (p, dim)
            v = block.v @ self.matrix(name, "v", block.v.shape[1], block.v.device)  # (groups, q) @ (q, dim)
            total += u * v[block.group]
        for name, grad in terms.flat.items():
            total += grad @ self.matrix(name, "g", grad.shape[1], grad.device)
        for table, uses in terms.rows.items():
            for use in uses:
                if len(use.index):
                    rows = self.matrix(table, "u", int(use.index.max()) + 1, use.grad.device)
                    total += rows[use.index] * (use.grad @ self.matrix(table, "v", use.grad.shape[1], use.grad.device))
        for table, spread in terms.spread.items():
            rows = self.matrix(
                table, "u", spread.u.base.shape[1], spread.x.device
            )  # the matrix of the table's single rows, too
            v = spread.x @ self.matrix(table, "v", spread.x.shape[1], spread.x.device)
            total += spread.u.along(rows) * v[spread.u.group]
        return total.view(len(terms), terms.per_triple, self.dim).sum(1) / sqrt(self.dim)

    def matrix(self, block: str, factor: str, width: int, device: torch.device) -> Tensor:
        """Return the transposed matrix of one factor of a block, (width, dim): column j holds U_j or V_j."""
        drawn = self._drawn.get((block, factor))
        if drawn is None or len(drawn) < width or drawn.device != device:
            have = 0 if drawn is None else len(drawn)
            want = max(width, 2 * have) if have < width else have  # doubling: each column is copied a few times at most
            more = [self._draw(block, factor, chunk) for chunk in range(have // _COLUMNS, -(-want // _COLUMNS))]
            chunks = [torch.from_numpy(chunk).to(device) for chunk in more]
            drawn = self._drawn[block, factor] = torch.cat(chunks if drawn is None else [drawn.to(device), *chunks])
        return drawn[:width]

    def _draw(self, block: str, factor: str, chunk: int) -> np.ndarray:
        """Return columns chunk · _COLUMNS and following, transposed: (_COLUMNS, dim) float32."""
        name = hashlib.sha256(f"{block}\t{factor}\t{chunk}".encode()).digest()
        rng = np.random.default_rng([self.seed, *np.frombuffer(name, "<u4").tolist()])
        # Row by row, so that a smaller projection draws the same leading rows.
        if self.kind == "gaussian":
            drawn = rng.standard_normal((self.dim, _COLUMNS), np.float32)
        else:
            dice = rng.integers(0, 6, (self.dim, _COLUMNS), np.uint8)
            drawn = (sqrt(3) * ((dice == 0).astype(np.float32) - (dice == 1))).astype(np.float32)
        return np.ascontiguousarray(drawn.T)


def leading(projected: Tensor, dim: int) -> Tensor:
    """Return the `dim`-dimensional projection (n, dim) that a larger one (n, D) of the same seed contains.

    Raises `BadRequest` for a dimension larger than D.
    """
    if not 1 <= dim <= projected.shape[1]:
        raise BadRequest(f"a projection of {projected.shape[1]} coordinates contains none of {dim}")
    return projected[:, :dim] * sqrt(projected.shape[1] / dim)
