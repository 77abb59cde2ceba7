"""Training triples of an entity that give its prediction to other entities."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
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
_KEPT = 1 << 23
"""Derivatives of scores that are kept in memory of each other entity, 32 MiB; more are computed anew for each step."""
_CONVINCED = 0.9
"""The mean reciprocal rank at which no more facts are added, as in Kelpie."""
_WORTH = 0.1
"""Nor is a fact whose part in what all facts do for the mean log-probability would be smaller."""
_LEARNT = 10.0
"""Takes the place of f where facts are added. Set by hand: trained again with one more, ComplEx on WN18RR has learnt it
as about 30 would say, on FB15k-237 as 3."""


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
    best = unmoved = np.mean([other.log_probability for other in others])
    while len(chosen) < min(max_facts, len(facts)) and (1 / ranks).mean() < _CONVINCED:
        gains = np.sum([other.scores_with_one_more() for other in others], 0)
        gains[chosen] = -np.inf  # none counts twice
        tried = np.argsort(-gains, kind="stable")[: min(_TRIED, len(facts) - len(chosen))]
        standings = np.stack([other.standings(tried) for other in others])  # (n, 2, facts)
        believed = standings[:, 1].mean(0)
        if believed.max() - best <= _WORTH * max(believed.max() - unmoved, 0):
            break
        best, ranks = believed.max(), standings[:, 0, believed.argmax()]
        chosen.append(int(tried[believed.argmax()]))
        for other in others:
            other.add(chosen[-1])
    return SufficientSet(
        triple=(int(triple[0]), int(triple[1]), int(triple[2])),
        train_index=np.asarray(predictor.training.train_index[positions[chosen]]),
        triples=np.asarray(predictor.training.triples[positions[chosen]]),
        suffices=bool((ranks == 1).all()),
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
    if isinstance(entities, int | np.integer):
        lacking = np.setdiff1d(np.flatnonzero(training.entities), having)
        order, count = np.random.default_rng(seed).permutation(lacking)[: _LOOKED_AT * entities], int(entities)
    else:
        order = np.setdiff1d(entities, having)
        count = len(order)
    completed = triple[None].repeat(len(order), 0)
    completed[:, given] = order
    each = (predictor.completions(other, completions.direction, completions.wanted) for other in completed)
    yield from islice((other for other in each if predictor.rank(other, other.scores) > 1), count)


class _Other:
    """Another entity in the place of the given one, and what the model would say if facts were told of it.

    P is up to a factor the inverse Hessian of a least squares problem at the entity's row i, where a told fact z is one
    more observation (recursive least squares): what its score lacks, compared with the fact of the given entity, is
    made up for by a move

        H_i⁻¹ ∇_i s(z) · lacking / (1 + ⟨∇_i s(z), H_i⁻¹ ∇_i s(z)⟩),    H_i⁻¹ = 10/σ² P_i,

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
        self._widths = {table: each.grad.shape[1] for table, each in gradients.items()}
        """By table, how long its rows are: d together, side by side in all that follows."""
        self._slopes = -_side_by_side(gradients, len(facts))
        """(m, d): ∇s of the told facts in the entity's rows."""
        self._steps = -_LEARNT / predictor.factor * _side_by_side(predictor.moves(gradients), len(facts))
        """(m, d): H⁻¹ ∇s."""
        self._move = np.zeros(self._steps.shape[1])
        """(d,): how the facts that were added move the rows."""

    @property
    def log_probability(self) -> float:
        """Before facts are added, of the target among the entities that make no training triple."""
        scores, among = torch.from_numpy(self.completions.scores), self._rivals.copy()
        among[self.completions.target] = True
        return float(scores[self.completions.target] - scores[torch.from_numpy(among)].logsumexp(0))

    def score(self) -> float:
        """Return the score of the target, with the facts that were added."""
        return float(self._target_scores(self._move[None])[0])

    def scores_with_one_more(self) -> np.ndarray:
        """Return the score of the target if each of the facts was added, (m,) float32."""
        return self._target_scores(self._moves(np.arange(len(self._steps))))

    def standings(self, facts: np.ndarray) -> np.ndarray:
        """Return rank and log-probability of the target if each of some facts (f,) was added, (2, f) float64."""
        moves = self._moves(facts)
        own = self._target_scores(moves)[:, None]
        ranks, total = np.ones(len(own)), own[:, 0].astype(np.float64)
        for scores in self._rival_scores(moves):
            ranks += (scores > own).sum(1) + (scores == own).sum(1) / 2
            total = np.logaddexp(total, torch.from_numpy(scores).logsumexp(1).numpy())
        return np.stack([ranks, own[:, 0] - total])

    def add(self, fact: int) -> None:
        """Add a fact."""
        self._move = self._moves(np.array([fact]))[0]

    def _moves(self, facts: np.ndarray) -> np.ndarray:
        """Return the moves with one of some facts (f,) more, (f, d)."""
        slopes, steps = self._slopes[facts], self._steps[facts]
        lacking = self._lacking[facts] - slopes @ self._move
        lengths = np.maximum(lacking, 0) / (1 + np.einsum("fd,fd->f", slopes, steps))
        moves: np.ndarray = self._move + lengths[:, None] * steps
        return moves

    def _target_scores(self, moves: np.ndarray) -> np.ndarray:
        """Return the scores of the target after moves (f, d), (f,) float32."""
        target = np.array([self.completions.target])
        found: np.ndarray = (self.completions.scores[target] + self._changes(moves, target))[:, 0]
        return found

    def _rival_scores(self, moves: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the scores of the rivals after moves (f, d), (f, n) float32 each time."""
        if self._derivatives is not None:
            changes = torch.from_numpy(moves).float() @ self._derivatives
            yield self.completions.scores[self._rivals] + changes.numpy()
            return
        for rivals in self.completions.blocks(len(moves), self._rivals):
            yield self.completions.scores[rivals] + self._changes(moves, rivals)

    @cached_property
    def _derivatives(self) -> torch.Tensor | None:
        """Of the rivals' scores in the rows, (d, n) float32; None where they are too many to keep."""
        width = len(self._move)
        if width * self._rivals.sum() > _KEPT:
            return None
        blocks = self.completions.blocks(width, self._rivals)
        return torch.from_numpy(np.concatenate([self._changes(np.eye(width), rivals) for rivals in blocks], 1))

    def _changes(self, moves: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """Return the changes of the scores of completions (n,) by moves (f, d), (f, n) float32."""
        rows, end, count = dict[str, RowQueries](), 0, len(moves)
        query, row, pairs = np.arange(count), np.full(count, self.entity), np.empty((count, 0), np.int64)
        for table, width in self._widths.items():
            rows[table] = RowQueries(query, row, moves[:, end : end + width], pairs)
            end += width
        changes: np.ndarray = self.completions.changes(rows, count, entities).numpy()
        return changes


def _side_by_side(queries: Mapping[str, RowQueries], count: int) -> np.ndarray:
    """Return the gradients of triples (count,) in one row of each table, (count, d)."""
    parts = [np.zeros((count, 0))]
    for each in queries.values():
        parts.append(np.zeros((count, each.grad.shape[1])))
        parts[-1][each.query] = each.grad
    return np.concatenate(parts, 1)
