"""TracInCP: influence summed over checkpoints of one training run, as one model.

    influence(z, z') = Σ_c η_c ⟨∇ℓ(z; θ_c), ∇ℓ(z'; θ_c)⟩ = ⟨(√η_c ∇ℓ(z; θ_c))_c, (√η_c ∇ℓ(z'; θ_c))_c⟩

(Pruthi et al., 2020, equation 3; eq. (2) of ``docs/how-it-works.md``). The right-hand side is an inner product of
longer gradients, with one copy of every block for each checkpoint. So an index treats them as one model: its principal
directions are those of the weighted sum, and its dimension does not grow with the number of checkpoints.

C models of other seeds are such states with η = 1/C: influence is then the mean of the models' own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from kgtrace_indexer.gradients.layers import NO_PARAMETERS, Selection
from kgtrace_indexer.gradients.losses import Loss, OneToAll
from kgtrace_indexer.gradients.terms import Kron, Rows, Spread, Terms
from kgtrace_indexer.models.protocol import ScoringModel, head_scores, ids_device, one_to_all

_MARK = "@"


def block_of(parameter: str, checkpoint: int) -> str:
    """Return the name of a checkpoint's copy of a parameter's block."""
    return f"{parameter}{_MARK}{checkpoint}"


def parameter_of(block: str) -> str:
    """Return the parameter name of a block: ``weight@2`` is checkpoint 2's copy of ``weight``."""
    return block.partition(_MARK)[0]


def checkpoint_of(block: str) -> int:
    """Return the number of the checkpoint that a block belongs to; 0 for a model without checkpoints."""
    return int(block.partition(_MARK)[2] or 0)


def checkpoint_count(blocks: Iterable[str]) -> int:
    """Return of how many checkpoints there are blocks; 1 for a model without checkpoints."""
    return 1 + max(map(checkpoint_of, blocks), default=0)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A `ScoringModel` with the gradients of several checkpoints, or models, and the trained (first) model's scores."""

    trained: ScoringModel
    """The model whose scores and ranks count."""
    weighted: Sequence[tuple[float, ScoringModel]]
    """η_c and the model at checkpoint c."""
    first: int = 0
    """Number of the first checkpoint."""

    def apart(self) -> list["Checkpoints"]:
        """Return each checkpoint alone, with its own loss; side by side their gradients are the model's."""
        return [Checkpoints(one[1], [one], first=i) for i, one in enumerate(self.weighted, self.first)]

    @property
    def device(self) -> torch.device:
        """Where tensors passed in must be, and results are."""
        return self.trained.device

    @property
    def ids_device(self) -> torch.device:
        """Where ids should be, as for each of the models."""
        return ids_device(self.trained)

    def select(self, layers: Sequence[str]) -> Selection:
        """Resolve ``--layers``: the same parameters at every checkpoint."""
        return self.trained.select(layers)

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        """Return the trained model's scores of all entities as tail, (m, E)."""
        return self.trained.tail_scores(head, relation)

    def head_scores(self, relation: Tensor, tail: Tensor) -> Tensor:
        """Return the trained model's scores of all entities as head, (m, E)."""
        return head_scores(self.trained, relation, tail)

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: Loss, selection: Selection
    ) -> Terms:
        """Return the weighted gradients of m loss terms at all checkpoints; `Terms.loss` is the trained model's."""

        def of(model: ScoringModel, selection: Selection) -> Terms:
            return model.terms(head, relation, tail, per_triple=per_triple, loss=loss, selection=selection)

        return self.joined(of, selection)

    def one_to_all_terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: OneToAll, selection: Selection
    ) -> Terms:
        """Do the same for a loss of all tails' scores; see `OneToAllModel`."""

        def of(model: ScoringModel, selection: Selection) -> Terms:
            able = one_to_all(model)
            return able.one_to_all_terms(head, relation, tail, per_triple=per_triple, loss=loss, selection=selection)

        return self.joined(of, selection)

    def joined(self, terms_of: Callable[[ScoringModel, Selection], Terms], selection: Selection) -> Terms:
        """Join the blocks of all checkpoints, each weighted by √η and named after its checkpoint: eq. (2)."""
        kron: dict[str, Kron] = {}
        flat: dict[str, Tensor] = {}
        rows: dict[str, list[Rows]] = {}
        spread: dict[str, Spread] = {}
        trained: Terms | None = None
        for i, (rate, model) in enumerate(self.weighted, self.first):
            terms, scale = terms_of(model, selection), sqrt(rate)
            kron |= {block_of(n, i): Kron(scale * b.u, b.v, b.group) for n, b in terms.kron.items()}
            flat |= {block_of(n, i): scale * g for n, g in terms.flat.items()}
            rows |= {block_of(t, i): [Rows(u.index, scale * u.grad) for u in uses] for t, uses in terms.rows.items()}
            spread |= {block_of(t, i): replace(b, x=scale * b.x) for t, b in terms.spread.items()}
            if model is self.trained:
                trained = terms
        if trained is None:
            trained = terms_of(self.trained, NO_PARAMETERS)
        return Terms(trained.per_triple, trained.loss, kron, flat, rows, spread)
