"""The slow truth: gradients from PyTorch's autograd on the original PyKEEN module, one triple at a time."""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from kgtrace_indexer.models.conve_network import BIAS, ENTITY, RELATION

Loss = Callable[[Tensor], Tensor]
"""Takes −s."""


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
    loss: Loss = softplus,
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


_TABLES = (ENTITY, BIAS, RELATION)
_model = cache(pykeen_model)


@cache
def _rows(folder: Path, triple: tuple[int, ...], direction: str, loss: Loss) -> Tensor:
    """Return the gradient of one direction's ℓ(−s) by all embedding rows; several tests ask for the same ones."""
    return gradient(_model(folder), np.array(triple), [direction], _TABLES, loss=loss)


class Dense:
    """P of the preconditioned score as a matrix for each embedding row of ConvE, whose bias is one more number."""

    def __init__(
        self,
        folder: Path,
        triples: np.ndarray,
        directions: Iterable[str],
        loss: Loss = softplus,
        *,
        rate: float = 1.0,
    ) -> None:
        """Compute the gradient of each triple under ℓ(−s), times the root of a rate, (n, numbers) by row."""
        self.folder, self.rate = folder, rate
        self.shapes = {name: p.shape for name, p in _model(folder).named_parameters() if name in _TABLES}
        self.training = self.rows(triples, directions, loss)

    def rows(self, triples: np.ndarray, directions: Iterable[str], loss: Loss = softplus) -> dict[str, torch.Tensor]:
        """Return gradients (n, rows, d) of each table, in float64."""
        one_by_one = [
            [_rows(self.folder, tuple(triple), direction, loss) for direction in directions]
            for triple in triples.tolist()
        ]
        grads = torch.stack([torch.stack(terms).sum(0) for terms in one_by_one])
        parts = (self.rate**0.5 * grads.double()).split([shape.numel() for shape in self.shapes.values()], 1)
        found = {
            name: part.view(len(triples), *self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)
        }
        return {ENTITY: torch.cat([found[ENTITY], found[BIAS]], 2), RELATION: found[RELATION]}

    def mean_square(self) -> float:
        """Return the mean ‖g‖² of the triples: the unit of damping, but for rows that a triple reads twice."""
        return sum(float(g.square().sum()) for g in self.training.values()) / len(self.training[ENTITY])

    def scores(self, tests: np.ndarray, sigma: float) -> np.ndarray:
        """Return gᵀPg' of all training triples and test triples, (n, b)."""
        found = torch.zeros(len(self.training[ENTITY]), len(tests), dtype=torch.float64)
        for table, asked in self.rows(tests, ["tail"]).items():
            for i in range(asked.shape[1]):
                found += self.training[table][:, i] @ self._damped(table, i, asked[:, i].T, sigma)
        return found.numpy()

    def self_influences(self, triples: np.ndarray, directions: Iterable[str], sigma: float) -> np.ndarray:
        """Return gᵀPg of triples, whose gradients g are under cross-entropy, (m,)."""
        found = torch.zeros(len(triples), dtype=torch.float64)
        for table, own in self.rows(triples, directions).items():
            for i in range(own.shape[1]):
                found += (own[:, i] * self._damped(table, i, own[:, i].T, sigma).T).sum(1)
        return found.numpy()

    def _damped(self, table: str, row: int, grads: torch.Tensor, sigma: float) -> torch.Tensor:
        known = self.training[table][:, row]
        moment, identity = known.T @ known, torch.eye(known.shape[1], dtype=torch.float64)
        return sigma * torch.linalg.solve(moment + sigma * identity, grads)
