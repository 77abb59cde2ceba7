"""Gradients as short sums of rank-1 terms, and their exact inner products.

A *loss term* is the loss of one training instance, (h, r) → t. A triple has one for each direction (its own, and the
inverse one when the model was trained with inverse triples), and one more for each negative of these; its gradient is
their sum. The gradient of a loss term is kept in blocks, none of which is ever multiplied out; ``eq.`` numbers
refer to ``docs/how-it-works.md``:

=============  ==========================================  ============================================
block          gradient                                    inner product of two loss terms
=============  ==========================================  ============================================
`Kron`         u ⊗ v, of a linear layer and its bias       ⟨u, u'⟩ · ⟨v, v'⟩  (v ends in 1: eq. (3))
`Rows`         e_i ⊗ g, of row i of an embedding table     1[i = i'] · ⟨g, g'⟩  (eq. (4))
flat           g, of any small tensor                      ⟨g, g'⟩  (eq. (5))
`Spread`       u ⊗ x, of a table whose rows were all       ⟨u, u'⟩ · ⟨x, x'⟩, and with a row e_i ⊗ g of the
               scored, u being the slopes of the scores    same table u_i · ⟨x, g⟩  (eq. (7))
=============  ==========================================  ============================================

TracIn (Pruthi et al., 2020, https://arxiv.org/abs/2002.08484) is the sum of these over the blocks, eq. (1).

Shapes are written in these letters; a prime marks the other side of an inner product:

=========  =====================================================================================
n, D, m    triples; loss terms of each (`Terms.per_triple`); m = n · D loss terms
groups     distinct (h, r) of a batch: their loss terms share a forward pass; `group` (m,) is which
p, q       numbers in a layer's output and in its input
d, E       numbers in a row of an embedding table; entities
=========  =====================================================================================
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from kgtrace_indexer.pieces import piece_floats


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
        """Return ⟨u ⊗ v, u' ⊗ v'⟩ for all pairs, (m, m'): eq. (3)."""
        products = self.v @ other.v.T  # (groups, q) @ (q, groups') -> (groups, groups')
        return (self.u @ other.u.T) * products[self.group[:, None], other.group[None, :]]

    def paired(self, first: Tensor, other: "Kron", second: Tensor) -> Tensor:
        """Return ⟨u ⊗ v, u' ⊗ v'⟩ of loss terms `first` and of another block's `second`, (m,), one by one, (m,)."""
        products = row_products(self.v, self.group[first], other.v, other.group[second])
        return row_products(self.u, first, other.u, second) * products

    def take(self, chosen: slice) -> "Kron":
        """Return some of the loss terms, each as a group of its own."""
        group = self.group[chosen]
        return Kron(self.u[chosen], self.v[group], torch.arange(len(group), device=group.device))


@dataclass(frozen=True, slots=True)
class Rows:
    """One use of an embedding table: each loss term's gradient with respect to the row it read."""

    index: Tensor
    """(m,) int64: the row read."""
    grad: Tensor
    """(m, d)."""

    def inner(self, other: "Rows") -> Tensor:
        """Return 1[i = i'] ⟨g, g'⟩ for all pairs, (m, m'): eq. (4)."""
        return (self.index[:, None] == other.index[None, :]) * (self.grad @ other.grad.T)

    def paired(self, first: Tensor, other: "Rows", second: Tensor) -> Tensor:
        """Return 1[i = i'] ⟨g, g'⟩ of loss terms (m,) one by one, (m,)."""
        return (self.index[first] == other.index[second]) * row_products(self.grad, first, other.grad, second)

    def take(self, chosen: slice) -> "Rows":
        """Return some of the loss terms."""
        return Rows(self.index[chosen], self.grad[chosen])


@dataclass(frozen=True, slots=True)
class Slopes:
    """Slopes u = ∂ℓ/∂s of all E scores of (h, r), for loss terms that share most of them: u = b + Σ_j c_j e_{i_j}.

    This is eq. (8). No b has an entry that a c may cancel: where a loss term's own tail has nearly all of a softmax,
    the sum is far smaller than that entry, and would drown in its rounding.
    """

    base: Tensor
    """(groups, E): b, which the loss terms of a group share."""
    group: Tensor
    """(m,) int64: the row of `base` that belongs to each loss term."""
    index: Tensor
    """(m, k) int64: entities i_j, the loss term's own tail first."""
    own: Tensor
    """(m, k): c_j."""

    @property
    def tail(self) -> Tensor:
        """(m,) int64: each loss term's own tail."""
        return self.index[:, 0]

    def along(self, vectors: Tensor) -> Tensor:
        """Return u · vectors, (m, d), for a vector of each entity (E, d)."""
        return (self.base @ vectors)[self.group] + torch.einsum("mk,mkd->md", self.own, vectors[self.index])

    def entries(self, index: Tensor) -> Tensor:
        """Return u_i for entities i (m',), (m, m')."""
        own = (self.own[:, :, None] * (self.index[:, :, None] == index)).sum(1)  # (m, k, m') -> (m, m')
        return self.base[self.group[:, None], index] + own

    def entry(self, index: Tensor) -> Tensor:
        """Return u_i of each loss term for an entity i (m,) of its own, (m,)."""
        return self.base[self.group, index] + (self.own * (self.index == index[:, None])).sum(1)

    def inner(self, other: "Slopes") -> Tensor:
        """Return ⟨u, u'⟩ for all pairs, (m, m')."""
        product = (self.base @ other.base.T)[self.group[:, None], other.group]  # (groups, groups') -> (m, m')
        for index, own in zip(self.index.T, self.own.T, strict=True):
            product += own[:, None] * other.entries(index).T
        for index, own in zip(other.index.T, other.own.T, strict=True):
            product += own * self.base[self.group[:, None], index]
        return product

    def paired(self, other: "Slopes") -> Tensor:
        """Return ⟨u, u'⟩ for the loss terms of two lists one by one, (m,)."""
        product = row_products(self.base, self.group, other.base, other.group)
        for index, own in zip(self.index.T, self.own.T, strict=True):
            product = product + own * other.entry(index)
        for index, own in zip(other.index.T, other.own.T, strict=True):
            product = product + own * self.base[self.group, index]
        return product

    def take(self, chosen: slice | Tensor) -> "Slopes":
        """Return some of the loss terms; groups stay as they are."""
        return Slopes(self.base, self.group[chosen], self.index[chosen], self.own[chosen])


@dataclass(frozen=True, slots=True)
class Spread:
    """Rank-1 gradients u ⊗ x of a table all of whose rows one loss term scores; x is shared within a group."""

    u: Slopes
    """Slopes of the scores."""
    x: Tensor
    """(groups, d): the scores' gradient with respect to a row."""

    def inner(self, other: "Spread") -> Tensor:
        """Return ⟨u ⊗ x, u' ⊗ x'⟩ for all pairs, (m, m')."""
        return self.u.inner(other.u) * (self.x @ other.x.T)[self.u.group[:, None], other.u.group]

    def inner_rows(self, rows: Rows) -> Tensor:
        """Return ⟨u ⊗ x, e_i ⊗ g⟩ for all pairs, (m, m')."""
        return self.u.entries(rows.index) * (self.x @ rows.grad.T)[self.u.group]

    def paired(self, first: Tensor, other: "Spread", second: Tensor) -> Tensor:
        """Return ⟨u ⊗ x, u' ⊗ x'⟩ of loss terms (m,) one by one, (m,)."""
        u, v = self.u.take(first), other.u.take(second)
        return u.paired(v) * row_products(self.x, u.group, other.x, v.group)

    def paired_rows(self, first: Tensor, rows: Rows, second: Tensor) -> Tensor:
        """Return ⟨u ⊗ x, e_i ⊗ g⟩ of loss terms (m,) one by one, (m,)."""
        u = self.u.take(first)
        return u.entry(rows.index[second]) * row_products(self.x, u.group, rows.grad, second)

    def take(self, chosen: slice) -> "Spread":
        """Return some of the loss terms, each as a group of its own."""
        slopes = self.u.take(chosen)
        every = torch.arange(len(slopes.group), device=slopes.group.device)
        return Spread(Slopes(slopes.base[slopes.group], every, slopes.index, slopes.own), self.x[slopes.group])


@dataclass(frozen=True, slots=True)
class Terms:
    """The gradients of n triples, each the sum of D loss terms.

    Loss term d of triple i stands at place i · D + d of every block.
    """

    per_triple: int
    """D: loss terms of each triple."""
    loss: Tensor
    """(m,): the loss itself."""
    kron: Mapping[str, Kron]
    """Rank-1 blocks by parameter name."""
    flat: Mapping[str, Tensor]
    """Small tensors, (m, size) each, by parameter name."""
    rows: Mapping[str, Sequence[Rows]]
    """Uses of each embedding table."""
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """Tables whose rows were all scored; `rows` holds their other uses."""

    def __len__(self) -> int:
        """Return n, the number of triples."""
        return self.loss.shape[0] // self.per_triple

    @property
    def dense(self) -> bool:
        """Whether there are blocks that all triples share."""
        return bool(self.kron or self.flat or self.spread)

    def triple(self, i: int) -> "Terms":
        """Return the gradient of triple i alone."""
        chosen = slice(i * self.per_triple, (i + 1) * self.per_triple)
        return Terms(
            self.per_triple,
            self.loss[chosen],
            {name: block.take(chosen) for name, block in self.kron.items()},
            {name: grad[chosen] for name, grad in self.flat.items()},
            {table: [use.take(chosen) for use in uses] for table, uses in self.rows.items()},
            {table: block.take(chosen) for table, block in self.spread.items()},
        )

    def weighted(self, weight: Tensor) -> "Terms":
        """Return the gradients with each loss term's multiplied by a number (m,). Not defined for `spread` blocks."""
        assert not self.spread
        column = weight[:, None]
        return replace(
            self,
            kron={name: Kron(column * block.u, block.v, block.group) for name, block in self.kron.items()},
            flat={name: column * grad for name, grad in self.flat.items()},
            rows={table: [Rows(use.index, column * use.grad) for use in uses] for table, uses in self.rows.items()},
        )

    def losses(self) -> Tensor:
        """Return the loss of each triple, (n,)."""
        return self.loss.view(len(self), self.per_triple).sum(1)

    def flat_sum(self) -> Tensor:
        """Return the flat blocks side by side, summed over each triple's loss terms: (n, total size)."""
        return self.flat_joined().view(len(self), self.per_triple, -1).sum(1)

    def flat_joined(self) -> Tensor:
        """Return the flat blocks side by side, (m, total size)."""
        return torch.cat(list(self.flat.values()), dim=1) if self.flat else self.loss.new_zeros(len(self.loss), 0)


def concatenate(batches: Sequence[Terms]) -> Terms:
    """Return the loss terms of all batches, which have the same blocks, as one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    kron, spread, rows = {}, {}, {}
    for name in first.kron:
        krons = [batch.kron[name] for batch in batches]
        group = _renumbered((block.group, block.v) for block in krons)
        kron[name] = Kron(torch.cat([block.u for block in krons]), torch.cat([block.v for block in krons]), group)
    for table in first.spread:
        spreads = [batch.spread[table] for batch in batches]
        group = _renumbered((block.u.group, block.x) for block in spreads)
        base, index, own = (torch.cat([getattr(b.u, name) for b in spreads]) for name in ("base", "index", "own"))
        spread[table] = Spread(Slopes(base, group, index, own), torch.cat([block.x for block in spreads]))
    for table in first.rows:
        uses = zip(*(batch.rows[table] for batch in batches), strict=True)
        rows[table] = [Rows(torch.cat([u.index for u in use]), torch.cat([u.grad for u in use])) for use in uses]
    flat = {name: torch.cat([batch.flat[name] for batch in batches]) for name in first.flat}
    return Terms(first.per_triple, torch.cat([batch.loss for batch in batches]), kron, flat, rows, spread)


def _renumbered(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Join the groups (m,) of several blocks, given a tensor (groups, ·) of each, so that numbers stay distinct."""
    groups, shared = zip(*blocks, strict=True)
    starts = accumulate(map(len, shared), initial=0)
    return torch.cat([group + start for group, start in zip(groups, starts, strict=False)])


def inner(a: Terms, b: Terms) -> Tensor:
    """Return the exact inner products of the gradients of all pairs of triples, (n, n'): eq. (1).

    A block that only `a` has is zero in `b`.
    """
    total = a.loss.new_zeros(len(a.loss), len(b.loss))
    for name, block in b.kron.items():
        total += a.kron[name].inner(block)
    for table, uses in a.rows.items():
        for use in uses:
            for other in b.rows.get(table, ()):
                total += use.inner(other)
    for table, spread in a.spread.items():
        total += spread.inner(b.spread[table])
        for other in b.rows.get(table, ()):
            total += spread.inner_rows(other)
        for use in a.rows.get(table, ()):
            total += b.spread[table].inner_rows(use).T
    summed = total.view(len(a), a.per_triple, len(b), b.per_triple).sum((1, 3))
    return summed + a.flat_sum() @ b.flat_sum().T if b.flat else summed


def paired(a: Terms, of_a: Tensor, b: Terms, of_b: Tensor) -> Tensor:
    """Return the exact inner products of the gradients of triples (m,) of `a` and of `b`, one by one, (m,).

    A block that only `a` has is zero in `b`.
    """
    shape = (len(of_a), a.per_triple, b.per_triple)
    first, second = (
        (of[:, None] * terms.per_triple + torch.arange(terms.per_triple, device=of.device)).view(size)
        for of, terms, size in ((of_a, a, (-1, a.per_triple, 1)), (of_b, b, (-1, 1, b.per_triple)))
    )
    first, second = first.expand(shape).flatten(), second.expand(shape).flatten()
    total = a.loss.new_zeros(len(first))
    for name, block in b.kron.items():
        total += a.kron[name].paired(first, block, second)
    for table, uses in a.rows.items():
        for use in uses:
            for other in b.rows.get(table, ()):
                total += use.paired(first, other, second)
    for table, spread in b.spread.items():
        total += a.spread[table].paired(first, spread, second)
        for use in a.rows.get(table, ()):
            total += spread.paired_rows(second, use, first)
        for other in b.rows.get(table, ()):
            total += a.spread[table].paired_rows(first, other, second)
    summed = total.view(len(of_a), -1).sum(1)
    return summed + row_products(a.flat_sum(), of_a, b.flat_sum(), of_b) if b.flat else summed


def row_products(x: Tensor, first: Tensor, y: Tensor, second: Tensor) -> Tensor:
    """Return ⟨x_i, y_j⟩ for rows i and j (m,) of x (·, q) and y (·, q), (m,)."""
    step = max(1, piece_floats(x.device) // max(1, x.shape[1]))
    pairs = zip(first.split(step), second.split(step), strict=True)
    products = [(x.index_select(0, left) * y.index_select(0, right)).sum(1) for left, right in pairs]
    return products[0] if len(products) == 1 else torch.cat(products)
