"""The reads of embedding rows by triples, those of several tables in one tensor, for one operation on all."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_indexer.gradients.terms import Terms

_APART = 1 << 40
"""Added to the rows of each further table: no table has so many, and in 32 bits it is 0."""
_PADDED = 8 / 9
"""Least width of a table, in widths of the widest, whose rows are padded to lie beside those of the latter."""


@dataclass(frozen=True, slots=True)
class Reads:
    """All reads of some tables by n triples: R each."""

    tables: Mapping[str, range]
    """The places among the R of each table's reads: use by use, each by all loss terms."""
    widths: Mapping[str, int]
    """Numbers in a row of each table."""
    index: Tensor
    """(n, R) int64: the row read, plus `_APART` for each table before; in 32 bits the row itself."""
    grad: Tensor
    """(n, R, width): its gradient; rows of narrower tables end with zeros."""

    @classmethod
    def of(cls, terms: Terms, tables: Iterable[str]) -> "list[Reads]":
        """Return the reads of tables of `terms`; those of about the same width together."""
        widths = {table: terms.rows[table][0].grad.shape[1] for table in tables}
        together: list[list[str]] = []
        for table in sorted(widths, key=widths.__getitem__, reverse=True):
            if not together or widths[table] < _PADDED * widths[together[-1][0]]:
                together.append([])
            together[-1].append(table)
        return [cls._joined(terms, {table: widths[table] for table in names}) for names in together]

    @classmethod
    def _joined(cls, terms: Terms, widths: Mapping[str, int]) -> "Reads":
        shape, most = (len(terms), terms.per_triple), max(widths.values())
        index: list[Tensor] = []
        grads: list[Tensor] = []
        tables: dict[str, range] = {}
        for number, (table, width) in enumerate(widths.items()):
            uses, start = terms.rows[table], len(index) * terms.per_triple
            tables[table] = range(start, start + len(uses) * terms.per_triple)
            for use in uses:
                index.append((use.index + number * _APART if number else use.index).view(shape))
                grad = use.grad if width == most else F.pad(use.grad, (0, most - width))
                grads.append(grad.view(*shape, most))
        return cls(tables, widths, torch.cat(index, 1), torch.cat(grads, 1))

    def products(self, per_triple: int) -> Tensor:
        """Return ⟨g, g'⟩ of the rows of all pairs of loss terms of a triple, (n, D, D)."""
        same = self.index[:, :, None] == self.index[:, None, :]
        products = (self.grad @ self.grad.mT) * same  # (n, R, width) @ (n, width, R) -> (n, R, R)
        return products.view(len(same), -1, per_triple, same.shape[1] // per_triple, per_triple).sum((1, 3))
