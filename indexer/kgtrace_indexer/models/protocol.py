"""The protocols of models that kgtrace can explain, and the registry that puts a model file on a device."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kgtrace_indexer.gradients.layers import NO_PARAMETERS, Selection
from kgtrace_indexer.gradients.losses import CONTRAST, ONE_TO_ALL, OWN_SCORE, Loss, OneToAll, score_itself
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.inputs.frameworks.described import SCORE
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.factors import Factors
from kgtrace_indexer.models.pykeen import pykeen_model
from kgtrace_indexer.models.pykeen_interactions import INTERACTIONS
from kgtrace_indexer.models.table_scores import table_score_model
from kgtrace_store.errors import BadRequest, UnsupportedModel

_HEADS = 2048
"""Heads scored at a time, of models that score them one by one: a forward pass each, as in a full scan."""


class ScoringModel(Protocol):
    """A trained model that scores (h, r) → t and gives the gradient of a loss of that score.

    Relation rows are those of the model's own tables: with inverse triples, 2r for relation r and 2r + 1 for its
    inverse. Every sample must get the same result in any batch.
    """

    @property
    def device(self) -> torch.device:
        """Where results are, and tensors passed in must be, but for a model's `ids_device`."""

    def select(self, layers: Sequence[str]) -> Selection:
        """Resolve ``--layers``; raise `BadRequest` for layers that this model lacks."""

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: Loss, selection: Selection
    ) -> Terms:
        """Return the gradients of m loss terms ℓ(score(h, r, t)).

        It is called in inference mode; results must not require a gradient.

        Parameters
        ----------
        head, relation, tail
            (m,) int64 each; `relation` holds rows of the relation table.
        per_triple
            How many consecutive loss terms make up a triple: to be passed on to `Terms`.
        loss
            Maps scores (m,) to losses and slopes dℓ/ds, (m,) each. The loss terms of a triple must be passed to it
            together: some losses compare their scores.
        selection
            The parameters whose gradients count; blocks of others must be left out.

        The tables of `Terms.rows` bear the names of two-dimensional tensors of the `ModelFile`.
        """

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        """Return the scores of all entities as tail, (m, E), for heads (m,) and relation rows (m,)."""


@runtime_checkable
class OneToAllModel(Protocol):
    """A `ScoringModel` that also gives gradients of losses of all tails' scores."""

    def one_to_all_terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: OneToAll, selection: Selection
    ) -> Terms:
        """Return the gradients of m loss terms ℓ(score(h, r, ·)), as `ScoringModel.terms` does of ℓ(score(h, r, t)).

        The score must be linear in the tail's row, s_e = ⟨x(h, r), row_e⟩. The tail's table then has the gradient
        u ⊗ x, a `Spread` with slopes u, and all other parameters have the gradient of the score at the pseudo-row
        Σ u_e row_e: eq. (7) of ``docs/how-it-works.md``. Raises `UnsupportedModel` for other scores.
        """


@runtime_checkable
class ForwardModel(Protocol):
    """A `ScoringModel` that also gives inner products of gradients in forward mode, without the gradients."""

    def influences(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, loss: Loss, selection: Selection, test: Terms
    ) -> Tensor:
        """Return ⟨∇ℓ, g'⟩ of loss terms, as `ScoringModel.terms` has them, and one test triple's gradient g', (m,).

        `head`, `relation` and `tail` are (m,) int64, `test` has length 1.
        """


@runtime_checkable
class FactoredModel(Protocol):
    """A `ScoringModel` whose scores of one (h, r) are cheap once a vector x(h, r) is known, for all tails together."""

    def factors(self, head: Tensor, relation: Tensor, selection: Selection) -> Factors:
        """Return the gradients of all tails' scores in the selected tables, for one head and relation row (1,)."""


@runtime_checkable
class HeadScoringModel(Protocol):
    """A `ScoringModel` that scores all entities as head faster than `terms` does."""

    def head_scores(self, relation: Tensor, tail: Tensor) -> Tensor:
        """Return s(e, r, t) of all entities e, (m, E), for relation rows (m,) and tails (m,)."""


def ids_device(model: ScoringModel) -> torch.device:
    """Return where ids that are passed to a model should be: its `device`, unless it has an `ids_device`."""
    return getattr(model, "ids_device", model.device)


def head_scores(model: ScoringModel, relation: Tensor, tail: Tensor) -> Tensor:
    """Return the scores of all entities as head, (m, E), for relation rows (m,) and tails (m,), of any model.

    They are the scores s(e, r, t) of single triples, whose gradients `terms` gives: a model without inverse relations
    has no other rows that predict heads.
    """
    if isinstance(model, HeadScoringModel):
        return model.head_scores(relation, tail)
    entities = model.tail_scores(tail[:1], relation[:1]).shape[1]
    pairs = torch.arange(len(tail) * entities, device=tail.device)
    scores = []
    for batch in pairs.split(_HEADS):
        query, head = batch // entities, batch % entities
        ids = head, relation[query], tail[query]
        scores.append(model.terms(*ids, per_triple=1, loss=score_itself, selection=NO_PARAMETERS).loss)
    return torch.cat(scores).view(len(tail), entities)


