"""The gradients of test triples in embedding rows, merged by row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.transfers import to_host


@dataclass(frozen=True, slots=True)
class RowQueries:
    """The gradients of b test triples in the rows of one table: P pairs of a test triple and a row, each once."""

    query: np.ndarray
    """(P,) int64, ascending."""
    row: np.ndarray
    """(P,) int64."""
    grad: np.ndarray
    """(P, d) float64: p, the sum over the test triple's reads of the row."""
    pairs: np.ndarray
    """(b, ·) int64: the pairs of each test triple, −1 where it has fewer than others."""

    @classmethod
    def of(cls, terms: Terms) -> dict[str, "RowQueries"]:
        """Return the gradients of test triples in the rows of each table."""
        return cls.with_others(terms, {})[0]

    @classmethod
    def with_others(
        cls, terms: Terms, others: Mapping[str, Tensor]
    ) -> tuple[dict[str, "RowQueries"], dict[str, np.ndarray]]:
        """Do the same, and copy other tensors to the CPU, all of it at once."""
        stacks = dict(others)
        for table, uses in terms.rows.items():
            stacks[f"{table}.index"] = torch.stack([use.index for use in uses], 1)
            stacks[f"{table}.grad"] = torch.stack([use.grad for use in uses], 1)
        arrays = to_host(stacks)()
        queries = {}
        for table in terms.rows:
            index, grad = arrays[f"{table}.index"], arrays[f"{table}.grad"]
            shape = len(terms), index.shape[1] * terms.per_triple
            queries[table] = cls.merged(index.reshape(shape), grad.reshape(*shape, grad.shape[2]).astype(np.float64))
        return queries, {name: arrays[name] for name in others}

    def of_triple(self, number: int) -> "RowQueries":
        """Return the gradients of one test triple."""
        pairs = self.pairs[number][self.pairs[number] >= 0]
        return RowQueries(
            np.zeros(len(pairs), np.int64), self.row[pairs], self.grad[pairs], np.arange(len(pairs))[None]
        )

    def use(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return row `number` of each test triple (b,) and its gradient (b, d); zeros where a triple reads fewer."""
        pairs = self.pairs[:, number]
        missing = pairs < 0
        return np.where(missing, 0, self.row[pairs]), np.where(missing[:, None], 0, self.grad[pairs])

    def only(self, chosen: np.ndarray) -> "RowQueries":
        """Return some of the pairs, of a mask (P,); those of each test triple are not listed in `pairs`."""
        return RowQueries(self.query[chosen], self.row[chosen], self.grad[chosen], self.pairs[:, :0])

    def summed(self) -> "RowQueries":
        """Return the sum of the gradients, as of one test triple."""
        return self.merged(self.row[None], self.grad[None])

    @classmethod
    def merged(cls, index: np.ndarray, grads: np.ndarray) -> "RowQueries":
        """Sum up gradients (b, reads, d) float64 of the same row (b, reads)."""
        query = np.arange(len(index)).repeat(index.shape[1])
        order = np.lexsort((index.ravel(), query))
        query, row = query[order], index.ravel()[order]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(query) != 0) | (np.diff(row) != 0)])[: len(row)])
        query, row = query[first], row[first]
        grad = np.add.reduceat(grads.reshape(len(order), grads.shape[2])[order], first, 0)
        counts = np.bincount(query, minlength=len(index))
        number = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]  # of each pair among its test triple's
        pairs = np.full((len(index), int(counts.max(initial=0))), -1)
        pairs[query, number] = np.arange(len(query))
        return cls(query, row, grad, pairs)


def paired_products(a: Mapping[str, RowQueries], b: Mapping[str, RowQueries]) -> np.ndarray:
    """Return ⟨g, p⟩ of each test triple, (b,) float64, for gradients in the same rows."""
    sums = [
        np.bincount(gradients.query, np.einsum("pd,pd->p", gradients.grad, b[table].grad), len(gradients.pairs))
        for table, gradients in a.items()
    ]
    total: np.ndarray = np.sum(sums, 0)
    return total
