"""Training triples of an entity that give its prediction to other entities."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch

from kgtrace_indexer.answers import SufficientSet
from kgtrace_indexer.explaining.completions import Completions
from kgtrace_indexer.explaining.predictor import Predictor
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.query.attribution import known_ids
from kgtrace_store.errors import BadRequest

_LOOKED_AT = 20
"""Entities looked at for each one wanted: where the model says the same of nearly all, few lack the prediction."""

_TRIED = 64
"""Facts whose ranks are computed for each that is added: those with which the target's score is highest."""
_CONVINCED = 0.9
"""The mean reciprocal rank at which no more facts are added, as in Kelpie."""


def sufficient(
    predictor: Predictor, completions: Completions, *, max_facts: int, entities: int | Sequence[int], seed: int
) -> SufficientSet:
    """Choose training triples greedily. Raises `BadRequest` where no entity lacks the prediction."""
    triple, given = completions.triple, 0 if completions.direction == "tail" else 2
    positions = predictor.touching({int(triple[given])})
    positions = positions[(predictor.training.triples[positions] != triple).any(1)]  # which would say it outright
    facts = np.asarray(predictor.training.triples[positions], np.int64)
    drawn = _unconvinced(predictor, completions, given, entities, seed)
    others = [_Other(predictor, each, facts, int(triple[given])) for each in drawn]
    if not others:
        raise BadRequest(
            "there is no other entity that a set could convince: each that was looked at has the triple already, or "
            f"the model ranks this {completions.direction} first with it"
        )
    before = np.array([predictor.rank(other.completions, other.completions.scores) for other in others])
    chosen, ranks = list[int](), before
    best = np.mean([other.log_probability for other in others])
    while len(chosen) < min(max_facts, len(facts)) and (1 / ranks).mean() < _CONVINCED:
        gains = np.sum([other.scores_with_one_more() for other in others], 0)
        gains[chosen] = -np.inf  # none counts twice
        tried = np.argsort(-gains, kind="stable")[: min(_TRIED, len(facts) - len(chosen))]
        standings = np.stack([other.standings(tried) for other in others])  # (n, 2, facts)
        believed = standings[:, 1].mean(0)
        if believed.max() <= best:
            break
        best, ranks = believed.max(), standings[:, 0, believed.argmax()]
        chosen.append(int(tried[believed.argmax()]))
        for other in others:
            other.add(chosen[-1])
    return SufficientSet(
        triple=(int(triple[0]), int(triple[1]), int(triple[2])),
        train_index=np.asarray(predictor.training.train_index[positions[chosen]]),
        triples=np.asarray(predictor.training.triples[positions[chosen]]),
        suffices=bool((best == 1).all()),
        candidates=len(positions),
        entities=np.array([other.entity for other in others]),
        scores=np.array([other.completions.scores[completions.target] for other in others]),
        scores_after=np.array([other.score() for other in others]),
        ranks=before,
        ranks_after=ranks,
    )


def _unconvinced(
    predictor: Predictor, completions: Completions, given: int, entities: int | Sequence[int], seed: int
) -> Iterator[Completions]:
    """Yield the completions of a triple with other entities in a column, 0 or 2, that lack the triple's target.

    They are so many, drawn at random, or those of given ones.
    """
    triple, training = completions.triple, predictor.training
    having = [triple[given], *known_ids(training, triple, "head" if given == 0 else "tail")]
    if isinstance(entities, int):
        lacking = np.setdiff1d(np.flatnonzero(training.entities), having)
        order = np.random.default_rng(seed).permutation(lacking)[: _LOOKED_AT * entities]
    else:
        order = np.setdiff1d(entities, having)
    completed = triple[None].repeat(len(order), 0)
    completed[:, given] = order
    each = (predictor.completions(other, completions.direction, completions.wanted) for other in completed)
    yield from islice(
        (other for other in each if predictor.rank(other, other.scores) > 1),
        entities if isinstance(entities, int) else None,
    )


