"""Losses of a triple's own score, and their derivatives."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_store.errors import UnsupportedModel

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps scores (m,) to losses (m,) and their derivatives dℓ/ds (m,)."""


def bce(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ(s) = softplus(−s), binary cross-entropy of the logit s against 1, and ℓ'(s) = −σ(−s)."""
    return F.softplus(-score), -(-score).sigmoid()


def removal(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ(s) = −s and ℓ'(s) = −1: by how much the loss of 1-N training rises, per logit, with this label gone.

    Binary cross-entropy of s against 1 is softplus(−s), against 0 it is softplus(s); their difference is −s.
    """
    return -score, torch.full_like(score, -1.0)


LOSSES: dict[str, Loss] = {"bce": bce, "removal": removal}
"""Losses by the names that ``--loss`` takes."""


def loss_by_name(name: str) -> Loss:
    """Return a loss; raise `UnsupportedModel` with the known names for an unknown one."""
    if name not in LOSSES:
        raise UnsupportedModel(f"unknown loss {name!r}; known: {', '.join(sorted(LOSSES))}")
    return LOSSES[name]
