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
`Spread`       u ⊗ x, of a table whose rows were all       ⟨u, u'⟩ · ⟨x, x'⟩, and with a row e_i ⊗ g of the
               scored, u being the slopes of the scores    same table u_i · ⟨x, g⟩
=============  ==========================================  ============================================

TracIn (Pruthi et al., 2020, https://arxiv.org/abs/2002.08484) is the sum of these over the blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_PAIR_FLOATS = 1 << 20
"""How many floats a temporary of gathered rows may hold: 4 MiB stay in the caches."""


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
class Slopes:
    """Slopes u of all E scores of (h, r), for loss terms that share most of them: u = b + Σ_j c_j e_{i_j}.

    No b has an entry that a c may cancel: where a loss term's own tail has nearly all of a softmax, what is left of u
    is far smaller than that entry, and would drown in its rounding.
    """

    base: Tensor
    """(groups, E): b, which the loss terms of a group share."""
    group: Tensor
    """(m,) int64: the row of `base` that belongs to each loss term."""
    index: Tensor
    """(m, k) int64: entities i_j."""
    own: Tensor
    """(m, k): c_j."""

    def along(self, directions: Tensor) -> Tensor:
        """Return u · directions, (m, d), for directions (E, d)."""
        return (self.base @ directions)[self.group] + torch.einsum("mk,mkd->md", self.own, directions[self.index])

    def entries(self, index: Tensor) -> Tensor:
        """Return u_i for entities i (m',), (m, m')."""
        return self.base[self.group[:, None], index] + self._own(index)

    def inner(self, other: "Slopes") -> Tensor:
        """Return ⟨u, u'⟩ for all pairs, (m, m')."""
        found = (self.base @ other.base.T)[self.group[:, None], other.group]  # (groups, E) @ (E, groups') -> (m, m')
        for index, own in zip(self.index.T, self.own.T, strict=True):
            found += own[:, None] * other.entries(index).T
        for index, own in zip(other.index.T, other.own.T, strict=True):
            found += own * self.base[self.group[:, None], index]
        return found

    def paired(self, other: "Slopes") -> Tensor:
        """Return ⟨u, u'⟩ for the loss terms of two lists one by one, (m,); both lists must have the same groups."""
        found = _row_products(self.base, self.group, other.group)
        for index, own in zip(self.index.T, self.own.T, strict=True):
            found = found + own * other.entry(index)
        for index, own in zip(other.index.T, other.own.T, strict=True):
            found = found + own * self.base[self.group, index]
        return found

    def entry(self, index: Tensor) -> Tensor:
        """Return u_i of each loss term for an entity i (m,) of its own, (m,)."""
        return self.base[self.group, index] + (self.own * (self.index == index[:, None])).sum(1)

    def part(self, which: slice) -> "Slopes":
        """Return some of the loss terms; groups stay as they are."""
        return Slopes(self.base, self.group[which], self.index[which], self.own[which])

    def _own(self, index: Tensor) -> Tensor:
        return (self.own[:, :, None] * (self.index[:, :, None] == index)).sum(1)  # (m, k, m') -> (m, m')


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

    def part(self, which: slice) -> "Spread":
        """Return some of the loss terms, each as a group of its own."""
        some = self.u.part(which)
        every = torch.arange(len(some.group), device=some.group.device)
        return Spread(Slopes(some.base[some.group], every, some.index, some.own), self.x[some.group])


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
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """Tables whose rows were all scored; `rows` holds their other uses."""

    def __len__(self) -> int:
        """Return n, the number of triples."""
        return self.loss.shape[0] // self.directions

    @property
    def dense(self) -> bool:
        """Whether there are blocks that all triples share."""
        return bool(self.kron or self.flat or self.spread)

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
            {table: block.part(part) for table, block in self.spread.items()},
        )

    def weighted(self, weight: Tensor) -> "Terms":
        """Return the gradients with each loss term's multiplied by a number (m,); tables all scored are not for it."""
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
        return self.loss.view(len(self), self.directions).sum(1)

    def flat_sum(self) -> Tensor:
        """Return the flat blocks side by side, summed over each triple's loss terms: (n, total size)."""
        return self.flat_joined().view(len(self), self.directions, -1).sum(1)

    def flat_joined(self) -> Tensor:
        """Return the flat blocks side by side, (m, total size)."""
        return torch.cat(list(self.flat.values()), dim=1) if self.flat else self.loss.new_zeros(len(self.loss), 0)


