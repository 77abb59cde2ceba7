"""What if P were the curvature of the loss that was trained, instead of the second moment of gradients?

For row i of an embedding table the Gauss–Newton block of 1-N training is a sum over all distinct (h, r) and all tails e,
negatives among them, of the loss's second derivative times the outer product of the score's gradient in the row,

    H_i = Σ_(h,r) Σ_e w_e ∇_i s(h, r, e) ∇_i s(h, r, e)ᵀ,    w_e = σ(1 − σ) of binary cross-entropy,

and of a softmax w_e = p_e with the outer product of the mean Σ p_e ∇_i s taken off; in rows of tails, which other tails do
not read, p_e (1 − p_e). Everything is dense linear algebra: this is for graphs of some hundred entities.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.truth.whole import Whole
from kgtrace_indexer.gradients.losses import score_itself
from kgtrace_indexer.models.protocol import scoring_model

_PAIRS = 32
"""Distinct (h, r) looked at together."""

Use = tuple[str, Tensor, Tensor]
"""A table, the rows (m,) that are read of it, and the score's gradients in these (m, d), float64."""


class Curvature:
    """Gauss–Newton blocks of a model's embedding rows."""

    def __init__(self, whole: Whole, pairs: Tensor) -> None:
        """Sum them over distinct (h, row of the relation table) (p, 2), as of `KnownTails`, and all tails."""
        self._model = scoring_model(whole.model, torch.device("cpu"))
        self._tensors = whole.model.tensors
        self._selection = self._model.select(["all"])
        self.blocks: dict[str, Tensor] = {}
        """(rows, d, d) float64 by table."""
        for batch in pairs.split(_PAIRS):
            self._add(*batch.T, softmax=whole.recipe.softmax)

    def _add(self, head: Tensor, relation: Tensor, *, softmax: bool) -> None:
        with torch.inference_mode():
            scores = self._model.tail_scores(head, relation).double()
        pairs, entities = scores.shape
        p = scores.softmax(1) if softmax else scores.sigmoid()
        every = torch.arange(entities).repeat(pairs)
        ids = head.repeat_interleave(entities), relation.repeat_interleave(entities), every
        for table, index, grad in self._uses(*ids):
            g, rows = grad.view(pairs, entities, -1), len(self._tensors[table])
            blocks = self.blocks.setdefault(table, torch.zeros(rows, g.shape[2], g.shape[2], dtype=torch.float64))
            if torch.equal(index, every):  # of tails
                blocks += torch.einsum("be,bei,bej->eij", p * (1 - p), g, g)
                continue
            weight = p if softmax else p * (1 - p)
            block = (g * weight[..., None]).mT @ g
            if softmax:
                mean = (p[:, None] @ g)[:, 0]
                block -= mean[:, :, None] * mean[:, None, :]
            blocks.index_add_(0, index.view(pairs, entities)[:, 0], block)

    def scores(self, train: np.ndarray, test: np.ndarray, units: float) -> np.ndarray:
        """Return ∇sᵀ (H + σ²I)⁻¹ ∇s' of training triples (n, 3), in both directions, on tails of test triples (q, 3).

        σ² is so many times the mean diagonal of the rows that the test triples read. Returns (n, q).
        """
        h, r, t = (torch.from_numpy(column) for column in test.T)
        uses = list(self._uses(h, 2 * r, t))
        mean = np.mean([self.blocks[table][index].diagonal(dim1=1, dim2=2).mean() for table, index, _ in uses])
        h, r, t = (torch.from_numpy(column) for column in train.T)
        training = [*self._uses(h, 2 * r, t), *self._uses(t, 2 * r + 1, h)]
        found = torch.zeros(len(train), len(test), dtype=torch.float64)
        for table, index, grad in uses:
            system = self.blocks[table][index] + units * float(mean) * torch.eye(grad.shape[1])
            solved = torch.linalg.solve(system, grad)
            for other, row, own in training:
                if other == table:
                    found += (own @ solved.T) * (row[:, None] == index)
        return found.numpy()

    def _uses(self, head: Tensor, relation: Tensor, tail: Tensor) -> Iterator[Use]:
        with torch.inference_mode():
            terms = self._model.terms(head, relation, tail, per_triple=1, loss=score_itself, selection=self._selection)
        for table, uses in terms.rows.items():
            for use in uses:
                yield table, use.index.clone(), use.grad.double()
