"""TracIn as one would write it down: the baseline of every speed.

For each training triple one forward pass, one backward pass that gives every parameter a gradient of its own shape, and
one dot product with the test triple's gradient, kept from before. Nothing is shared between triples.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.pykeen import pykeen_score


class PlainLoop:
    """Influences ⟨∇ℓ, ∇ℓ'⟩ over all parameters of the trained model, one training triple at a time.

    ℓ = softplus(−s) of (h, r) → t, whatever other loss or directions a configuration has: the cheapest there is.
    """

    def __init__(self, model: ModelFile, device: torch.device) -> None:
        """Raise `UnsupportedModel` or `MissingExtra` where PyKEEN cannot rebuild the model."""
        self._rebuilt = pykeen_score(model, device)
        self._score = self._rebuilt.score.eval()
        self._tables = {name: table.clone().requires_grad_() for name, table in self._rebuilt.tables.items()}
        self._inverse_triples = model.inverse_triples
        self._device = device

    def influences(self, training: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Return the influences of training triples (n, 3) on one test triple (3,), (n,) float32."""
        target = self._gradient(test)
        return np.array([self._dot(self._gradient(triple), target) for triple in training], np.float32)

    def _gradient(self, triple: np.ndarray) -> dict[str, Tensor]:
        """Return the gradient of every parameter, in the parameter's shape."""
        parameters = {**self._tables, **dict(self._score.named_parameters())}
        for parameter in parameters.values():
            parameter.grad = None
        head, relation, tail = (int(i) for i in triple)
        relation = 2 * relation if self._inverse_triples else relation
        read = [
            [reading.form(self._tables[reading.table][torch.tensor([row], device=self._device)]) for reading in slot]
            for slot, row in (
                (self._rebuilt.head, head),
                (self._rebuilt.relation, relation),
                (self._rebuilt.tail, tail),
            )
        ]
        F.softplus(-self._score(*read)).sum().backward()
        return {name: p.grad for name, p in parameters.items() if p.grad is not None}  # fresh, not accumulated

    @staticmethod
    def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        return sum(float((grad * b[name]).sum()) for name, grad in a.items() if name in b)
