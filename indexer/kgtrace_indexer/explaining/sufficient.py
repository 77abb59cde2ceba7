"""Training triples of an entity that give its prediction to other entities."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from kgtrace_indexer.answers import SufficientSet
from kgtrace_indexer.explaining.completions import Completions
from kgtrace_indexer.explaining.predictor import Predictor
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.query.attribution import known_ids
from kgtrace_store.errors import BadRequest

_LOOKED_AT = 20
"""Entities looked at for each one wanted: where the model says the same of nearly all, few lack the prediction."""


def sufficient(
    predictor: Predictor, completions: Completions, *, max_facts: int, entities: int, seed: int
) -> SufficientSet:
    """Choose training triples greedily. Raises `BadRequest` where no entity lacks the prediction."""
    triple, given = completions.triple, 0 if completions.direction == "tail" else 2
    positions = predictor.touching({int(triple[given])})
    positions = positions[(predictor.training.triples[positions] != triple).any(1)]  # which would say it outright
    facts = np.asarray(predictor.training.triples[positions], np.int64)
    others = [
        _Other(predictor, drawn, facts, int(triple[given]), int(drawn.triple[given]))
        for drawn in islice(_draw(predictor, completions, given, entities, seed), entities)
    ]
    if not others:
        raise BadRequest(
            f"the model ranks this {completions.direction} first with each of up to {_LOOKED_AT * entities} other "
            "entities: there is none that a set could convince"
        )
    before = np.array([predictor.rank(other.completions, other.scores) for other in others])
    chosen, best = list[int](), before
    while len(chosen) < min(max_facts, len(facts)) and (best > 1).any():
        tried = np.stack([other.ranks_with_one_more() for other in others])  # (n, facts)
        tried[:, chosen] = np.inf  # none counts twice
        fact = int((1 / tried).mean(0).argmax())
        if (1 / tried[:, fact]).mean() <= (1 / best).mean():
            break
        chosen.append(fact)
        best = tried[:, fact]
        for other in others:
            other.add(fact)
    return SufficientSet(
        triple=(int(triple[0]), int(triple[1]), int(triple[2])),
        train_index=np.asarray(predictor.training.train_index[positions[chosen]]),
        triples=np.asarray(predictor.training.triples[positions[chosen]]),
        suffices=bool((best == 1).all()),
        candidates=len(positions),
        entities=np.array([other.completions.triple[given] for other in others]),
        scores=np.array([other.completions.scores[completions.target] for other in others]),
        scores_after=np.array([other.scores[completions.target] for other in others]),
        ranks=before,
        ranks_after=best,
    )


def _draw(predictor: Predictor, completions: Completions, given: int, count: int, seed: int) -> Iterator[Completions]:
    """Yield the completions of a triple with other entities in a column, 0 or 2, that lack the triple's target."""
    triple, training = completions.triple, predictor.training
    having = [triple[given], *known_ids(training, triple, "head" if given == 0 else "tail")]
    lacking = np.setdiff1d(np.flatnonzero(training.entities), having)
    order = np.random.default_rng(seed).permutation(lacking)
    for entity in order[: _LOOKED_AT * count]:
        other = triple.copy()
        other[given] = entity
        drawn = predictor.completions(other, completions.direction, completions.wanted)
        if predictor.rank(drawn, drawn.scores) > 1:
            yield drawn


class _Other:
    """Another entity in the place of the given one, and what facts would change of its predictions."""

    def __init__(
        self, predictor: Predictor, completions: Completions, facts: np.ndarray, given: int, entity: int
    ) -> None:
        """`facts` (m, 3) are those of the given entity, and are told of `entity` instead."""
        self.completions = completions
        self.scores = completions.scores.copy()
        """(E,): predicted with the facts that were added."""
        self._rivals = predictor.rivals(completions)
        self._count = len(facts)
        told = facts.copy()
        told[:, [0, 2]] = np.where(facts[:, [0, 2]] == given, entity, facts[:, [0, 2]])
        gradients = RowQueries.of(predictor.attributor.featurizer.training_terms(told)) if len(told) else {}
        tables = gradients.keys() & completions.entity_tables
        moves = predictor.moves({table: gradients[table].only(gradients[table].row == entity) for table in tables})
        # facts are added, not left out
        self._moves = {table: replace(move, grad=-move.grad) for table, move in moves.items()}

    def ranks_with_one_more(self) -> np.ndarray:
        """Return the ranks of the target if each of the facts was added, (m,) float64."""
        target = np.array([self.completions.target])
        own = self.scores[target] + self.completions.changes(self._moves, self._count, target).numpy()  # (m, 1)
        ranks = np.ones(self._count)
        for rivals in self.completions.blocks(self._count, self._rivals):
            scores = self.scores[rivals] + self.completions.changes(self._moves, self._count, rivals).numpy()
            ranks += (scores > own).sum(1) + (scores == own).sum(1) / 2
        return ranks

    def add(self, fact: int) -> None:
        """Add a fact."""
        move = {table: each.only(each.query == fact) for table, each in self._moves.items()}
        alone = {table: replace(each, query=np.zeros_like(each.query)) for table, each in move.items()}
        for entities in self.completions.blocks(1, np.ones(len(self.scores), bool)):
            self.scores[entities] += self.completions.changes(alone, 1, entities)[0].numpy()
