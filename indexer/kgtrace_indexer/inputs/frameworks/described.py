"""What every reader of another framework's models needs: hyper-parameters, scores, and model files made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_store.errors import BadRequest, UnsupportedModel, VocabularyMismatch

SCORE = "score"
"""Path in `ModelFile.modules` of a score that reads nothing but tables: its class, its tables, and its settings."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Named:
    """A model's name and hyper-parameters, from ``--interaction 'TransE(p_norm=1)'`` or from the file itself."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters under the names that the framework's constructor has for them."""

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.name}({arguments})" if arguments else self.name


_CALL = re.compile(r"(?:(\w+)\.)?(\w+)(?:\((.*)\))?")


def parse(interaction: str, prefix: str) -> Named:
    """Read ``NAME`` or ``NAME(key=value, ...)``, with or without the framework's prefix and a dot before."""
    match = _CALL.fullmatch(interaction.strip())
    if match is None or match[1] not in (None, prefix):
        raise UnsupportedModel(
            f"--interaction {quote(interaction)} names no model of {prefix}: write NAME or 'NAME(key=value, ...)'"
        )
    arguments: dict[str, Any] = {}
    for part in filter(None, map(str.strip, (match[3] or "").split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or not text:
            raise BadRequest(f"--interaction {quote(interaction)}: {quote(part)} is not key=value")
        arguments[key] = _value(text.strip("'\""))
    return Named(match[2], arguments)


def _value(text: str) -> float | bool | str:
    """Return a number or a truth value where the text is one."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class Score:
    """A score of `kgtrace_indexer.models.table_scores`, and the tables it reads."""

    name: str
    entity: Sequence[str]
    """Tables that heads and tails read; of complex numbers in two tables, the real parts first."""
    relation: Sequence[str]
    settings: Mapping[str, float | None] = field(default_factory=dict)
    """Arguments of its class."""


_WIDTHS: Mapping[str, Callable[[int, int], bool]] = {
    "Translation": lambda entity, relation: entity == relation,
    "DistMult": lambda entity, relation: entity == relation,
    "ComplEx": lambda entity, relation: entity == relation and entity % 2 == 0,
    "Rotation": lambda entity, relation: entity == 2 * relation,
    "Bilinear": lambda entity, relation: entity * entity == relation,
}
"""Whether an entity's numbers and a relation's fit a score, by its name."""


def model_file(
    interaction: str,
    score: Score,
    tensors: Tensors,
    source: str,
    *,
    num_relations: int | None,
    embedding_dim: int | None,
    inverse_triples: bool = False,
) -> ModelFile:
    """Make a model of tables.

    Raises
    ------
    UnsupportedModel
        A table is missing, or their sizes do not fit each other or the width that the caller expects.
    VocabularyMismatch
        There are more or fewer relations than the caller expects.
    """
    entities, width = _size(interaction, score.entity, tensors, source)
    rows, relation_width = _size(interaction, score.relation, tensors, source)
    if not _WIDTHS[score.name](width, relation_width):
        raise UnsupportedModel(
            f"{source} is no {interaction}: an entity has {width} numbers and a relation {relation_width}"
        )
    for key in ("p", "phase"):
        if (value := score.settings.get(key)) is not None and not value > 0:
            raise UnsupportedModel(f"{source}: {key} is {value:g} in the score of its {interaction}, must be positive")
    own = tensors[score.entity[0]].shape[1]
    if embedding_dim is not None and own not in (embedding_dim, 2 * embedding_dim):
        raise UnsupportedModel(f"{source} has embeddings of {own} values, not {embedding_dim} (--embedding-dim)")
    relations = rows // 2 if inverse_triples else rows
    if num_relations not in (None, relations):
        raise VocabularyMismatch(f"{source} has {relations} relations, but the relation map has {num_relations}")
    return ModelFile(
        interaction=interaction,
        tensors=tensors,
        num_entities=entities,
        num_relations=relations,
        inverse_triples=inverse_triples,
        modules={
            "": {"class": interaction},
            SCORE: {
                "class": score.name,
                "entity": list(score.entity),
                "relation": list(score.relation),
                **{key: value if value is None else float(value) for key, value in score.settings.items()},
            },
        },
        loss={},
        source=source,
    )


def _size(interaction: str, names: Sequence[str], tensors: Tensors, source: str) -> tuple[int, int]:
    """Return the common number of rows of some tables, and how many numbers their rows have together."""
    for name in names:
        if name not in tensors or tensors[name].dim() != 2:
            state = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
            raise UnsupportedModel(f"{source} is no {interaction}: its table {name} is {state}")
    shapes = [tuple(tensors[name].shape) for name in names]
    if len({rows for rows, _ in shapes}) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
        raise UnsupportedModel(f"{source} is no {interaction}: its tables differ in length: {listed}")
    return shapes[0][0], sum(width for _, width in shapes)
