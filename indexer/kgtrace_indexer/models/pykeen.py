"""PyKEEN models whose entities and relations are rows of tables: their representations and their score."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.pykeen_versions import relation_slots
from kgtrace_indexer.models.autograd import AutogradModel, Reading, Representations
from kgtrace_indexer.models.pykeen_interactions import ROOT, rank_one_parameters, rebuild
from kgtrace_store.errors import UnsupportedModel

_ENTITIES, _RELATIONS = "entity_representations", "relation_representations"


class _Score(nn.Module):
    """An interaction that takes lists of representations. Its parameters are named as in the model."""

    def __init__(self, interaction: nn.Module) -> None:
        super().__init__()
        self.interaction = interaction

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores; a single representation is passed on as such."""
        score: Tensor = self.interaction(*(slot[0] if len(slot) == 1 else slot for slot in (h, r, t)))
        return score


@dataclass(frozen=True, slots=True)
class PykeenScore:
    """A PyKEEN model as a score, and the tables that it reads."""

    tables: Mapping[str, Tensor]
    """Embedding tables (rows, width) by parameter name."""
    head: Sequence[Reading]
    relation: Sequence[Reading]
    tail: Sequence[Reading]
    score: nn.Module
    """Called as ``score(h, r, t)`` with a list of representations for each."""
    interaction: nn.Module
    """The PyKEEN module that `score` wraps."""


def pykeen_score(model: ModelFile, device: torch.device | str = "cpu") -> PykeenScore:
    """Rebuild a PyKEEN model's score on a device.

    Raises
    ------
    UnsupportedModel
        An interaction, representation, normalizer or activation that is not known, or one the file does not
        describe well enough.
    MissingExtra
        PyKEEN is not installed.
    """
    entities, relations = (_readings(model, kind) for kind in (_ENTITIES, _RELATIONS))
    if not entities:
        raise UnsupportedModel(
            f"{model.source} does not record the representations of {model.interaction}; "
            "pass the whole saved model (trained_model.pkl) rather than its state dict"
        )
    interaction = rebuild(model)
    head, tail = (_chosen(model, entities, chosen) for chosen in (interaction._head_indices, interaction._tail_indices))
    return PykeenScore(
        tables={reading.table: model.tensors[reading.table].to(device) for reading in [*entities, *relations]},
        head=head,
        relation=[relations[i] for i in relation_slots(model.modules[ROOT], len(relations), model.source)],
        tail=tail,
        score=_Score(interaction).to(device),
        interaction=interaction,
    )


def pykeen_model(model: ModelFile, device: torch.device | str = "cpu") -> AutogradModel:
    """Return a PyKEEN model on a device. Raises as `pykeen_score` does."""
    rebuilt = pykeen_score(model, device)
    factors = rank_one_parameters(model, rebuilt.interaction)
    parameters = dict(rebuilt.score.named_parameters())
    return AutogradModel(
        rebuilt.tables,
        head=rebuilt.head,
        relation=rebuilt.relation,
        tail=rebuilt.tail,
        score=rebuilt.score,
        frozen=frozen_parameters(model),
        factors=factors,
        scratch=sum(parameters[name][0].numel() for name in factors),
    )


def _chosen(model: ModelFile, entities: list[Reading], indices: Sequence[int] | None) -> list[Reading]:
    """Return the entity representations that the head, or the tail, reads."""
    chosen = range(len(entities)) if indices is None else indices
    if max(chosen) >= len(entities):
        raise UnsupportedModel(
            f"{model.source} has {len(entities)} entity representations, too few for {model.interaction}"
        )
    return [entities[i] for i in chosen]


_NORMALIZERS: Mapping[str, tuple[str, frozenset[str]]] = {
    "torch.nn.functional.normalize": ("torch.nn.functional", frozenset({"p", "dim", "eps"})),
    "torch.nn.functional.softmax": ("torch.nn.functional", frozenset({"dim"})),
    "pykeen.nn.quaternion.normalize": ("pykeen.nn.quaternion", frozenset()),
    "pykeen.utils.complex_normalize": ("pykeen.utils", frozenset()),
    "pykeen.utils.clamp_norm": ("pykeen.utils", frozenset({"maxnorm", "p", "dim"})),
}
"""Normalizers by the name recorded: module, and permitted arguments."""


def _normalizer(recorded: Any, path: str) -> Callable[[Tensor], Tensor] | None:
    """Return a representation's normalizer; one that acts along an axis must count it from the last."""
    if recorded is None:
        return None
    described = recorded if isinstance(recorded, Mapping) else {"function": recorded, "keywords": {}}
    name, keywords = str(described.get("function")), described.get("keywords")
    if name not in _NORMALIZERS or described.get("args") or not isinstance(keywords, Mapping):
        raise UnsupportedModel(f"{path} has normalizer {recorded}; supported: {', '.join(_NORMALIZERS)}")
    module, allowed = _NORMALIZERS[name]
    axis = keywords.get("dim", 0)
    if not keywords.keys() <= allowed or ("dim" in allowed and not (isinstance(axis, int) and axis < 0)):
        raise UnsupportedModel(
            f"{path} has normalizer {name} with arguments {dict(keywords)}; it must have a negative dim: "
            "along another axis it mixes different entities"
        )
    return partial(getattr(importlib.import_module(module), name.rpartition(".")[2]), **keywords)


def _readings(model: ModelFile, kind: str) -> list[Reading]:
    """Return the representations of entities or relations. Raises `UnsupportedModel` for all but plain tables."""
    readings: list[Reading] = []
    while (path := f"{kind}.{len(readings)}") in model.modules:
        attributes = model.modules[path]
        if attributes.get("class") != "Embedding":
            raise UnsupportedModel(
                f"{path} is a {attributes.get('class')}; only tables of embeddings are supported: where "
                "representations are computed, from neighbours, tokens, literals or texts, a triple's gradient reaches "
                "others' rows"
            )
        table = f"{path}._embeddings.weight"
        shape, is_complex = attributes.get("shape"), attributes.get("is_complex")
        if table not in model.tensors or not isinstance(shape, list) or not isinstance(is_complex, bool):
            raise UnsupportedModel(f"{model.source} does not record the shape of {path}, or lacks {table}")
        stored = tuple([*shape, 2] if is_complex else shape)
        width = model.tensors[table].shape[1]
        if torch.Size(stored).numel() != width:
            raise UnsupportedModel(f"{path} is recorded with shape {stored}, but {table} has rows of {width}")
        normalizer = _normalizer(attributes.get("normalizer"), path)
        readings.append(Reading(table, partial(_form, stored, is_complex, normalizer)))
    return readings


def _form(
    shape: tuple[int, ...], is_complex: bool, normalizer: Callable[[Tensor], Tensor] | None, rows: Tensor
) -> Tensor:
    """Return rows (m, width) as PyKEEN's `Embedding` does, (m, *shape)."""
    x = rows.view(len(rows), *shape)
    if is_complex:
        x = torch.view_as_complex(x)
    return x if normalizer is None else normalizer(x)


def frozen_parameters(model: ModelFile) -> frozenset[str]:
    """Return the parameters that were not trained."""
    return frozenset(
        f"{path}.{name}" for path, attributes in model.modules.items() for name in attributes.get("frozen", ())
    )