def one_to_all(model: ScoringModel) -> OneToAllModel:
    """Return the model; raise `UnsupportedModel` if it gives no gradients of losses of all tails' scores."""
    if not isinstance(model, OneToAllModel):
        raise UnsupportedModel(
            f"{type(model).__name__} has no one_to_all_terms, which losses over all tails ({', '.join(ONE_TO_ALL)}) "
            f"need; losses that work: {', '.join([*OWN_SCORE, *CONTRAST])}"
        )
    return model


ModelFactory = Callable[[ModelFile, torch.device], ScoringModel]
"""Puts a model on a device."""

_CHECKED = 4
"""Triples on which a registered model is checked."""

_CONTRACT = (
    "with heads and relations (m, 1, ...) and tails (1, n, ...) a score must be (m, n): count dimensions from the "
    "last, dim=-1"
)

ENTRY_POINTS = "kgtrace.models"
"""Group of entry points that installed packages offer factories under, named after their interactions."""

_REGISTERED: dict[str, ModelFactory] = {}


def register_model(interaction: str, factory: ModelFactory) -> None:
    """Let `factory` compute all model files of this `interaction`, even if kgtrace has a model of the same name.

    The process that builds, and every process that opens the index, registers the same factory. An installed package
    needs no call: its entry points in `ENTRY_POINTS` are looked up by name.
    """
    _REGISTERED[interaction] = factory


def scoring_model(model: ModelFile, device: torch.device) -> ScoringModel:
    """Put a model on a device; raise `UnsupportedModel` for one that kgtrace cannot explain.

    ConvE has a closed form of its own; all other models, and a ConvE with normalizers or untrained parameters, go
    through automatic differentiation. Registered models are checked: `tail_scores` must agree with the scores of single
    triples.
    """
    if model.interaction in _REGISTERED:
        return _checked(_REGISTERED[model.interaction](model, device), model)
    for offered in entry_points(group=ENTRY_POINTS, name=model.interaction):
        return _checked(offered.load()(model, device), model)
    if model.interaction == "ConvE" and not any(map(_needs_autograd, model.modules.values())):
        return ConvE(model, device)
    if SCORE in model.modules:
        return table_score_model(model, device)
    if model.interaction not in INTERACTIONS:
        raise UnsupportedModel(
            f"no model of the name {model.interaction} is registered here, and interaction {model.interaction} is not "
            f"supported; supported: {', '.join(sorted(INTERACTIONS))}. For a model of your own call "
            f"register_model({model.interaction!r}, factory) in this process, or install a package that offers it as "
            f"an entry point of {ENTRY_POINTS}"
        )
    return pykeen_model(model, device)


def _checked(scoring: ScoringModel, model: ModelFile) -> ScoringModel:
    """Return a registered model; raise `UnsupportedModel` if `tail_scores` and `terms` disagree on a few triples."""
    count = min(_CHECKED, model.num_entities)
    rows = model.num_relations * (2 if model.inverse_triples else 1)
    ids = torch.arange(count, device=scoring.device)
    head, relation, tail = ids, ids % rows, model.num_entities - 1 - ids  # (count,) each
    everything = scoring.select(["all"])
    with torch.inference_mode():
        single = scoring.terms(head, relation, tail, per_triple=1, loss=score_itself, selection=everything).loss
        try:
            every = scoring.tail_scores(head, relation)  # (count, E)
        except (RuntimeError, IndexError, ValueError) as e:
            reason = " ".join(str(e).split())
            raise UnsupportedModel(f"{model.interaction} cannot score all tails: {reason}; {_CONTRACT}") from e
    if every.shape != (count, model.num_entities):
        raise UnsupportedModel(
            f"{model.interaction} scores all tails of {count} heads as {tuple(every.shape)}, must be "
            f"{(count, model.num_entities)}; {_CONTRACT}"
        )
    picked = every.gather(1, tail[:, None])[:, 0]
    scale = float(single.abs().max().nan_to_num())
    wrong = ~torch.isclose(picked, single, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise UnsupportedModel(
            f"{model.interaction} scores triple ({head[i]}, {relation[i]}, {tail[i]}) {float(single[i]):.6g} by "
            f"itself, but {float(picked[i]):.6g} among all tails; {_CONTRACT}"
        )
    return scoring


def _needs_autograd(attributes: Mapping[str, Any]) -> bool:
    return attributes.get("normalizer") is not None or bool(attributes.get("frozen"))


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; raise `BadRequest` when it is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadRequest(f"device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadRequest("device is cuda, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
