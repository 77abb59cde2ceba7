"""The gradients of any number of test triples, summed into one.

    Σ_z' ⟨∇ℓ(z), P ∇ℓ(z')⟩ = ⟨∇ℓ(z), P Σ_z' ∇ℓ(z')⟩

The sum has the shapes of the model's parameters, but for embedding tables only the rows that any test triple reads,
however many test triples there are; and the influence of a training triple on all of them together costs about as much
as that on one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Rows, Spread, Terms

_PENDING = 4096
"""Rows that are collected before they are summed, at least."""


@dataclass(frozen=True, slots=True)
class TableRows:
    """A gradient of some rows of an embedding table."""

    index: Tensor
    """(u,) int64, ascending: the rows, at least one."""
    grad: Tensor
    """(u + 1, d) float32: theirs, and at the end zeros, which stand for all other rows."""

    def of(self, rows: Tensor) -> Tensor:
        """Return the gradients of rows (m,), (m, d)."""
        last = len(self.index)
        place = torch.searchsorted(self.index, rows.contiguous()).clamp_max(last - 1)
        return self.grad[torch.where(self.index[place] == rows, place, last)]

    def whole(self) -> Tensor:
        """Return the gradient of all rows up to the last one, (rows, d)."""
        table = self.grad.new_zeros(int(self.index[-1]) + 1, self.grad.shape[1])
        table[self.index] = self.grad[:-1]
        return table


class _Sum:
    """A gradient of rows of a table, summed up."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._limit = _PENDING

    def add(self, index: Tensor, grad: Tensor) -> None:
        """Add gradients (m, d) to rows (m,)."""
        self._pending.append((index, grad.double()))
        if sum(len(each) for each, _ in self._pending) > self._limit:
            self._pending = [self.rows()]
            self._limit = _PENDING + 2 * len(self._pending[0][0])

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the distinct rows (u,), ascending, and their gradients (u, d) float64."""
        index, grad = (torch.cat(part) for part in zip(*self._pending, strict=True))
        distinct, place = index.unique(return_inverse=True)
        return distinct, grad.new_zeros(len(distinct), grad.shape[1]).index_add_(0, place, grad)


@dataclass(frozen=True, slots=True)
class Total:
    """A gradient of all parameters, float32; parameters that are absent have none."""

    matrices: Mapping[str, Tensor]
    """Of linear layers, biases in the last column, (p, q) each, by the name of their `Kron` block."""
    flat: Mapping[str, Tensor]
    """Of small tensors, (size,) each."""
    tables: Mapping[str, TableRows]
    """Of embedding tables."""
    dense: bool
    """Whether training triples that read none of the rows may have influence."""

    @classmethod
    def of(cls, gradients: Iterable[Terms]) -> "Total":
        """Sum up the gradients of all triples of all blocks, in float64."""
        matrices: dict[str, Tensor] = {}
        flat: dict[str, Tensor] = {}
        tables: defaultdict[str, _Sum] = defaultdict(_Sum)
        dense = False
        for terms in gradients:
            dense = dense or terms.dense
            for name, block in terms.kron.items():
                matrix = block.u.double().T @ block.v[block.group].double()  # (p, m) @ (m, q)
                matrices[name] = matrices.get(name, 0) + matrix
            for name, grad in terms.flat.items():
                flat[name] = flat.get(name, 0) + grad.double().sum(0)
            for name, uses in terms.rows.items():
                for use in uses:
                    tables[name].add(use.index, use.grad)
            for name, spread in terms.spread.items():
                _add_spread(tables[name], spread)
        matrices, flat = ({name: tensor.float() for name, tensor in part.items()} for part in (matrices, flat))
        rows = {name: table.rows() for name, table in tables.items()}
        return cls(matrices, flat, {name: _table(index, grad.float()) for name, (index, grad) in rows.items()}, dense)

    def influences(self, terms: Terms) -> Tensor:
        """Return the exact inner products of the gradients of n triples with this one, (n,)."""
        influences = terms.loss.new_zeros(len(terms.loss))
        for name, matrix in self.matrices.items():
            block = terms.kron[name]
            influences += (block.u * (block.v @ matrix.T)[block.group]).sum(1)  # (groups, q) @ (q, p) -> (groups, p)
        for name, grad in self.flat.items():
            influences += terms.flat[name] @ grad
        for name, table in self.tables.items():
            for use in terms.rows.get(name, ()):
                influences += (use.grad * table.of(use.index)).sum(1)
            if (spread := terms.spread.get(name)) is not None:
                influences += (spread.u.along(table.whole()) * spread.x[spread.u.group]).sum(1)
        return influences.view(len(terms), terms.per_triple).sum(1)

    def changed_rows(self, change: Callable[[Terms], Terms], blocks: Callable[[Tensor], Iterator[Tensor]]) -> "Total":
        """Return the gradient of the tables' rows alone, after `change` of a gradient that reads one row each.

        `blocks` splits the rows that have a gradient into blocks that are changed together.
        """
        tables = {}
        for name, table in self.tables.items():
            changed = [table.grad[:0]]
            for index in blocks(table.index):
                alone = Terms(1, table.grad.new_zeros(len(index)), {}, {}, {name: [Rows(index, table.of(index))]})
                changed.append(change(alone).rows[name][0].grad)
            tables[name] = _table(table.index, torch.cat(changed))
        return Total({}, {}, tables, dense=False)


def _table(index: Tensor, grad: Tensor) -> TableRows:
    return TableRows(index, torch.cat([grad, grad.new_zeros(1, grad.shape[1])]))


def _add_spread(table: _Sum, spread: Spread) -> None:
    """Add the gradients u ⊗ x of a table all of whose rows were scored."""
    slopes, x = spread.u, spread.x.double()
    weight = torch.bincount(slopes.group, minlength=len(x))[:, None]  # loss terms of each group
    every = torch.arange(slopes.base.shape[1], device=x.device)
    table.add(every, slopes.base.double().T @ (weight * x))  # (E, groups) @ (groups, d)
    own = slopes.own.double()[:, :, None] * x[slopes.group][:, None, :]  # (m, k, d)
    table.add(slopes.index.flatten(), own.flatten(0, 1))
