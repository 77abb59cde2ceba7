"""Norms of gradients: squared norms of triples block by block, and the scale of their rounding errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.gradients.reads import Reads
from kgtrace_indexer.gradients.terms import Kron, Rows, Spread, Terms, row_products
from kgtrace_indexer.pieces import piece_floats


def squared_norms(terms: Terms) -> Tensor:
    """Return ‖g‖² of each triple over all blocks, (n,), cross terms between its loss terms included."""
    return OwnProducts.of(terms).squared(None)[1].sum(1)


@dataclass(frozen=True, slots=True)
class OwnProducts:
    """Inner products of the gradients of each triple's own D loss terms, block by block.

    Norms follow from these under any weights of the loss terms: ‖Σ_d w_d g_d‖² = Σ_dd' w_d w_d' ⟨g_d, g_d'⟩.
    """

    flat: Tensor
    """(n, D, size): the flat blocks themselves, side by side."""
    others: Tensor
    """(n, blocks, D, D): of each rank-1 block, and of all tables that are not among `spread`."""
    spread: Sequence[tuple[Tensor, Tensor]]
    """‖g‖² of each table whose rows were all scored, its other uses included, (n,), and the sum of norms, (n, D)."""

    @classmethod
    def of(cls, terms: Terms, reads: Sequence[Reads] | None = None) -> "OwnProducts":
        """Compute the products. `reads` are those of all tables but the ones whose rows were all scored."""
        if reads is None:
            reads = Reads.of(terms, terms.rows.keys() - terms.spread.keys())
        shape = (len(terms), terms.per_triple, terms.per_triple)
        rows = [piece.products(terms.per_triple) for piece in reads] or [terms.loss.new_zeros(shape)]
        krons = [_kron_products(block, terms.per_triple) for block in terms.kron.values()]
        return cls(
            terms.flat_joined().view(*shape[:2], -1),
            torch.stack([*krons, sum(rows[1:], rows[0])], 1),
            [_spread_norms(terms, table, block) for table, block in terms.spread.items()],
        )

    def squared(self, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sum of the flat blocks over the loss terms, (n, size), and ‖g‖² of each block, (n, 1 + blocks).

        The blocks are all flat ones together, rank-1 blocks, tables whose rows were all scored, and other tables. With
        w weightings (n, w, D) of the loss terms the results are (n, w, size) and (n, 1 + blocks, w).
        """
        if weights is None:
            flat, others = self.flat.sum(1), self.others.sum((2, 3))
        else:
            flat = weights @ self.flat  # (n, w, D) @ (n, D, size)
            every = self.others.flatten(1, 2) @ weights.mT  # (n, blocks · D, D) @ (n, D, w)
            others = (every.unflatten(1, self.others.shape[1:3]) * weights.mT[:, None]).sum(2)
        others = others.clamp_min_(0)  # a sum of terms that cancel, as of a loop h = t, may be rounded to less
        spread = [squared[:, None] for squared, _ in self.spread]  # of losses without weights
        return flat, torch.cat([flat.square().sum(-1)[:, None], others[:, :-1], *spread, others[:, -1:]], 1)

    def norms(self) -> Tensor:
        """Return ‖g_d‖ of each loss term, (n, blocks, D): of flat blocks, rank-1 blocks, and tables all scored.

        Where gradients cancel in a triple's sum, (Σ_d ‖g_d‖)² is the scale of the rounding error of ‖Σ_d g_d‖².
        """
        kron = self.others[:, :-1].diagonal(dim1=2, dim2=3).sqrt()
        return torch.cat([self.flat.norm(dim=2)[:, None], kron, *(norms[:, None] for _, norms in self.spread)], 1)


def _kron_products(block: Kron, per_triple: int) -> Tensor:
    """Return ⟨u ⊗ v, u' ⊗ v'⟩ for all pairs of a triple's loss terms, (n, D, D)."""
    u = block.u.view(-1, per_triple, block.u.shape[1])  # (n, D, p)
    group = block.group.view(-1, per_triple)  # (n, D)
    step = max(1, piece_floats(u.device) // max(1, per_triple * block.v.shape[1]))
    chunks = zip(u.split(step), group.split(step), strict=True)
    products = [_gram(chunk) * _gram(_gathered(block.v, index)) for chunk, index in chunks]
    return products[0] if len(products) == 1 else torch.cat(products)


def _gram(x: Tensor) -> Tensor:
    """Return the inner products of all pairs of k vectors (n, k, d), (n, k, k)."""
    return x @ x.transpose(1, 2)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Return rows (n, k) of x (·, d), (n, k, d); on a CPU `index_select` takes a fifth of the time of ``x[index]``."""
    return x.index_select(0, index.flatten()).view(*index.shape, -1)


def _spread_norms(terms: Terms, table: str, block: Spread) -> tuple[Tensor, Tensor]:
    """Return the squared norm of a table whose rows were all scored, (n,), and the sum of its terms' norms, (n, D)."""
    uses = terms.rows.get(table, ())
    norms = block.u.paired(block.u).clamp_min(0).sqrt() * block.x.norm(dim=1)[block.u.group]
    summed = sum((use.grad.norm(dim=1) for use in uses), norms).view(len(terms), terms.per_triple)
    total = terms.loss.new_zeros(len(terms))
    for own in Reads.of(terms, [table] if uses else []):
        total = total + own.products(terms.per_triple).sum((1, 2))
    split = [block.u.take(slice(d, None, terms.per_triple)) for d in range(terms.per_triple)]
    reads = [use for every in terms.rows.get(table, ()) for use in _by_loss_term(every, terms.per_triple)]
    for i, first in enumerate(split):
        for second in split[i:]:
            product = first.paired(second) * row_products(block.x, first.group, block.x, second.group)
            total = total + (product if first is second else 2 * product)
        for use in reads:
            total = total + 2 * first.entry(use.index) * (block.x[first.group] * use.grad).sum(1)
    return total.clamp_min(0), summed


def _by_loss_term(use: Rows, per_triple: int) -> list[Rows]:
    """Return the uses by each triple's first loss term, by its second, and so on: n each."""
    return [use.take(slice(d, None, per_triple)) for d in range(per_triple)]
