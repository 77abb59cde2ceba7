"""What kgtrace needs of a model, and which models have it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kgtrace_indexer.conve import ConvE
from kgtrace_indexer.layers import Selection
from kgtrace_indexer.losses import Loss
from kgtrace_indexer.model_file import ModelFile
from kgtrace_indexer.terms import Terms
from kgtrace_store.errors import BadRequest


class ScoringModel(Protocol):
    """A trained model that scores (h, r) → t and gives the gradient of a loss of that score."""

    @property
    def device(self) -> torch.device:
        """Where tensors passed in must be, and results are."""

    def select(self, layers: Sequence[str]) -> Selection:
        """Resolve ``--layers``; raise `BadRequest` for what this model does not have."""

    def terms(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        *,
        directions: int,
        loss: Loss,
        selection: Selection,
    ) -> Terms:
        """Return the gradients of m loss terms; all ids are (m,) int64, `relation` holds rows of the relation table."""

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        """Return the scores of all entities as tail, (m, E)."""


def scoring_model(model: ModelFile, device: torch.device) -> ScoringModel:
    """Put a model on a device; raise `UnsupportedModel` for an interaction kgtrace cannot explain."""
    return ConvE(model, device)


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; raise `BadRequest` when it is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadRequest(f"device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadRequest("device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
