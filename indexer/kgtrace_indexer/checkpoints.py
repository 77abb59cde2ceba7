"""TracInCP: influence summed over checkpoints of one training run, as one model.

    influence(z, z') = Σ_c η_c ⟨∇ℓ(z; θ_c), ∇ℓ(z'; θ_c)⟩ = ⟨(√η_c ∇ℓ(z; θ_c))_c, (√η_c ∇ℓ(z'; θ_c))_c⟩

(Pruthi et al., 2020, equation 3). The right-hand side is an inner product of longer gradients, with one copy of every
block for each checkpoint. Nothing downstream needs to know: the index takes its directions from the weighted sum, and
its dimension does not grow with the number of checkpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from kgtrace_indexer.layers import Selection
from kgtrace_indexer.losses import Loss
from kgtrace_indexer.models import ScoringModel
from kgtrace_indexer.terms import Kron, Rows, Terms

_MARK = "@"


def parameter_of(block: str) -> str:
    """Return the parameter name of a block: ``weight@2`` is checkpoint 2's copy of ``weight``."""
    return block.partition(_MARK)[0]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A `ScoringModel` whose gradients are those of several checkpoints, and whose scores are the trained model's."""

    trained: ScoringModel
    """Scores and ranks are its."""
    parts: Sequence[tuple[float, ScoringModel]]
    """η_c and the model at checkpoint c."""

    @property
    def device(self) -> torch.device:
        """Where tensors passed in must be, and results are."""
        return self.trained.device

    def select(self, layers: Sequence[str]) -> Selection:
        """Resolve ``--layers``: the same parameters at every checkpoint."""
        return self.trained.select(layers)

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        """Return the trained model's scores of all entities as tail, (m, E)."""
        return self.trained.tail_scores(head, relation)

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, directions: int, loss: Loss, selection: Selection
    ) -> Terms:
        """Return the weighted gradients of m loss terms at all checkpoints; `Terms.loss` is Σ η_c ℓ."""
        found = [
            (rate, model.terms(head, relation, tail, directions=directions, loss=loss, selection=selection))
            for rate, model in self.parts
        ]
        return _joined(found, directions)


def _joined(parts: Iterable[tuple[float, Terms]], directions: int) -> Terms:
    total: Tensor | None = None
    kron: dict[str, Kron] = {}
    flat: dict[str, Tensor] = {}
    rows: dict[str, list[Rows]] = {}
    for i, (rate, terms) in enumerate(parts):
        scale = sqrt(rate)
        total = rate * terms.loss if total is None else total + rate * terms.loss
        kron |= {f"{n}{_MARK}{i}": Kron(scale * b.u, b.v, b.group) for n, b in terms.kron.items()}
        flat |= {f"{n}{_MARK}{i}": scale * g for n, g in terms.flat.items()}
        rows |= {f"{t}{_MARK}{i}": [Rows(u.index, scale * u.grad) for u in uses] for t, uses in terms.rows.items()}
    if total is None:
        raise ValueError("no checkpoints")
    return Terms(directions, total, kron, flat, rows)
