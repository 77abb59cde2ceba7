"""LibKGE's checkpoints and packaged models, which carry their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kgtrace_indexer.inputs.frameworks.described import Named, Score
from kgtrace_indexer.inputs.frameworks.known import Framework, Known, StoredModel
from kgtrace_indexer.inputs.inert import Inert, StoredTensor
from kgtrace_indexer.inputs.saved_objects import load
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_indexer.inputs.torch_files import TorchArchive
from kgtrace_store.errors import UnreadableModel

_ENTITIES, _RELATIONS = "_entity_embedder._embeddings.weight", "_relation_embedder._embeddings.weight"

_RECIPROCAL = "reciprocal_relations_model"
"""Type of a model that wraps another, with rows r and R + r of the relation table for each relation."""

_BASE = "_base_model."
"""What the names of the wrapped model's tensors begin with; its tables are also those of the wrapper."""

_EPSILON = 1e-6
"""PyTorch's `pairwise_distance`, which scores a TransE's triples, adds it to each coordinate."""


LIBKGE = Framework(
    title="LibKGE",
    prefix="LibKGE",
    models={
        "TransE": Known(
            Score("Translation", [_ENTITIES], [_RELATIONS], {"eps": _EPSILON}),
            {"l_norm": 1.0},
            lambda arguments, _: {"p": arguments["l_norm"]},
        ),
        "DistMult": Known(Score("DistMult", [_ENTITIES], [_RELATIONS])),
        "ComplEx": Known(Score("ComplEx", [_ENTITIES], [_RELATIONS])),
        "RotatE": Known(
            Score("Rotation", [_ENTITIES], [_RELATIONS]),
            {"l_norm": 1.0},
            lambda arguments, _: {"p": arguments["l_norm"]},
        ),
        "Rescal": Known(Score("Bilinear", [_ENTITIES], [_RELATIONS])),
    },
)
"""Models under the names of their classes."""


def find(archive: TorchArchive, source: str) -> StoredModel | None:
    """Read a checkpoint; None for files of other frameworks. Raises `UnreadableModel` for one that is not whole."""
    root = archive.root
    if not isinstance(root, dict):
        return None
    config = root.get("config")
    if not isinstance(config, Inert) or not config.origin.module.startswith("kge."):
        return None
    match root.get("model"):
        case (dict() as state, *_):
            stored = {_renamed(key): value for key, value in state.items() if isinstance(value, StoredTensor)}
        case _:
            raise UnreadableModel(f"{archive.path} is a file of LibKGE without a model: pass a checkpoint of training")
    options = config.attributes.get("options")
    named, reciprocal = _configured(options if type(options) is dict else {}, archive)
    tensors = load(archive, stored)
    if reciprocal and _RELATIONS in tensors and tensors[_RELATIONS].dim() == 2:
        tensors[_RELATIONS] = _alternating(tensors[_RELATIONS], source)
    return StoredModel(LIBKGE, tensors, source, named, inverse_triples=reciprocal)


def _renamed(name: str) -> str:
    """Return the name of a tensor outside of the model that wraps it, and as LibKGE calls it today."""
    return name.removeprefix(_BASE).replace("_embedder.embeddings.", "_embedder._embeddings.")


def _configured(options: Mapping[str, Any], archive: TorchArchive) -> tuple[Named, bool]:
    """Return the model's class with its options, and whether it has reciprocal relations."""
    reciprocal = options.get("model") == _RECIPROCAL
    own = _mapping(_mapping(options.get(_RECIPROCAL)).get("base_model")) if reciprocal else {}
    kind = own.get("type") if reciprocal else options.get("model")
    defaults = _mapping(options.get(kind)) if type(kind) is str else {}
    name = defaults.get("class_name")
    if type(name) is not str:
        raise UnreadableModel(f"{archive.path}: LibKGE's configuration does not describe its model {quote(kind)}")
    return Named(name, {**defaults, **own}), reciprocal


def _mapping(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}


def _alternating(table: torch.Tensor, source: str) -> torch.Tensor:
    """Put each reciprocal relation's row, R + r, after its relation's, r."""
    rows, width = table.shape
    if rows % 2:
        raise UnreadableModel(f"{source} has reciprocal relations, but an odd number of relation rows, {rows}")
    return table.view(2, rows // 2, width).transpose(0, 1).reshape(rows, width)
