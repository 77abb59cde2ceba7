"""TorchKGE: state dicts and whole modules."""

from collections.abc import Mapping
from typing import Any

from kgtrace_indexer.inputs.frameworks.described import Score
from kgtrace_indexer.inputs.frameworks.known import Framework, Known

_ENTITIES, _RELATIONS, _MATRICES = "ent_emb.weight", "rel_emb.weight", "rel_mat.weight"
_COMPLEX_ENTITIES = ("re_ent_emb.weight", "im_ent_emb.weight")
_COMPLEX_RELATIONS = ("re_rel_emb.weight", "im_rel_emb.weight")

_UNIT = {"entity_norm": 2.0}
"""Entities are divided by their norm whenever they are scored."""

_SQUARED = {"L1": {"p": 1.0, "power": 1.0}, "L2": {"p": 2.0, "power": 2.0}}
"""Distances: the second one is a square."""


def _attributes(module: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of distance, which a module keeps as a function."""
    function = str(module.get("dissimilarity")).rpartition(".")[2]
    return {"dissimilarity_type": function.removesuffix("_dissimilarity").upper()}


TORCHKGE = Framework(
    title="TorchKGE",
    prefix="TorchKGE",
    package="torchkge.models",
    suffix="Model",
    attributes=_attributes,
    models={
        "TransE": Known(
            Score("Translation", [_ENTITIES], [_RELATIONS], _UNIT),
            {"dissimilarity_type": ("L1", "L2")},
            lambda arguments, _: _SQUARED[arguments["dissimilarity_type"]],
        ),
        "DistMult": Known(Score("DistMult", [_ENTITIES], [_RELATIONS], _UNIT)),
        "RESCAL": Known(Score("Bilinear", [_ENTITIES], [_MATRICES], _UNIT)),
        "ComplEx": Known(Score("ComplEx", _COMPLEX_ENTITIES, _COMPLEX_RELATIONS)),
    },
)
