"""Scores of all tails of one (h, r) in factors: a costly vector of (h, r), and a row of each tail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kgtrace_indexer.gradients.terms import Rows


@dataclass(frozen=True, slots=True)
class Factors:
    """Gradients of the scores s_e = ⟨x, v_e⟩ + b_e in embedding rows, for one (h, r) with x = x(h, r).

    Entries of x whose gradients vanish are left out: k of them count.
    """

    rows: Mapping[str, Sequence[Rows]]
    """By table, the gradients of the entries of x, (k, d) for each use."""
    tails: Tensor
    """(E, k): entries of v_e."""
    own: Mapping[str, Tensor]
    """By table, the gradient of s_e in row e, (d,): the same for every e."""

    def scaled(self, scale: float, name: Callable[[str], str]) -> "Factors":
        """Return the factors with gradients multiplied by a number, and tables renamed."""
        rows = {name(table): [Rows(use.index, scale * use.grad) for use in uses] for table, uses in self.rows.items()}
        return Factors(rows, self.tails, {name(table): scale * grad for table, grad in self.own.items()})
