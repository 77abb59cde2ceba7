"""Influence on test triples, summed over groups of training triples.

A sum needs every influence, and so a full scan; but where each is known to lie within ``estimate ± slack``, their sum
lies within Σ estimate ± Σ slack, and so do the sums of their positive and of their negative parts, for neither part of
a number moves further than the number does.
"""

import torch
from torch import Tensor

from kgtrace_indexer.answers import Aggregation, Sums
from kgtrace_indexer.names import Order
from kgtrace_indexer.query.certify import value


class GroupSums:
    """Running sums of the groups 0, …, size − 1."""

    def __init__(self, size: int) -> None:
        self._counts = torch.zeros(size, dtype=torch.int64)
        self._sums = torch.zeros(4, size, dtype=torch.float64)  # of influence, its two parts and slack

    def add(self, groups: Tensor, influence: Tensor, slack: Tensor) -> None:
        """Take in training triples of groups (m,): influence and how far it may be off, (m,) each."""
        self._counts += torch.bincount(groups, minlength=len(self._counts))
        parts = torch.stack([influence, influence.clamp_min(0), influence.clamp_max(0), slack])  # (4, m)
        self._sums.index_add_(1, groups, parts.double())

    def best(self, order: Order, top_k: int) -> Aggregation:
        """Return the first groups that hold a training triple at all; equal ones by ascending number."""
        present = torch.nonzero(self._counts).flatten()
        values, errors = value(self._sums[0, present], order), self._sums[3, present]
        ranked = values.argsort(descending=True, stable=True)
        lower, upper = (values - errors)[ranked], (values + errors)[ranked]
        highest_after = upper.flip(0).cummax(0).values.flip(0)[1:]  # of all that come later
        certified = bool((lower[:-1] >= highest_after)[:top_k].all())
        chosen = present[ranked[:top_k]]
        return Aggregation(
            groups=chosen.numpy(),
            sums=_sums(self._counts[chosen], self._sums[:, chosen]),
            total=_sums(self._counts.sum()[None], self._sums.sum(1, keepdim=True)),
            certified=certified,
        )


def _sums(counts: Tensor, parts: Tensor) -> Sums:
    sums, positive, negative, errors = parts.numpy()
    return Sums(counts.numpy(), sums, positive, negative, errors)
