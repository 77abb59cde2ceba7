"""Gradients as short sums of rank-1 terms, and their exact inner products.

A *loss term* is the loss of one training instance, (h, r) → t. A triple has one or two of them (its own direction, and
the inverse one when the model was trained with inverse triples); its gradient is their sum. The gradient of a loss
term is kept in blocks, none of which is ever multiplied out:

=============  ==========================================  ============================================
block          gradient                                    inner product of two loss terms
=============  ==========================================  ============================================
`Kron`         u ⊗ v, of a linear layer and its bias       ⟨u, u'⟩ · ⟨v, v'⟩  (v ends in 1 for the bias)
flat           g, of any small tensor                      ⟨g, g'⟩
`Rows`         e_i ⊗ g, of row i of an embedding table     1[i = i'] · ⟨g, g'⟩
=============  ==========================================  ============================================

TracIn (Pruthi et al., 2020, https://arxiv.org/abs/2002.08484) is the sum of these over the blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PAIR_FLOATS = 1 << 24
"""How many floats a temporary of gathered rows may hold: 64 MiB."""


@dataclass(frozen=True, slots=True)
class Kron:
    """Rank-1 gradients u ⊗ v of one matrix parameter, with v shared by the loss terms of a group."""

    u: Tensor
    """(m, p): gradient of the loss with respect to the layer's output."""
    v: Tensor
    """(groups, q): the layer's input, one row for each distinct input; a last column of ones carries the bias."""
    group: Tensor
    """(m,) int64: the row of `v` that belongs to each loss term."""

    def inner(self, other: "Kron") -> Tensor:
        """Return ⟨u ⊗ v, u' ⊗ v'⟩ for all pairs, (m, m')."""
        products = self.v @ other.v.T  # (groups, q) @ (q, groups') -> (groups, groups')
        return (self.u @ other.u.T) * products[self.group[:, None], other.group[None, :]]


@dataclass(frozen=True, slots=True)
class Rows:
    """One use of an embedding table: each loss term's gradient with respect to the row it read."""

    index: Tensor
    """(m,) int64: the row read."""
    grad: Tensor
    """(m, d)."""

    def inner(self, other: "Rows") -> Tensor:
        """Return 1[i = i'] ⟨g, g'⟩ for all pairs, (m, m')."""
        return (self.index[:, None] == other.index[None, :]) * (self.grad @ other.grad.T)


@dataclass(frozen=True, slots=True)
class Terms:
    """The gradients of n triples, each the sum of `directions` loss terms; m = n · directions.

    Loss term d of triple i stands in row i · directions + d of every block.
    """

    directions: int
    """Loss terms for each triple."""
    loss: Tensor
    """(m,): the loss itself."""
    kron: Mapping[str, Kron]
    """Rank-1 blocks by parameter name."""
    flat: Mapping[str, Tensor]
    """Small tensors, (m, size) each, by parameter name."""
    rows: Mapping[str, Sequence[Rows]]
    """Uses of each embedding table."""

    def __len__(self) -> int:
        """Return n, the number of triples."""
        return self.loss.shape[0] // self.directions

    def triple(self, i: int) -> "Terms":
        """Return the gradient of triple i alone."""
        part = slice(i * self.directions, (i + 1) * self.directions)
        local = torch.arange(self.directions, device=self.loss.device)
        return Terms(
            self.directions,
            self.loss[part],
            {name: Kron(block.u[part], block.v[block.group[part]], local) for name, block in self.kron.items()},
            {name: grad[part] for name, grad in self.flat.items()},
            {table: [Rows(use.index[part], use.grad[part]) for use in uses] for table, uses in self.rows.items()},
        )

    def flat_sum(self) -> Tensor:
        """Return the flat blocks side by side, summed over each triple's loss terms: (n, total size)."""
        joined = torch.cat(list(self.flat.values()), dim=1) if self.flat else self.loss.new_zeros(len(self.loss), 0)
        return joined.view(len(self), self.directions, -1).sum(1)


def inner(a: Terms, b: Terms) -> Tensor:
    """Return the exact inner products of the gradients of all pairs of triples, (n, n')."""
    total = a.loss.new_zeros(len(a.loss), len(b.loss))
    for name, block in a.kron.items():
        total += block.inner(b.kron[name])
    for table, uses in a.rows.items():
        for use in uses:
            for other in b.rows[table]:
                total += use.inner(other)
    summed = total.view(len(a), a.directions, len(b), b.directions).sum((1, 3))
    return summed + a.flat_sum() @ b.flat_sum().T


@dataclass(frozen=True, slots=True)
class SquaredNorms:
    """‖g‖² of each triple's gradient, block by block, (n,) each."""

    flat: Tensor
    """All flat blocks together."""
    kron: Mapping[str, Tensor]
    """Each rank-1 block."""
    rows: Tensor
    """All embedding tables together."""

    @property
    def total(self) -> Tensor:
        """‖g‖² over all blocks: TracIn's self-influence, (n,)."""
        return self.flat + self.rows + sum(self.kron.values(), torch.zeros_like(self.flat))


def squared_norms(terms: Terms) -> SquaredNorms:
    """Return the exact squared norm of each triple's gradient, cross terms between its directions included."""
    return SquaredNorms(
        flat=terms.flat_sum().square().sum(1),
        kron={name: _kron_norm(block, terms.directions).clamp_min(0) for name, block in terms.kron.items()},
        rows=_rows_norm(terms).clamp_min(0),  # parts that cancel, as of a loop h = t, may leave less than nothing
    )


def _kron_norm(block: Kron, directions: int) -> Tensor:
    u = block.u.view(-1, directions, block.u.shape[1])  # (n, D, p)
    group = block.group.view(-1, directions)  # (n, D)
    own = block.v.square().sum(1)  # (groups,)
    total = (u.square().sum(2) * own[group]).sum(1)
    step = max(1, _PAIR_FLOATS // block.v.shape[1])
    for first in range(directions):
        for second in range(first + 1, directions):
            cross = torch.cat(
                [
                    (block.v[left] * block.v[right]).sum(1)
                    for left, right in zip(group[:, first].split(step), group[:, second].split(step), strict=True)
                ]
            )
            total = total + 2 * (u[:, first] * u[:, second]).sum(1) * cross
    return total


def _rows_norm(terms: Terms) -> Tensor:
    total = terms.loss.new_zeros(len(terms))
    for uses in terms.rows.values():
        split = [
            (
                use.index.view(-1, terms.directions)[:, d],
                use.grad.view(len(terms), terms.directions, -1)[:, d],
            )
            for use in uses
            for d in range(terms.directions)
        ]
        for index, grad in split:
            for other_index, other_grad in split:
                total = total + (index == other_index) * (grad * other_grad).sum(1)
    return total
