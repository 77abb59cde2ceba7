"""Predicted changes of scores: what a Newton step of training does when training triples are left out.

Under the preconditioned score a training triple z pulls at the rows i of embedding tables with the gradient g_i(z) of
its loss −s(z). Without it the rows settle elsewhere: by a Newton step (Koh and Liang, 2017) row i moves along
P_i g_i(z), and the moves of a set of triples add up. So one product with P for each row that a set reads predicts the
scores of all completions of a triple at once:

    Δs(h, r, e) = f/σ² · Σ_i ⟨∇_i s(h, r, e), P_i Σ_z g_i(z)⟩ = −f/σ² · Σ_z ⟨g(z), P g(h, r, e)⟩,

the sum of the influences that `Attributor.query` gives, times a factor f that retraining tells
(`kgtrace_indexer.explaining.calibration`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from math import isclose

import numpy as np

from kgtrace_indexer.explaining.calibration import BY_INTERACTION, LOSSES, UNCALIBRATED, Calibration
from kgtrace_indexer.explaining.completions import Completions, Moves
from kgtrace_indexer.index.preconditioner import Preconditioner
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.models.checkpoints import Checkpoints, checkpoint_of
from kgtrace_indexer.names import Damping, Direction
from kgtrace_indexer.query.attribution import filtered_ranks, known_ids
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_indexer.query.checks import checked
from kgtrace_store.errors import BadRequest


class Predictor:
    """Predicts scores with an index whose preconditioned score is of the loss ``removal``."""

    def __init__(self, attributor: Attributor) -> None:
        self.attributor = attributor
        self.training = attributor.training

    @cached_property
    def preconditioner(self) -> Preconditioner:
        """P. Raises `BadRequest` for an index whose influences are no changes of one model's scores."""
        loss = self.attributor.loss("preconditioned")
        if loss != "removal":
            raise BadRequest(
                f"the preconditioned score of this index is of the loss {loss}, and sets are explained by changes of "
                "the score itself: build the index without --loss"
            )
        if not isclose(sum(self._weights), 1):
            raise BadRequest(
                f"this index sums influences over checkpoints of weights {', '.join(f'{w:g}' for w in self._weights)}, "
                "and sets are explained by changes of one model's score, or by the mean of several models: build an "
                "index without checkpoints"
            )
        return self.attributor.files.preconditioner()

    @property
    def calibration(self) -> Calibration | None:
        """What retraining said of such models; None for a kind of model, of loss, or of index that was not tried."""
        return self._tried if self.attributor.manifest.provenance.get("loss") in LOSSES else None

    @cached_property
    def _tried(self) -> Calibration | None:
        """The same of models that were trained with any loss: of the factor there is nothing better."""
        configuration = self.attributor.manifest.configuration
        whole = list(configuration["layers"]) == ["all"] and configuration.get("sample_rate", 1.0) == 1.0
        as_tried = whole and self._damping == "auto" and self.attributor.featurizer.directions == "both"
        if not as_tried or len(self._weights) > 1:
            return None
        return BY_INTERACTION.get(str(self.attributor.manifest.provenance.get("interaction")))

    @property
    def factor(self) -> float:
        """f."""
        return UNCALIBRATED if self._tried is None else self._tried.factor

    @cached_property
    def _weights(self) -> Sequence[float]:
        """Of the models whose predicted changes are added: 1/C of each of C models of other seeds."""
        model = self.attributor.featurizer.model
        return [weight for weight, _ in model.weighted] if isinstance(model, Checkpoints) else [1.0]

    def _scale(self, table: str) -> float:
        """Return f/σ² of a table; σ² holds the weight of its model, as all gradients hold the root of it."""
        weight = self._weights[checkpoint_of(table)]
        return self.factor * weight / self.preconditioner.sigma(table, self._damping)

    @property
    def _damping(self) -> Damping:
        return self.attributor.manifest.configuration["damping"] or "auto"

    def completions(
        self, triple: np.ndarray, direction: Direction, wanted: Callable[[], bool] = lambda: True
    ) -> Completions:
        """Return the completions of a triple (3,). Raises `BadRequest` and `IdOutOfRange`."""
        ids = checked(np.asarray(triple)[None], self.attributor.vocabulary)[0]
        return Completions(self.attributor.featurizer, ids.astype(np.int64), direction, wanted)

    def touching(self, entities: Collection[int]) -> np.ndarray:
        """Return the places of the training triples that have one of some entities, (c,) int64."""
        heads, tails = self.training.triples[:, 0], self.training.triples[:, 2]
        return np.flatnonzero(np.logical_or.reduce([(heads == entity) | (tails == entity) for entity in entities]))

    def gradients(self, positions: np.ndarray) -> Moves:
        """Return the stored gradients of training triples at places (m,) among the indexed ones."""
        return self.preconditioner.rows.queries(positions)

    def moves(self, gradients: Moves) -> Moves:
        """Return how rows move if training triples of these gradients of −s are left out: f/σ² P g."""
        changed = self.preconditioner.changed(gradients, self._damping)
        return {table: replace(queries, grad=self._scale(table) * queries.grad) for table, queries in changed.items()}

    def longest(self, table: str, grads: np.ndarray) -> np.ndarray:
        """Return upper bounds of the norms of the moves of gradients (m, d), (m,) float64: P is at most I."""
        norms: np.ndarray = np.linalg.norm(grads, axis=1)
        return self._scale(table) * norms

    def own_changes(self, completions: Completions, positions: np.ndarray) -> np.ndarray:
        """Return what each training triple (m,) alone changes in the score of the target, (m,) float64."""
        target = self.attributor.featurizer.score_terms(completions.triple[None], completions.direction)
        moves, lists = self.moves(RowQueries.of(target)), self.preconditioner.rows
        return lists.influences(moves, np.zeros(len(positions), np.int64), positions)

    def rank(self, completions: Completions, scores: np.ndarray) -> float:
        """Return the filtered rank of the target, given scores (E,) of all completions."""
        known = np.flatnonzero(~self.rivals(completions))
        return float(filtered_ranks(scores[None], np.array([completions.target]), np.zeros_like(known), known)[0])

    def rivals(self, completions: Completions) -> np.ndarray:
        """Return which entities count beside the target, (E,) bool: those that make no training triple."""
        rivals = np.ones(len(completions.scores), bool)
        rivals[known_ids(self.training, completions.triple, completions.direction)] = False
        rivals[completions.target] = False
        return rivals
