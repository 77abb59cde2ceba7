"""The guide's algorithm in plain PyTorch: one forward and backward pass a training triple, gradients cloned, dot product.

=============  ==================================================================================================
``layer``      gradients of the layer alone, from its precomputed input: the independent oracle of all exact rows
``gaussian``   the same, each gradient multiplied by a dense Gaussian matrix and kept
``all``        gradients of all parameters, from the model itself
``last 2``     the last two *named* parameters, as the guide's own code selects its "last 2 layers"
=============  ==================================================================================================
"""

from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.protocol import Request, Scan, Stored, run, top


def flat(loss: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Return a clone of the gradient of one loss, flattened."""
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    return torch.cat([parameter.grad.clone().flatten() for parameter in parameters if parameter.grad is not None])


class LayerLoop(Scan):
    """The loop over one layer."""

    package = "numpy"

    def gradient(self, samples: Any, i: int) -> Tensor:
        """Return the gradient of one sample."""
        layer = self.problem.layer
        inputs, tail = samples[i : i + 1]
        return flat(layer.losses(layer(inputs), tail).sum(), [layer.fc.weight])

    def scan(self, test: int, count: int, batch_size: int) -> Tensor:
        """Loop over the training triples once, for all test triples."""
        asked = [self.gradient(self.problem.test, i) for i in range(test)]
        influences = torch.empty(test, count)
        for j in range(count):
            gradient = self.gradient(self.problem.train, j)
            for i in range(test):
                influences[i, j] = gradient @ asked[i]
        return influences


class GaussianLoop(Stored):
    """The loop with a dense random projection."""

    package = "numpy"
    gradient = LayerLoop.gradient

    def prepare(self) -> None:
        """Make the matrix."""
        dim = self.request.options["dim"]
        self.matrix = torch.randn(dim, self.problem.layer.fc.weight.numel(), generator=torch.Generator().manual_seed(0))
        self.matrix /= dim**0.5

    def build(self, count: int, batch_size: int) -> None:
        """Project one gradient after the other."""
        self.vectors = torch.stack([self.matrix @ self.gradient(self.problem.train, i) for i in range(count)])

    def bytes(self) -> int:
        """Return the size of the vectors."""
        return self.vectors.numel() * self.vectors.element_size()

    def grow(self, count: int) -> None:
        """Repeat the vectors."""
        self.vectors = self.vectors.repeat(-(-count // len(self.vectors)), 1)[:count]

    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Project the queries and take the largest inner products."""
        queries = torch.stack([self.matrix @ self.gradient(self.problem.test, start + i) for i in range(count)])
        begun = perf_counter()
        return top(queries @ self.vectors.T, top_k), perf_counter() - begun


class ModelLoop(Scan):
    """The loop over the whole model."""

    package = "pykeen"

    def load(self) -> None:
        """Read the model and the triples."""
        self.network = torch.load(self.request.model / "trained_model.pkl", weights_only=False).eval()
        parameters = list(self.network.parameters())
        self.parameters = parameters if self.request.options["parameters"] == "all" else parameters[-2:]
        for parameter in parameters:
            parameter.requires_grad_(any(parameter is p for p in self.parameters))
        self.train, self.test = (np.load(self.request.problem / f"{name}.npy") for name in ("train", "test"))

    def gradient(self, triple: np.ndarray) -> Tensor:
        """Return the gradient of one triple's loss."""
        head, relation, tail = triple.tolist()
        if self.request.task == "linear":
            loss = F.softplus(-self.network.score_hrt(torch.tensor([[head, 2 * relation, tail]])))
        else:
            scores = self.network.score_t(torch.tensor([[head, 2 * relation]]))
            loss = F.cross_entropy(scores, torch.tensor([tail]))
        return flat(loss.sum(), self.parameters)

    def scan(self, test: int, count: int, batch_size: int) -> Tensor:
        """Loop over the training triples once, for all test triples."""
        asked = [self.gradient(triple) for triple in self.test[:test]]
        return torch.stack(
            [torch.stack([gradient @ q for q in asked]) for gradient in map(self.gradient, self.train[:count])], 1
        )


def choose(request: Request) -> LayerLoop | GaussianLoop | ModelLoop:
    """Return the method asked for."""
    return {"layer": LayerLoop, "gaussian": GaussianLoop, "model": ModelLoop}[request.options["method"]](request)


if __name__ == "__main__":
    run(choose)
