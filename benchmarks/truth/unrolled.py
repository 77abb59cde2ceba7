"""How far a linear forecast can get: the derivative of a trained model's outcome in each training triple's weight.

Training is run again and differentiated through, step by step from its end: reverse accumulation through Adam, as in MAGIC
(Ilyas and Engstrom, 2025, https://arxiv.org/abs/2504.16430). A training triple of weight w is a label of w instead of 1
for its (h, r) and t, and for its inverse. That is exact for one seed and small changes of weights, and needs every step
of the training; what looks at the trained model alone can know no more to first order. For ComplEx: ConvE trains with
dropout and batch norms, and in TransE's gradients opposite signs cancel, so that Adam's steps there are of rounding errors.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from benchmarks.truth.graphs import Graph
from benchmarks.truth.training import KnownTails, Recipe, batches, loss_of, untrained

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
"""Adam's β and ε, as torch has them."""
_TOGETHER = 25
"""Outcomes that are traced back together."""


class _Step(NamedTuple):
    """The state before a step, and the rows of `KnownTails.pairs` that it looks at."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    batch: Tensor


class Unrolled:
    """A training whose every step is kept."""

    def __init__(self, graph: Graph, recipe: Recipe, seed: int, weights: Tensor | None = None) -> None:
        """Train in float64; `weights` (n,) of the training triples are 1 otherwise. Raises `ValueError`."""
        if recipe.model != "ComplEx":
            raise ValueError(f"the training of {recipe.model} is not differentiated through")
        self._recipe, self._entities = recipe, len(graph.vocabulary.entities)
        model = untrained(graph, graph.train, recipe, seed)
        tables = [each[0]._embeddings.weight for each in (model.entity_representations, model.relation_representations)]
        self._shapes = [table.shape for table in tables]
        self._known = KnownTails.of(graph.train)
        self._weights = torch.ones(len(graph.train), dtype=torch.float64) if weights is None else weights
        self._steps: list[_Step] = []
        parameters = torch.cat([table.detach().flatten() for table in tables]).double()
        first, second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        for _ in range(recipe.epochs):
            for batch in batches(len(self._known.pairs), recipe.batch):
                self._steps.append(_Step(parameters, first, second, batch))
                gradient = grad(self._loss)(parameters, self._weights_of(batch), batch)
                first, second = self._moments(first, second, gradient)
                parameters = parameters - recipe.rate * self._direction(first, second, len(self._steps))
        self.parameters = parameters
        """(P,) float64: of the entity table, then of the relation table, row by row."""

    def outcomes(self, parameters: Tensor, test: np.ndarray) -> Tensor:
        """Return the logit and the log-probability of the tails of test triples (q, 3), (2, q)."""
        head, relation, tail = torch.from_numpy(test).T
        scores = self._scores(parameters, head, 2 * relation)
        own = scores.gather(1, tail[:, None])[:, 0]
        return torch.stack([own, own - scores.logsumexp(1)])

    def derivatives(self, test: np.ndarray) -> np.ndarray:
        """Return those of `outcomes` in the weights of the training triples, (2, n, q) float64."""
        (rows,) = torch.autograd.functional.jacobian(lambda p: self.outcomes(p, test).flatten(), (self.parameters,))
        found = torch.cat([self._back(each) for each in rows.split(_TOGETHER)])
        return found.view(2, len(test), -1).mT.numpy()

    def _back(self, parameters: Tensor) -> Tensor:
        """Return derivatives (m, n) in the weights, given those in the trained parameters (m, P)."""
        first, second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        found = parameters.new_zeros(len(parameters), len(self._weights))
        for number in range(len(self._steps), 0, -1):
            step = self._steps[number - 1]
            weights = self._weights_of(step.batch)
            gradient = grad(self._loss)(step.parameters, weights, step.batch)
            moments = self._moments(step.first, step.second, gradient)
            by_first, by_second = self._direction_derivatives(*moments, number)
            first = first - self._recipe.rate * by_first * parameters
            second = second - self._recipe.rate * by_second * parameters
            along = (1 - _FIRST) * first + 2 * (1 - _SECOND) * gradient * second
            more, of_weights = vmap(grad(self._slope, argnums=(0, 1)), in_dims=(None, None, 0, None))(
                step.parameters, weights, along, step.batch
            )
            parameters = parameters + more
            first, second = _FIRST * first, _SECOND * second
            found.index_add_(1, self._known.triples[self._known.places(step.batch)[1]], of_weights)
        return found

    def _slope(self, parameters: Tensor, weights: Tensor, along: Tensor, batch: Tensor) -> Tensor:
        """Return the derivative of a batch's loss along a direction (P,)."""
        return grad(self._loss)(parameters, weights, batch) @ along

    def _loss(self, parameters: Tensor, weights: Tensor, batch: Tensor) -> Tensor:
        head, relation = self._known.pairs[batch].T
        row, tail = self._known.of_pairs(batch)
        target = torch.zeros(len(batch), self._entities, dtype=torch.float64).index_put((row, tail), weights)
        return loss_of(self._recipe, self._scores(parameters, head, relation), target)

    def _weights_of(self, batch: Tensor) -> Tensor:
        """Return the weights of a batch's known tails."""
        return self._weights[self._known.triples[self._known.places(batch)[1]]]

    def _scores(self, parameters: Tensor, head: Tensor, relation: Tensor) -> Tensor:
        """Return scores of heads (m,) and rows of the relation table (m,) with all entities as tail, (m, E)."""
        entities, relations = (
            part.view(shape)
            for part, shape in zip(parameters.split([s.numel() for s in self._shapes]), self._shapes, strict=True)
        )
        h, r = entities[head], relations[relation]  # real and imaginary parts in turns
        real, imaginary = (
            h[:, ::2] * r[:, ::2] - h[:, 1::2] * r[:, 1::2],
            h[:, ::2] * r[:, 1::2] + h[:, 1::2] * r[:, ::2],
        )
        return real @ entities[:, ::2].T + imaginary @ entities[:, 1::2].T

    @staticmethod
    def _moments(first: Tensor, second: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _FIRST * first + (1 - _FIRST) * gradient, _SECOND * second + (1 - _SECOND) * gradient**2

    @staticmethod
    def _direction(first: Tensor, second: Tensor, number: int) -> Tensor:
        """Return Adam's step of length 1, the ``number``-th from 1."""
        size = (second / (1 - _SECOND**number)).sqrt() + _EPSILON
        return first / (1 - _FIRST**number) / size

    @staticmethod
    def _direction_derivatives(first: Tensor, second: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the derivatives of `_direction` in both moments, element by element; 0 where there was no gradient."""
        root = (second / (1 - _SECOND**number)).sqrt()
        by_first = 1 / (1 - _FIRST**number) / (root + _EPSILON)
        by_root = -first / (1 - _FIRST**number) / (root + _EPSILON) ** 2
        by_second = torch.where(root > 0, by_root / (2 * root * (1 - _SECOND**number)), 0.0)
        return by_first, by_second
