"""OpenKE's checkpoints (PyTorch): state dicts and whole modules. Its data files are read as any id map and triples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kgtrace_indexer.inputs.frameworks.described import Score, Tensors
from kgtrace_indexer.inputs.frameworks.known import Framework, Known
from kgtrace_store.errors import UnsupportedModel

_ENTITIES, _RELATIONS, _MATRICES = "ent_embeddings.weight", "rel_embeddings.weight", "rel_matrices.weight"
_COMPLEX_ENTITIES = ("ent_re_embeddings.weight", "ent_im_embeddings.weight")
_COMPLEX_RELATIONS = ("rel_re_embeddings.weight", "rel_im_embeddings.weight")
_RANGES = ("ent_embedding_range", "rel_embedding_range")
_MARGIN = "margin"


def _transe(arguments: Mapping[str, Any], tensors: Tensors) -> dict[str, float | None]:
    norm = 2.0 if arguments["norm_flag"] else None
    margin = _constant(tensors, _MARGIN) if _MARGIN in tensors else 0.0
    return {"p": arguments["p_norm"], "margin": margin, "entity_norm": norm, "relation_norm": norm}


def _rotate(arguments: Mapping[str, Any], tensors: Tensors) -> dict[str, float | None]:
    return {"margin": _constant(tensors, _MARGIN), "phase": _constant(tensors, _RANGES[1])}


def _constant(tensors: Tensors, name: str) -> float:
    """Return a hyper-parameter that is kept as a tensor."""
    if name not in tensors or tensors[name].numel() != 1:
        raise UnsupportedModel(f"a checkpoint of OpenKE must hold {name}, one number, for this model's score")
    return float(tensors[name])


OPENKE = Framework(
    title="OpenKE",
    prefix="OpenKE",
    package="openke.module.model",
    constants=frozenset({"zero_const", "pi_const", _MARGIN, "embedding_range"}),
    models={
        "TransE": Known(
            Score("Translation", [_ENTITIES], [_RELATIONS]), {"p_norm": 1.0, "norm_flag": True}, settings=_transe
        ),
        "DistMult": Known(Score("DistMult", [_ENTITIES], [_RELATIONS])),
        "ComplEx": Known(Score("ComplEx", _COMPLEX_ENTITIES, _COMPLEX_RELATIONS)),
        "RotatE": Known(
            Score("Rotation", [_ENTITIES], [_RELATIONS], {"p": 1.0}), settings=_rotate, more=frozenset(_RANGES)
        ),
        "RESCAL": Known(Score("Bilinear", [_ENTITIES], [_MATRICES])),
    },
)
