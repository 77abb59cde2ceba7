"""Folders of NumPy tables: DGL-KE's, and those of RotatE's reference code, which DGL-KE follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgtrace_indexer.inputs.frameworks.arrays import read_array, read_json
from kgtrace_indexer.inputs.frameworks.described import Named, Score, Tensors
from kgtrace_indexer.inputs.frameworks.known import Framework, Known, StoredModel
from kgtrace_store.errors import UnreadableModel, UnsupportedModel

CONFIG = "config.json"

_ENTITY, _RELATION = "entity_embedding", "relation_embedding"
"""Both tables, under the names of the reference code's files and parameters."""

_EPSILON = 2.0
"""Both draw embeddings from ±(γ + 2) / d, which also stands for half a turn in RotatE's relations."""


def _half_turn(arguments: Mapping[str, Any], tensors: Tensors) -> dict[str, float | None]:
    dim = max(1, tensors[_RELATION].shape[1])
    return {"margin": arguments["gamma"], "phase": (arguments["gamma"] + _EPSILON) / dim}


def _translation(p: float) -> Known:
    return Known(
        Score("Translation", [_ENTITY], [_RELATION], {"p": p}),
        {"gamma": 12.0},
        lambda arguments, _: {"margin": arguments["gamma"]},
    )


_ROTATE = Known(Score("Rotation", [_ENTITY], [_RELATION], {"p": 1.0}), {"gamma": 12.0}, _half_turn)
_BILINEAR = {
    "DistMult": Known(Score("DistMult", [_ENTITY], [_RELATION])),
    "ComplEx": Known(Score("ComplEx", [_ENTITY], [_RELATION])),
}

DGL_KE = Framework(
    title="DGL-KE",
    prefix="DGLKE",
    models={
        "TransE": _translation(2.0),
        "TransE_l1": _translation(1.0),
        "TransE_l2": _translation(2.0),
        "RotatE": _ROTATE,
        "RESCAL": Known(Score("Bilinear", [_ENTITY], [_RELATION])),
        **_BILINEAR,
    },
)

REFERENCE = Framework(
    title="RotatE's reference code",
    prefix="KnowledgeGraphEmbedding",
    models={"TransE": _translation(1.0), "RotatE": _ROTATE, **_BILINEAR},
)


def recognises(folder: Path) -> bool:
    """Return whether a folder has an entity table under one of both names."""
    return (folder / f"{_ENTITY}.npy").is_file() or any(folder.glob("*_entity.npy"))


def find(folder: Path) -> StoredModel:
    """Read the tables and the configuration in a folder.

    Raises `UnreadableModel` for files that are damaged or foreign, `UnsupportedModel` for a folder of several models.
    """
    if (folder / f"{_ENTITY}.npy").is_file():
        framework, tables = REFERENCE, [folder / f"{name}.npy" for name in (_ENTITY, _RELATION)]
    else:
        first, *others = sorted(folder.glob("*_entity.npy"))
        if others:
            raise UnsupportedModel(
                f"{folder} holds the tables of several models, {first.name} and {others[0].name}: leave those of one"
            )
        framework, tables = DGL_KE, [first, folder / f"{first.name.removesuffix('_entity.npy')}_relation.npy"]
    arrays = (read_array(path, "f").astype(np.float32, order="C") for path in tables)
    tensors = {name: torch.from_numpy(array) for name, array in zip((_ENTITY, _RELATION), arrays, strict=True)}
    return StoredModel(framework, tensors, folder.absolute().name, _configured(folder / CONFIG))


def _configured(path: Path) -> Named | None:
    """Return the model that a configuration names; None if there is no configuration."""
    config = read_json(path)
    if config is None:
        return None
    name = config.get("model_name", config.get("model"))
    if not isinstance(name, str):
        raise UnreadableModel(f"{path} names no model: it has neither model_name nor model")
    return Named(name, config)
