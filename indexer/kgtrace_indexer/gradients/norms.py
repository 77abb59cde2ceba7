"""Norms of gradients: squared norms of triples block by block, and the scale of their rounding errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import PAIR_FLOATS, Kron, Rows, Spread, Terms, row_products


@dataclass(frozen=True, slots=True)
class SquaredNorms:
    """‖g‖² of each triple's gradient, block by block, (n,) each."""

    flat: Tensor
    """All flat blocks together."""
    kron: Mapping[str, Tensor]
    """Each rank-1 block."""
    spread: Mapping[str, Tensor]
    """Each table whose rows were all scored, its other uses included."""
    rows: Tensor
    """All other embedding tables together."""

    @property
    def total(self) -> Tensor:
        """‖g‖² over all blocks: TracIn's self-influence, (n,)."""
        return self.flat + self.rows + sum([*self.kron.values(), *self.spread.values()], torch.zeros_like(self.flat))


def squared_norms(terms: Terms) -> SquaredNorms:
    """Return the exact squared norm of each triple's gradient, cross terms between its loss terms included."""
    rows = {table: row_shares(uses, terms.per_triple).sum(1) for table, uses in terms.rows.items()}
    spread = {table: _spread_norm(terms, table, block) for table, block in terms.spread.items()}
    zeros = terms.loss.new_zeros(len(terms))
    return SquaredNorms(  # a sum of terms that cancel, as of a loop h = t, may be rounded to a negative number
        flat=terms.flat_sum().square().sum(1),
        kron={name: _kron_norm(block, terms.per_triple).clamp_min(0) for name, block in terms.kron.items()},
        spread={table: (norm + rows.get(table, zeros)).clamp_min(0) for table, norm in spread.items()},
        rows=sum((norm for table, norm in rows.items() if table not in spread), zeros).clamp_min(0),
    )


@dataclass(frozen=True, slots=True)
class RoundingScale:
    """(Σ ‖g‖)² over each triple's loss terms and uses, dense block by dense block, (n,) each.

    Where these gradients cancel in the triple's sum, it is the scale of the rounding error of ‖Σ g‖².
    """

    flat: Tensor
    """All flat blocks together."""
    kron: Mapping[str, Tensor]
    """Each rank-1 block."""
    spread: Mapping[str, Tensor]
    """Each table whose rows were all scored, its other uses included."""


def rounding_scale(terms: Terms) -> RoundingScale:
    """Return (Σ ‖g‖)² of each triple and dense block."""

    def summed(norms: Tensor) -> Tensor:
        return norms.view(len(terms), terms.per_triple).sum(1).square()

    spread = {}
    for table, block in terms.spread.items():
        norms = block.u.paired(block.u).clamp_min(0).sqrt() * block.x.norm(dim=1)[block.u.group]
        spread[table] = summed(sum((use.grad.norm(dim=1) for use in terms.rows.get(table, ())), norms))
    return RoundingScale(
        flat=summed(terms.flat_joined().norm(dim=1)),
        kron={name: summed(b.u.norm(dim=1) * b.v.norm(dim=1)[b.group]) for name, b in terms.kron.items()},
        spread=spread,
    )


def _kron_norm(block: Kron, per_triple: int) -> Tensor:
    u = block.u.view(-1, per_triple, block.u.shape[1])  # (n, D, p)
    group = block.group.view(-1, per_triple)  # (n, D)
    step = max(1, PAIR_FLOATS // max(1, per_triple * block.v.shape[1]))
    chunks = zip(u.split(step), group.split(step), strict=True)
    return torch.cat([(_gram(chunk) * _gram(_gathered(block.v, index))).sum((1, 2)) for chunk, index in chunks])


def _gram(x: Tensor) -> Tensor:
    """Return the inner products of all pairs of k vectors (n, k, d), (n, k, k)."""
    return x @ x.transpose(1, 2)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Return rows (n, k) of x (·, d), (n, k, d); on a CPU `index_select` takes a fifth of the time of ``x[index]``."""
    return x.index_select(0, index.flatten()).view(*index.shape, -1)


def row_shares(uses: Sequence[Rows], per_triple: int) -> Tensor:
    """Return the share of each read of a table in the squared norm of its triple's gradient, (n, uses · D).

    That is ⟨g, Σ g'⟩ over all reads of the same row by the same triple. Uses come one after the other.
    """
    split = [use for every in uses for use in _by_loss_term(every, per_triple)]
    index = torch.stack([use.index for use in split], 1)  # (n, uses · D)
    step = max(1, PAIR_FLOATS // max(1, index.shape[1] * split[0].grad.shape[1]))
    grads = zip(*(use.grad.split(step) for use in split), strict=True)
    gram = torch.cat([_gram(torch.stack(chunk, 1)) for chunk in grads])
    return (gram * (index[:, :, None] == index[:, None, :])).sum(2)


def _spread_norm(terms: Terms, table: str, block: Spread) -> Tensor:
    """Return the share of a `Spread` in its table's squared norm, products with the table's other uses included."""
    total = terms.loss.new_zeros(len(terms))
    split = [block.u.take(slice(d, None, terms.per_triple)) for d in range(terms.per_triple)]
    reads = [use for every in terms.rows.get(table, ()) for use in _by_loss_term(every, terms.per_triple)]
    for i, first in enumerate(split):
        for second in split[i:]:
            product = first.paired(second) * row_products(block.x, first.group, block.x, second.group)
            total = total + (product if first is second else 2 * product)
        for use in reads:
            total = total + 2 * first.entry(use.index) * (block.x[first.group] * use.grad).sum(1)
    return total


def _by_loss_term(use: Rows, per_triple: int) -> list[Rows]:
    """Return the uses by each triple's first loss term, by its second, and so on: n each."""
    return [use.take(slice(d, None, per_triple)) for d in range(per_triple)]
