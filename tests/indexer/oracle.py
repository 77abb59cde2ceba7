"""The slow truth: gradients from PyTorch's autograd on the original PyKEEN module, one triple at a time."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def pykeen_model(folder: Path) -> torch.nn.Module:
    """Unpickle a trusted model of our own making."""
    model: torch.nn.Module = torch.load(folder / "trained_model.pkl", weights_only=False).eval()
    return model


def instances(triple: Iterable[int], directions: Iterable[str]) -> list[list[int]]:
    """Return what `score_hrt` takes for each direction: ids with inverse relations told apart."""
    head, relation, tail = (int(i) for i in triple)
    both = {"tail": [head, 2 * relation, tail], "head": [tail, 2 * relation + 1, head]}
    return [both[direction] for direction in directions]


def gradient(
    model: torch.nn.Module,
    triple: np.ndarray,
    directions: Iterable[str],
    names: Iterable[str] | None = None,
    *,
    loss: Callable[[Tensor], Tensor] = torch.nn.functional.softplus,
) -> Tensor:
    """Return the gradient of Σ ℓ(−s) over the directions, all parameters (or those named) in one vector."""
    model.zero_grad()
    score = model.score_hrt(torch.tensor(instances(triple, directions)))
    loss(-score).sum().backward()
    chosen = None if names is None else set(names)
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for name, p in model.named_parameters()
            if chosen is None or name in chosen
        ]
    )
