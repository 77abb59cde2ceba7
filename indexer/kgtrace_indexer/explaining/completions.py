"""Changes of the scores of all completions of a triple, when rows of embedding tables move a little."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Rows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.models.factors import Factors
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.names import Direction
from kgtrace_store.errors import Abandoned

Moves = Mapping[str, RowQueries]
"""By table, how rows move: each of c moves has a vector for every row that it touches."""

BLOCK = 1 << 14
"""Completions whose scores are looked at together."""

CHANGES = 1 << 23
"""Changes of scores that are in memory together: 32 MiB."""


class Completions:
    """The completions of one triple: (h, r, e) for every entity e or, with direction ``head``, (e, r, t)."""

    def __init__(
        self, featurizer: Featurizer, triple: np.ndarray, direction: Direction, wanted: Callable[[], bool]
    ) -> None:
        """`triple` is (3,) int64; `wanted` says whether anybody waits for an answer."""
        self._featurizer = featurizer
        self.triple = triple
        self.direction = direction
        self.wanted = wanted
        self._column = 2 if direction == "tail" else 0
        self.target = int(triple[self._column])
        """The triple's own entity in the place that is completed."""

    @cached_property
    def scores(self) -> np.ndarray:
        """The model's scores, (E,) float32."""
        return self._featurizer.candidate_scores(self.triple[None], self.direction)[0].cpu().numpy()

    def blocks(self, count: int, among: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the entities of a mask (E,), (n,) int64 each, a block for which `count` moves make at most `CHANGES`.

        Raises `Abandoned` once nobody waits for an answer.
        """
        entities, size = np.flatnonzero(among), min(BLOCK, max(1, CHANGES // max(1, count)))
        for start in range(0, len(entities), size):
            if not self.wanted():
                raise Abandoned(f"the explanation of {self.triple.tolist()} was given up")
            yield entities[start : start + size]

    def changes(self, moves: Moves, count: int, entities: np.ndarray) -> Tensor:
        """Return what c = `count` moves change in the scores of completions (n,), to first order: ⟨∇s, move⟩.

        (c, n) float32.
        """
        change = torch.zeros(count, len(entities))
        for factors in self._factors:
            x, tails = torch.zeros(count, factors.tails.shape[1]), factors.tails.cpu()
            for table, uses in factors.rows.items():
                _add(x, uses, moves.get(table))
            change += x @ (tails if len(entities) == len(tails) else tails[entities]).T  # (c, k) @ (k, n)
        for table, uses in self._gradients(entities).items():
            _add(change, uses, moves.get(table))
        return change

    def norms(self, entities: np.ndarray) -> np.ndarray:
        """Return upper bounds of the norms of the gradients of completions (n,) in the rows of their entities, (n,)."""
        squares = np.zeros(len(entities))
        for table, uses in self._gradients(entities).items():
            if table in self.entity_tables:
                squares += sum(use.grad.square().sum(1).cpu().numpy() for use in uses)
        return np.sqrt(squares)

    @cached_property
    def entity_tables(self) -> Collection[str]:
        """The tables that have a row for each entity, whose number is the entity's id."""
        relation = self.triple[1]
        terms = self._featurizer.score_terms(np.array([[0, relation, 0], [1, relation, 1]]), self.direction)
        return [table for table, uses in terms.rows.items() if bool((uses[0].index[0] != uses[0].index[1]).any())]

    @cached_property
    def target_rows(self) -> Mapping[str, np.ndarray]:
        """By table, the rows that the score of the target reads."""
        terms = self._featurizer.score_terms(self.triple[None], self.direction)
        return {table: queries.row for table, queries in RowQueries.of(terms).items()}

    @cached_property
    def _factors(self) -> list[Factors]:
        return self._featurizer.factors(self.triple, self.direction)

    def _gradients(self, entities: np.ndarray) -> Mapping[str, Sequence[Rows]]:
        """Return the gradients of the scores of completions (n,); with factors, those in their own rows alone."""
        if self._factors:
            index = torch.from_numpy(entities)
            own = {table: grad for factors in self._factors for table, grad in factors.own.items()}
            return {table: [Rows(index, grad.expand(len(index), -1))] for table, grad in own.items()}
        completed = np.repeat(self.triple[None], len(entities), 0)
        completed[:, self._column] = entities
        return self._featurizer.score_terms(completed, self.direction).rows


def _add(change: Tensor, uses: Sequence[Rows], moves: RowQueries | None) -> None:
    """Add, to changes (c, n), ⟨g, move⟩ for the gradients g of n numbers in the rows that they read."""
    if moves is None:
        return
    for use in uses:
        index, grad = use.index.cpu().numpy(), use.grad.cpu()
        if (index == index[:1]).all():  # the head, or the relation, that all completions share
            pairs = np.flatnonzero(moves.row == index[0])
            change[moves.query[pairs]] += torch.from_numpy(moves.grad[pairs]).float() @ grad.T
            continue
        order = np.argsort(index, kind="stable")
        first, end = (np.searchsorted(index[order], moves.row, side) for side in ("left", "right"))
        counts = end - first
        pair = np.arange(len(first)).repeat(counts)
        place = order[np.arange(len(pair)) + (first - np.cumsum(counts) + counts)[pair]]
        products = torch.from_numpy(np.einsum("kd,kd->k", moves.grad[pair], grad[torch.from_numpy(place)].numpy()))
        at = torch.from_numpy(moves.query[pair]), torch.from_numpy(place)
        change.index_put_(at, products.float(), accumulate=True)
