"""From triples to gradient terms: one path for training triples and for test triples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Direction
from kgtrace_indexer.checkpoints import Checkpoints
from kgtrace_indexer.layers import Selection
from kgtrace_indexer.losses import Loss, loss_by_name
from kgtrace_indexer.model_file import ModelFile
from kgtrace_indexer.models import ScoringModel, scoring_model
from kgtrace_indexer.terms import Terms
from kgtrace_store.errors import BadRequest, MissingInverseRelations

Directions = Literal["forward", "both"]
"""Which loss terms a training triple has: (h, r) → t alone, or (t, r⁻¹) → h as well."""


def resolve_directions(asked: str | None, inverse_triples: bool) -> Directions:
    """Return the training side's directions: as trained, unless asked otherwise.

    Raises `MissingInverseRelations` for ``both`` on a model without inverse relations.
    """
    if asked is None:
        return "both" if inverse_triples else "forward"
    if asked == "both" and not inverse_triples:
        raise MissingInverseRelations(
            "directions 'both' needs a model trained with inverse triples; this one has none: use forward"
        )
    if asked == "both":
        return "both"
    if asked == "forward":
        return "forward"
    raise BadRequest(f"directions {asked!r} is not one of forward, both")


@dataclass(frozen=True, slots=True)
class Featurizer:
    """Turns triples of original relation ids into gradient terms."""

    model: ScoringModel
    loss: Loss
    selection: Selection
    directions: Directions
    """Of training triples."""
    inverse_triples: bool
    """Whether the relation table holds 2r for r and 2r + 1 for r⁻¹."""

    def training_terms(self, triples: np.ndarray) -> Terms:
        """Return the gradients of training triples (n, 3), one or two loss terms each."""
        return self._terms(triples, ["tail", "head"] if self.directions == "both" else ["tail"])

    def test_terms(self, triples: np.ndarray, direction: Direction) -> Terms:
        """Return the gradients of test triples (n, 3) in the direction explained, one loss term each.

        Raises `MissingInverseRelations` for ``head`` on a model without inverse relations.
        """
        return self._terms(triples, [direction])

    def candidate_scores(self, triples: np.ndarray, direction: Direction) -> Tensor:
        """Return the scores of all entities in place of the tail (or the head), (n, E)."""
        source, relation, _ = self._instance(triples, direction)
        return self.model.tail_scores(source, relation)

    def _terms(self, triples: np.ndarray, directions: list[Direction]) -> Terms:
        instances = [self._instance(triples, direction) for direction in directions]
        source, relation, target = (torch.stack(column, 1).flatten() for column in zip(*instances, strict=True))
        return self.model.terms(
            source, relation, target, directions=len(directions), loss=self.loss, selection=self.selection
        )

    def _instance(self, triples: np.ndarray, direction: Direction) -> tuple[Tensor, Tensor, Tensor]:
        """Return what (source, relation row) → target stands for each triple, (n,) int64 each."""
        ids = torch.as_tensor(np.asarray(triples, np.int64), device=self.model.device)
        head, relation, tail = ids.unbind(1)
        if not self.inverse_triples:
            if direction == "head":
                raise MissingInverseRelations(
                    "direction 'head' needs a model trained with inverse triples; this one has none"
                )
            return head, relation, tail
        return (tail, 2 * relation + 1, head) if direction == "head" else (head, 2 * relation, tail)


def featurizer_for(model: ModelFile, config: Mapping[str, Any], device: torch.device) -> Featurizer:
    """Return the featurizer of a configuration, as a build or a generation's manifest holds it."""
    scoring = scoring_model(model, device)
    if model.checkpoints:
        scoring = Checkpoints(scoring, [(rate, scoring_model(state, device)) for rate, state in model.checkpoints])
    return Featurizer(
        model=scoring,
        loss=loss_by_name(config["loss"]),
        selection=scoring.select(config["layers"]),
        directions=resolve_directions(config["directions"], model.inverse_triples),
        inverse_triples=model.inverse_triples,
    )
