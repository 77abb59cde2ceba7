"""The gradients of any number of test triples, summed into one.

    Σ_z' ⟨∇ℓ(z), P ∇ℓ(z')⟩ = ⟨∇ℓ(z), P Σ_z' ∇ℓ(z')⟩

The sum has the shapes of the model's parameters, however many test triples there are, and the influence of a training
triple on all of them together costs about as much as that on one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Rows, Spread, Terms


@dataclass(frozen=True, slots=True)
class Total:
    """A gradient of all parameters, float32; parameters that are absent have none."""

    matrices: Mapping[str, Tensor]
    """Of linear layers, biases in the last column, (p, q) each, by the name of their `Kron` block."""
    flat: Mapping[str, Tensor]
    """Of small tensors, (size,) each."""
    tables: Mapping[str, Tensor]
    """Of embedding tables, (rows + 1, d) each: rows up to the last one that has a gradient, and a row of zeros, which
    stands for all that follow."""
    dense: bool
    """Whether training triples that read none of the rows may have influence."""

    @classmethod
    def of(cls, gradients: Iterable[Terms]) -> "Total":
        """Sum up the gradients of all triples of all blocks, in float64."""
        matrices: dict[str, Tensor] = {}
        flat: dict[str, Tensor] = {}
        tables: dict[str, Tensor] = {}
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
                    _add_rows(tables, name, use.index, use.grad)
            for name, spread in terms.spread.items():
                _add_spread(tables, name, spread)
        matrices, flat, tables = (
            {name: tensor.float() for name, tensor in part.items()} for part in (matrices, flat, tables)
        )
        return cls(
            matrices, flat, {name: torch.cat([t, t.new_zeros(1, t.shape[1])]) for name, t in tables.items()}, dense
        )

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
                influences += (use.grad * table[use.index.clamp_max(len(table) - 1)]).sum(1)
            if (spread := terms.spread.get(name)) is not None:
                influences += (spread.u.along(table[:-1]) * spread.x[spread.u.group]).sum(1)
        return influences.view(len(terms), terms.per_triple).sum(1)

    def changed_rows(self, change: Callable[[Terms], Terms], blocks: Callable[[Tensor], Iterator[Tensor]]) -> "Total":
        """Return the gradient of the tables' rows alone, after `change` of a gradient that reads one row each.

        `blocks` splits the rows that have a gradient into blocks that are changed together.
        """
        tables = {}
        for name, table in self.tables.items():
            tables[name] = torch.zeros_like(table)
            for index in blocks(table.any(1).nonzero().flatten()):
                alone = Terms(1, table.new_zeros(len(index)), {}, {}, {name: [Rows(index, table[index])]})
                tables[name][index] = change(alone).rows[name][0].grad
        return Total({}, {}, tables, dense=False)


def _add_rows(tables: dict[str, Tensor], name: str, index: Tensor, grad: Tensor) -> None:
    """Add gradients (m, d) to rows (m,) of a table, which grows as needed."""
    table = tables.get(name, grad.new_zeros(0, grad.shape[1], dtype=torch.float64))
    missing = int(index.max()) + 1 - len(table)
    if missing > 0:
        table = torch.cat([table, table.new_zeros(missing, table.shape[1])])
    tables[name] = table.index_add_(0, index, grad.double())


def _add_spread(tables: dict[str, Tensor], name: str, spread: Spread) -> None:
    """Add the gradients u ⊗ x of a table all of whose rows were scored."""
    slopes, x = spread.u, spread.x.double()
    weight = torch.bincount(slopes.group, minlength=len(x))[:, None]  # loss terms of each group
    every = torch.arange(slopes.base.shape[1], device=x.device)
    _add_rows(tables, name, every, slopes.base.double().T @ (weight * x))  # (E, groups) @ (groups, d)
    own = slopes.own.double()[:, :, None] * x[slopes.group][:, None, :]  # (m, k, d)
    _add_rows(tables, name, slopes.index.flatten(), own.flatten(0, 1))
