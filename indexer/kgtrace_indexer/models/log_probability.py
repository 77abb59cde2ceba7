"""The gradient of a tail's log-probability among all tails, in the rows that the prediction reads.

With p the softmax of the scores of all entities as tail,

    ∇ log p(t | h, r) = (1 − p_t) ∇s(h, r, t) − Σ_{e ≠ t} p_e ∇s(h, r, e),

of which the rows of h and r have all, and the row of t the first part. The rows of the other tails are left out: they
are as many as there are entities, and hardly any of them matters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kgtrace_indexer.gradients.layers import Selection
from kgtrace_indexer.gradients.losses import score_itself
from kgtrace_indexer.gradients.terms import Rows, Terms
from kgtrace_indexer.models.checkpoints import Checkpoints
from kgtrace_indexer.models.protocol import ScoringModel
from kgtrace_store.errors import BadRequest


@runtime_checkable
class ExpectedScoreModel(Protocol):
    """A `ScoringModel` that also gives the gradient of an expected score."""

    def expected_rows(
        self, head: Tensor, relation: Tensor, weights: Tensor, selection: Selection
    ) -> Mapping[str, Sequence[Rows]]:
        """Return the gradients of Σ_e w_e s(h, r, e) in the rows of heads and relations, by table.

        `head` and `relation` are (m,), `weights` (m, E); the gradients are of the m sums.
        """


def log_probability_terms(
    model: ScoringModel, head: Tensor, relation: Tensor, tail: Tensor, selection: Selection
) -> Terms:
    """Return the gradients of −log p(t | h, r) of m triples, as `ScoringModel.terms` does, in embedding rows alone.

    Raises `BadRequest` for a model that is no `ExpectedScoreModel`.
    """
    if isinstance(model, Checkpoints):
        return model.joined(lambda one, chosen: log_probability_terms(one, head, relation, tail, chosen), selection)
    if not isinstance(model, ExpectedScoreModel):
        raise BadRequest(
            f"{type(model).__name__} has no expected_rows, which outcome probability needs: ask for outcome logit"
        )
    scores = model.tail_scores(head, relation)  # (m, E)
    column = tail[:, None].to(scores.device)
    others = scores.softmax(1).scatter(1, column, 0)
    loss = -scores.log_softmax(1).gather(1, column)[:, 0]
    own = model.terms(head, relation, tail, per_triple=1, loss=score_itself, selection=selection)
    rows = {table: list(uses) for table, uses in own.weighted(-others.sum(1)).rows.items()}
    for table, expected in model.expected_rows(head, relation, others, selection).items():
        for one in expected:
            at = next(i for i, use in enumerate(rows[table]) if torch.equal(use.index, one.index))
            rows[table][at] = replace(one, grad=rows[table][at].grad + one.grad)
    return Terms(1, loss, {}, {}, rows)
