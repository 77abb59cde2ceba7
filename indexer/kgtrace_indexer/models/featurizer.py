"""From triples to gradient terms: one path for training triples and for test triples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.layers import Selection
from kgtrace_indexer.gradients.losses import (
    Contrast,
    KnownTails,
    Loss,
    OneToAll,
    bce_over_removal,
    loss_by_name,
    removal,
    score_itself,
)
from kgtrace_indexer.gradients.terms import Terms, concatenate, inner
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.checkpoints import Checkpoints, block_of
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.factors import Factors
from kgtrace_indexer.models.log_probability import log_probability_terms
from kgtrace_indexer.models.protocol import (
    FactoredModel,
    ForwardModel,
    ScoringModel,
    head_scores,
    ids_device,
    one_to_all,
    scoring_model,
)
from kgtrace_indexer.names import Direction, Directions, Outcome
from kgtrace_indexer.pieces import in_halves, scan_block, triples_together
from kgtrace_store.errors import BadRequest, MissingInverseRelations

SQUARED_NORM = "squared_norm"
"""Name of the stored array of ‖g‖² under ``removal`` where TracIn is under ``bce``; see `Featurizer.codes`."""

SLOPE = "slope"
"""Name of the stored array of factors that turn each loss term's gradient under ``removal`` into that under ``bce``."""

OF_TWO_LOSSES = (SQUARED_NORM, SLOPE)
"""Arrays of an index whose two scores are of two losses."""

_BATCH_SIZE = 2048
"""Triples whose gradients are computed together, by automatic differentiation."""
_FORWARD_MODE = (64, 4)
"""Training triples from which, and test triples up to which, a pass for each of the latter is faster than gradients."""


def resolve_directions(directions: str | None, inverse_triples: bool) -> Directions:
    """Return the directions of training triples; None stands for the directions of the model's training.

    Raises `MissingInverseRelations` for ``both`` on a model without inverse relations, `BadRequest` for other names.
    """
    if directions is None:
        return "both" if inverse_triples else "forward"
    if directions == "both" and not inverse_triples:
        raise MissingInverseRelations(
            "directions 'both' needs a model trained with inverse triples; this one has none: use forward"
        )
    if directions == "both":
        return "both"
    if directions == "forward":
        return "forward"
    raise BadRequest(f"directions {directions!r} is not one of forward, both")


class Encoder(Protocol):
    """Turns gradients of training triples into arrays; see `kgtrace_indexer.index.codec`.

    Gradients of the same triples come apart: each `Terms` holds other blocks of them, and is in memory alone.
    """

    def encode(self, terms: Terms, slope: Any) -> Any:
        """Return the codes of one `Terms`, for `join`.

        `slope` (n, D) turns the gradients into those for TracIn, of all blocks but embedding rows; None if they are.
        """

    def join(self, codes: Sequence[Any]) -> dict[str, Tensor]:
        """Return the arrays, one row for each triple."""