def inner(a: Terms, b: Terms) -> Tensor:
    """Return the exact inner products of the gradients of all pairs of triples, (n, n'); what b lacks is zero."""
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
    summed = total.view(len(a), a.directions, len(b), b.directions).sum((1, 3))
    return summed + a.flat_sum() @ b.flat_sum().T if b.flat else summed


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
    rows = {table: row_shares(uses, terms.directions).sum(1) for table, uses in terms.rows.items()}
    spread = {table: _spread_norm(terms, table, block) for table, block in terms.spread.items()}
    nothing = terms.loss.new_zeros(len(terms))
    return SquaredNorms(  # parts that cancel, as of a loop h = t, may leave less than nothing
        flat=terms.flat_sum().square().sum(1),
        kron={name: _kron_norm(block, terms.directions).clamp_min(0) for name, block in terms.kron.items()},
        spread={table: (norm + rows.get(table, nothing)).clamp_min(0) for table, norm in spread.items()},
        rows=sum((norm for table, norm in rows.items() if table not in spread), nothing).clamp_min(0),
    )


def part_norms(terms: Terms) -> SquaredNorms:
    """Return (Σ ‖g‖)² over a triple's loss terms and uses: what rounding is relative to where these cancel."""

    def summed(norms: Tensor) -> Tensor:
        return norms.view(len(terms), terms.directions).sum(1).square()

    def of_rows(table: str) -> Tensor:
        return torch.stack([use.grad.norm(dim=1) for use in terms.rows[table]]).sum(0)

    spread = {
        table: block.u.paired(block.u).clamp_min(0).sqrt() * block.x.norm(dim=1)[block.u.group]
        for table, block in terms.spread.items()
    }
    return SquaredNorms(
        flat=summed(terms.flat_joined().norm(dim=1)),
        kron={name: summed(b.u.norm(dim=1) * b.v.norm(dim=1)[b.group]) for name, b in terms.kron.items()},
        spread={t: summed(norm + of_rows(t) if terms.rows.get(t) else norm) for t, norm in spread.items()},
        rows=terms.loss.new_zeros(len(terms)),
    )


def _kron_norm(block: Kron, directions: int) -> Tensor:
    u = block.u.view(-1, directions, block.u.shape[1])  # (n, D, p)
    group = block.group.view(-1, directions)  # (n, D)
    step = max(1, _PAIR_FLOATS // max(1, directions * block.v.shape[1]))
    parts = zip(u.split(step), group.split(step), strict=True)
    return torch.cat([(_gram(some) * _gram(_gathered(block.v, rows))).sum((1, 2)) for some, rows in parts])


def _gram(x: Tensor) -> Tensor:
    """Return the inner products of all pairs of k vectors (n, k, d), (n, k, k)."""
    return x @ x.transpose(1, 2)


def _gathered(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows (n, k) of x (·, d), (n, k, d); on a CPU `index_select` takes a fifth of the time of ``x[rows]``."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, -1)


def _row_products(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ⟨x_i, x_j⟩ for rows i and j (m,) each of (groups, q), (m,)."""
    step = max(1, _PAIR_FLOATS // max(1, x.shape[1]))
    pairs = zip(first.split(step), second.split(step), strict=True)
    return torch.cat([(x.index_select(0, left) * x.index_select(0, right)).sum(1) for left, right in pairs])


def row_shares(uses: Sequence[Rows], directions: int) -> Tensor:
    """Return what each read of a table adds to the squared norm of its triple's gradient, (n, uses · directions).

    That is ⟨g, Σ g'⟩ over all reads of the same row by the same triple. Uses come one after the other.
    """
    split = [use for every in uses for use in _by_direction(every, directions)]
    index = torch.stack([use.index for use in split], 1)  # (n, uses · D)
    step = max(1, _PAIR_FLOATS // max(1, index.shape[1] * split[0].grad.shape[1]))
    grads = zip(*(use.grad.split(step) for use in split), strict=True)
    gram = torch.cat([_gram(torch.stack(some, 1)) for some in grads])
    return (gram * (index[:, :, None] == index[:, None, :])).sum(2)


def _spread_norm(terms: Terms, table: str, block: Spread) -> Tensor:
    """Return what a `Spread` adds to the squared norm of its table, products with the table's other uses included."""
    total = terms.loss.new_zeros(len(terms))
    split = [block.u.part(slice(d, None, terms.directions)) for d in range(terms.directions)]
    rows = [use for every in terms.rows.get(table, ()) for use in _by_direction(every, terms.directions)]
    for i, first in enumerate(split):
        for second in split[i:]:
            product = first.paired(second) * _row_products(block.x, first.group, second.group)
            total = total + (product if first is second else 2 * product)
        for use in rows:
            total = total + 2 * first.entry(use.index) * (block.x[first.group] * use.grad).sum(1)
    return total


def _by_direction(use: Rows, directions: int) -> list[Rows]:
    """Return the uses by each triple's first loss term, by its second, and so on: n each."""
    return [Rows(use.index[d::directions], use.grad[d::directions]) for d in range(directions)]