class _Other:
    """Another entity in the place of the given one, and what the model would say if facts were told of it.

    The changes of `Predictor` are those of a least squares problem at the entity's row i, whose inverse Hessian is
    f/σ² P_i. A told fact z is one more observation there (recursive least squares): what its score lacks, compared with
    the fact of the given entity, is made up for by a move

        f/σ² P_i ∇_i s(z) · lacking / (1 + f/σ² ⟨∇_i s(z), P_i ∇_i s(z)⟩),

    or not at all where it lacks nothing. What one fact moves counts for those after it.
    """

    def __init__(self, predictor: Predictor, completions: Completions, facts: np.ndarray, given: int) -> None:
        """`facts` (m, 3) are those of the entity `given`."""
        self.completions, self._rivals = completions, predictor.rivals(completions)
        self.entity = int(completions.triple[0 if completions.direction == "tail" else 2])
        told = facts.copy()
        told[:, [0, 2]] = np.where(facts[:, [0, 2]] == given, self.entity, facts[:, [0, 2]])
        terms, known = (predictor.attributor.featurizer.training_terms(each) for each in (told, facts))
        self._lacking = (terms.losses() - known.losses()).cpu().numpy().astype(np.float64)
        """(m,): by how much less the model believes the facts of the entity than of the given one."""
        gradients = {table: each for table, each in RowQueries.of(terms).items() if table in completions.entity_tables}
        gradients = {table: each.only(each.row == self.entity) for table, each in gradients.items()}
        steps = predictor.moves(gradients)
        self._slopes = {table: -_dense(each, len(facts)) for table, each in gradients.items()}
        """By table, ∇s of the told facts in the entity's row, (m, d)."""
        self._steps = {table: -_dense(each, len(facts)) for table, each in steps.items()}
        """By table, f/σ² P ∇s, (m, d)."""
        self._move = {table: np.zeros(step.shape[1]) for table, step in self._steps.items()}
        """By table, how the facts that were added move the row, (d,)."""

    def score(self) -> float:
        """Return the score of the target, with the facts that were added."""
        return float(self._scores({table: move[None] for table, move in self._move.items()}, self._target)[0, 0])

    def scores_with_one_more(self) -> np.ndarray:
        """Return the score of the target if each of the facts was added, (m,) float32."""
        return self._scores(self._moves(slice(None)), self._target)[:, 0]

    @property
    def log_probability(self) -> float:
        """Before facts are added, of the target among the entities that make no training triple."""
        scores, among = torch.from_numpy(self.completions.scores), self._rivals.copy()
        among[self.completions.target] = True
        return float(scores[self.completions.target] - scores[torch.from_numpy(among)].logsumexp(0))

    def standings(self, facts: np.ndarray) -> np.ndarray:
        """Return rank and log-probability of the target if each of some facts (f,) was added, (2, f) float64."""
        moves = self._moves(facts)
        own = self._scores(moves, self._target)
        ranks, total = np.ones(len(own)), own[:, 0].astype(np.float64)
        for rivals in self.completions.blocks(len(own), self._rivals):
            scores = self._scores(moves, rivals)
            ranks += (scores > own).sum(1) + (scores == own).sum(1) / 2
            total = np.logaddexp(total, torch.from_numpy(scores).logsumexp(1).numpy())
        return np.stack([ranks, own[:, 0] - total])

    def add(self, fact: int) -> None:
        """Add a fact."""
        self._move = {table: moves[0] for table, moves in self._moves(np.array([fact])).items()}

    @property
    def _target(self) -> np.ndarray:
        return np.array([self.completions.target])

    def _moves(self, facts: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Return the moves with one of some facts (f,) more, by table (f, d)."""
        slopes, steps = ({table: all_[facts] for table, all_ in each.items()} for each in (self._slopes, self._steps))
        lacking = self._lacking[facts] - sum(slope @ self._move[table] for table, slope in slopes.items())
        reach = sum(np.einsum("fd,fd->f", slope, steps[table]) for table, slope in slopes.items())
        lengths = np.maximum(lacking, 0) / (1 + reach)
        return {table: self._move[table] + lengths[:, None] * step for table, step in steps.items()}

    def _scores(self, moves: Mapping[str, np.ndarray], entities: np.ndarray) -> np.ndarray:
        """Return the scores of completions (n,) after moves (f, d) of the row, (f, n) float32."""
        count = len(next(iter(moves.values())))
        rows = {
            table: RowQueries(np.arange(count), np.full(count, self.entity), move, np.empty((count, 0), np.int64))
            for table, move in moves.items()
        }
        found: np.ndarray = self.completions.scores[entities] + self.completions.changes(rows, count, entities).numpy()
        return found


def _dense(queries: RowQueries, count: int) -> np.ndarray:
    """Return the gradients of triples in one row, (count, d)."""
    found = np.zeros((count, queries.grad.shape[1]))
    found[queries.query] = queries.grad
    return found