@dataclass(frozen=True, slots=True)
class Featurizer:
    """Turns triples of original relation ids into gradient terms."""

    model: ScoringModel
    loss: Loss | OneToAll
    selection: Selection
    directions: Directions
    """Of training triples."""
    inverse_triples: bool
    """Whether the relation table holds 2r for r and 2r + 1 for r⁻¹."""
    tracin_loss: Loss | OneToAll | None = None
    """The loss of plain influence where it is another: ``bce``, where `loss` is ``removal``."""
    outcome: Outcome = "logit"
    """What of test triples is explained: `loss`, or else their log-probability."""

    @property
    def concurrent(self) -> bool:
        """Whether several threads may compute gradients at once; automatic differentiation swaps parameters."""
        return all(isinstance(model, ConvE) for model in self._models)

    def batch_size(self, triples: int | None) -> int:
        """Return how many triples are computed together, one checkpoint at a time.

        `triples` is the number for a loss without negatives; None stands for one that suits the model and the device.
        """
        if triples is None:
            widest = max((model.floats for model in self._models if isinstance(model, ConvE)), default=0)
            of_device = partial(triples_together, self.model.device, len(self._training_directions) * widest)
            triples = of_device() if self.concurrent else _BATCH_SIZE
        return self.block(triples, apart=True)

    def block(self, triples: int, *, apart: bool = False) -> int:
        """Return how many triples make about as many gradients as `triples` with one checkpoint and no negatives.

        `apart` says that checkpoints come one at a time, as of `training_terms_apart`.
        """
        checkpoints = 1 if apart else len(self._models)
        instances = self.loss.negatives + 1 if isinstance(self.loss, Contrast) else 1
        return max(1, triples // (checkpoints * instances))

    @property
    def scanned(self) -> int:
        """How many training triples' influences on test triples are computed together."""
        return self.block(scan_block(self.model.device))

    @property
    def plain(self) -> "Featurizer":
        """The featurizer of plain influence."""
        return replace(self, loss=self.tracin_loss or self.loss, tracin_loss=None)

    def plain_terms(self, terms: Terms, triples: np.ndarray, direction: Direction) -> Terms:
        """Return `test_terms` of `plain`, given one's own."""
        if self.tracin_loss is None:
            return terms
        if isinstance(self.model, Checkpoints):  # each has slopes of its own
            return self.plain.test_terms(triples, direction)
        return terms.weighted(bce_over_removal(terms.loss))

    def training_terms(self, triples: np.ndarray) -> Terms:
        """Return the gradients of training triples (n, 3): a loss term for each direction, and for its negatives.

        Raises `DeviceMemoryFull`.
        """
        of_some = partial(self._terms, directions=self._training_directions)
        return concatenate(in_halves(of_some, triples, "training triple"))

    def training_terms_apart(self, triples: np.ndarray) -> Iterator[Terms]:
        """Yield the blocks of `training_terms`, one checkpoint at a time."""
        models = self.model.apart() if isinstance(self.model, Checkpoints) else [self.model]
        for model in models:
            yield replace(self, model=model).training_terms(triples)

    def codes(self, triples: np.ndarray, codec: Encoder) -> dict[str, Tensor]:
        """Encode the gradients of training triples (n, 3), on the model's device.

        With `tracin_loss`, the gradients under ``bce`` are encoded, and the rows under ``removal``; `SQUARED_NORM` (n,)
        is under ``removal``, and `SLOPE` (n, checkpoints · D) is added, checkpoint by checkpoint.

        Raises `DeviceMemoryFull`.
        """
        pieces = in_halves(partial(self._codes, codec=codec), triples, "training triple")
        return pieces[0] if len(pieces) == 1 else {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}

    def _codes(self, triples: np.ndarray, codec: Encoder) -> dict[str, Tensor]:
        codes: list[Any] = []
        slopes: list[Tensor] = []
        for terms in self.training_terms_apart(triples):
            slope = None if self.tracin_loss is None else bce_over_removal(terms.loss).view(len(terms), -1)
            codes.append(codec.encode(terms, slope))
            if slope is not None:
                slopes.append(slope)
        arrays = codec.join(codes)
        return arrays | {SLOPE: torch.cat(slopes, 1)} if slopes else arrays

    def influences(self, triples: np.ndarray, tests: Terms) -> Tensor:
        """Return ⟨∇ℓ, ∇ℓ'⟩ of training triples (n, 3) and test triples, (n, b), on the model's device.

        For many training triples and few test triples a `ForwardModel` does it in forward mode: a pass for each of the
        latter, but no gradients. Raises `DeviceMemoryFull`.
        """
        return torch.cat(in_halves(partial(self._influences, tests=tests), triples, "training triple"))

    def _influences(self, triples: np.ndarray, tests: Terms) -> Tensor:
        model, (least, most) = self.model, _FORWARD_MODE
        passes = len(triples) >= least and len(tests) <= most
        if isinstance(self.loss, OneToAll) or not isinstance(model, ForwardModel) or not passes:
            return inner(self.training_terms(triples), tests)
        *ids, per_triple = self._loss_terms(triples, self._training_directions)
        singles = [tests] if len(tests) == 1 else [tests.triple(i) for i in range(len(tests))]
        columns = [model.influences(*ids, loss=self.loss, selection=self.selection, test=test) for test in singles]
        return torch.stack(columns, 1).view(len(triples), per_triple, len(tests)).sum(1)

    def test_terms(self, triples: np.ndarray, direction: Direction) -> Terms:
        """Return the gradients of test triples (n, 3) in the direction explained alone.

        A model without inverse relations has one score for both directions, s(h, r, t), and one gradient under every
        loss that looks at the triple alone, or at negatives of either side. A loss of all tails' scores says nothing of
        other heads: `MissingInverseRelations` is then raised for ``head``, as for the log-probability.
        """
        if self.outcome == "probability":
            if direction == "head" and not self.inverse_triples:
                raise MissingInverseRelations(
                    "outcome 'probability' for direction 'head' needs a model trained with inverse triples, and this "
                    "one has none: ask for outcome 'logit', or direction 'tail'"
                )
            ids = self._columns(self._instances(triples, direction))
            return log_probability_terms(self.model, *ids, self.selection)
        if direction == "head" and not self.inverse_triples and isinstance(self.loss, OneToAll):
            raise MissingInverseRelations(
                "direction 'head' under a loss of all tails' scores needs a model trained with inverse triples, and "
                "this one has none: ask for direction 'tail', or build the index with another loss, such as removal"
            )
        return self._terms(triples, [direction])

    def candidate_scores(self, triples: np.ndarray, direction: Direction) -> Tensor:
        """Return the scores of all entities in place of the tail (or the head), (n, E)."""
        source, relation, target = self._columns(self._instances(triples, direction))
        if direction == "head" and not self.inverse_triples:
            return head_scores(self.model, relation, target)
        return self.model.tail_scores(source, relation)

    def score_terms(self, triples: np.ndarray, direction: Direction) -> Terms:
        """Return the gradients of the scores of triples (n, 3) themselves, in one direction, without any loss."""
        return replace(self, loss=score_itself).test_terms(triples, direction)

    def factors(self, triple: np.ndarray, direction: Direction) -> list[Factors]:
        """Return the factors of all scores of one triple's completions (3,), of each checkpoint; none if it lacks them.

        They go with `score_terms`: weighted by √η, and named after their checkpoint.
        """
        models = [model for model in self._models if isinstance(model, FactoredModel)]
        if len(models) < len(self._models) or (direction == "head" and not self.inverse_triples):
            return []
        source, relation, _ = self._columns(self._instances(triple[None], direction))
        factors = [model.factors(source, relation, self.selection) for model in models]
        if not isinstance(self.model, Checkpoints):
            return factors
        return [
            one.scaled(sqrt(rate), partial(block_of, checkpoint=i))
            for i, (one, (rate, _)) in enumerate(zip(factors, self.model.weighted, strict=True))
        ]

    @property
    def _models(self) -> list[ScoringModel]:
        """The models whose gradients count: of each checkpoint, or the model itself."""
        return [model for _, model in self.model.weighted] if isinstance(self.model, Checkpoints) else [self.model]

    @property
    def _training_directions(self) -> list[Direction]:
        return ["tail", "head"] if self.directions == "both" else ["tail"]

    def _terms(self, triples: np.ndarray, directions: list[Direction]) -> Terms:
        *ids, per_triple = self._loss_terms(triples, directions)
        if isinstance(self.loss, OneToAll):
            terms = one_to_all(self.model).one_to_all_terms
            return terms(*ids, per_triple=per_triple, loss=self.loss, selection=self.selection)
        return self.model.terms(*ids, per_triple=per_triple, loss=self.loss, selection=self.selection)

    def _loss_terms(self, triples: np.ndarray, directions: list[Direction]) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return sources, relation rows and targets of all loss terms, negatives included, (n · D,) each, and D."""
        instances = np.stack([self._instances(triples, direction) for direction in directions], 1).reshape(-1, 3)
        if not isinstance(self.loss, Contrast):
            return *self._columns(instances), len(directions)
        return *self._columns(self.loss.with_negatives(instances)), len(directions) * (self.loss.negatives + 1)

    def _instances(self, triples: np.ndarray, direction: Direction) -> np.ndarray:
        """Return (source, relation row, target) of each triple in a direction, (n, 3).

        Without inverse relations they are (h, r, t) in both.
        """
        ids = np.asarray(triples, np.int64)
        if not self.inverse_triples:
            return ids
        return ids * [1, 2, 1] if direction == "tail" else ids[:, ::-1] * [1, 2, 1] + [0, 1, 0]

    def _columns(self, instances: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        source, relation, target = torch.as_tensor(instances, device=ids_device(self.model)).unbind(1)
        return source, relation, target


def featurizer_for(
    model: ModelFile, config: Mapping[str, Any], device: torch.device, training: np.ndarray | None = None
) -> Featurizer:
    """Return the featurizer of a configuration, as a build or a generation's manifest holds it.

    `training` holds all training triples (n, 3): ``bce-kvsall`` labels their tails.

    Raises `UnsupportedModel` for a loss that the model's score does not allow, `BadRequest` for an unknown one.
    """

    def known() -> KnownTails:
        if training is None:
            raise BadRequest(f"loss {config['loss']} labels all known tails, and there are no training triples")
        return KnownTails.of(training, model.inverse_triples, device)

    scoring = scoring_model(model, device)
    if model.checkpoints:
        scoring = Checkpoints(scoring, [(rate, scoring_model(state, device)) for rate, state in model.checkpoints])
    loss, tracin_loss = (
        loss_by_name(
            name,
            label_smoothing=config.get("label_smoothing", 0.0),
            negatives=config.get("negatives"),
            seed=config.get("seed", 0),
            entities=model.num_entities,
            trained_with=model.loss,
            known=known,
        )
        for name in (config["loss"], config.get("tracin_loss", config["loss"]))
    )
    featurizer = Featurizer(
        model=scoring,
        loss=loss,
        selection=scoring.select(config["layers"]),
        directions=resolve_directions(config["directions"], model.inverse_triples),
        inverse_triples=model.inverse_triples,
        tracin_loss=tracin_loss if loss is removal and tracin_loss is not removal else None,
    )
    if isinstance(loss, OneToAll):
        with torch.inference_mode():
            featurizer.training_terms(np.zeros((1, 3), np.int64))  # raises if the model's score does not allow it
    return featurizer
