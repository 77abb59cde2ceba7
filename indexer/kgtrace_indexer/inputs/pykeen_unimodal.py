"""Models of PyKEEN 1.5 to 1.8 that have no interaction, brought into the form of later versions.

Their hyper-parameters are attributes of the model itself; modules and tensors bear other names, tables up to 1.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kgtrace_indexer.inputs.frameworks.described import SCORE
from kgtrace_indexer.inputs.inert import Inert
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_store.errors import UnsupportedModel

_PACKAGE = "pykeen.models.unimodal."
"""Where the classes of PyKEEN's models are, before and since."""

_TABLES = {"entity_embeddings": "entity_representations.0", "relation_embeddings": "relation_representations.0"}

_CONVE = {
    "bias_term": "entity_representations.1",
    "bn0": "interaction.hr2d.0",
    "conv1": "interaction.hr2d.2",
    "bn1": "interaction.hr2d.3",
    "fc": "interaction.hr1d.0",
    "bn2": "interaction.hr1d.2",
}

_RENAMED: Mapping[str, Mapping[str, str]] = {
    "ComplEx": {},
    "ConvE": _CONVE,
    "DistMult": {},
    "RotatE": {},
    "TransE": {},
    "TuckER": {
        "bn_0": "interaction.head_batch_norm",
        "bn_1": "interaction.head_relation_batch_norm",
        "core_tensor": "interaction.core_tensor",
        "hidden_dropout_1": "interaction.relation_dropout",
        "hidden_dropout_2": "interaction.head_relation_dropout",
        "input_dropout": "interaction.head_dropout",
    },
}
"""By model that is read: modules and parameters besides the tables, before and since."""

_COMPLEX = ("ComplEx", "RotatE")

_Modules = dict[str, dict[str, Any]]


def is_unimodal(module: object) -> bool:
    """Return whether a module is one of PyKEEN's models, with an interaction or without."""
    return isinstance(module, Inert) and module.origin.module.startswith(_PACKAGE)


def later_form(
    modules: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor], source: str
) -> tuple[_Modules, dict[str, torch.Tensor]]:
    """Return the modules and tensors of a model without interaction as PyKEEN 1.9 would have saved them.

    Raises `UnsupportedModel` for another model than `_RENAMED` has, and for one that is not described well enough.
    """
    root = modules[""]
    kind = str(root["class"])
    if kind not in _RENAMED:
        raise UnsupportedModel(
            f"{source} holds a {quote(kind)} of PyKEEN without an interaction; of such are read {', '.join(_RENAMED)}: "
            "train it again as a model with an interaction, such as PyKEEN saves since 1.9"
        )
    names = _names(kind, tensors)
    changed = {_renamed(path, names): dict(attributes) for path, attributes in modules.items()}
    renamed = later_names(tensors, kind)
    for path in ("entity_representations.0", "relation_representations.0", "entity_representations.1"):
        if path in changed:
            changed[path] |= _described(path, changed[path], renamed, source, is_complex=kind in _COMPLEX)
    interaction: dict[str, Any] = {"class": f"{kind}Interaction"}
    if kind == "TransE":
        interaction |= {"p": root.get("scoring_fct_norm"), "power_norm": False}
    if kind == "ConvE":
        interaction |= {name: root.get(name) for name in ("input_channels", "embedding_height", "embedding_width")}
    if kind == "RotatE":  # later versions rotate a triple's tail back, which has another gradient
        entity, relation = ([f"{path}._embeddings.weight"] for path in _TABLES.values())
        changed[SCORE] = {"class": "ComplexTranslation", "entity": entity, "relation": relation, "p": 2.0}
    return {**changed, "interaction": interaction}, renamed


def later_names(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a model without interaction as later versions have them; others as they are."""
    if kind not in _RENAMED or not any(name.startswith(f"{table}.") for name in tensors for table in _TABLES):
        return dict(tensors)
    names = _names(kind, tensors)
    renamed = {_renamed(name, names): tensor for name, tensor in tensors.items()}
    for table in (f"{path}._embeddings.weight" for path in _TABLES.values()):
        if table not in renamed or renamed[table].dim() != 2 or renamed[table].shape[1] % 2:
            continue
        if kind == "ComplEx":  # from all real parts, then all imaginary ones, to pairs
            renamed[table] = renamed[table].unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
        if kind == "RotatE":  # the other way round, as `ComplexTranslation` has them
            renamed[table] = renamed[table].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
    return renamed


def _names(kind: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the later name of each renamed tensor in a model of a kind."""
    names = {**_TABLES, **_RENAMED[kind]}
    if kind == "ConvE" and not any(name.startswith("bn0.") for name in tensors):
        names["conv1"] = "interaction.hr2d.1"  # there is no batch norm before it
    return names


def _renamed(path: str, names: Mapping[str, str]) -> str:
    first, dot, rest = path.partition(".")
    return names.get(first, first) + dot + rest


def _described(
    path: str, attributes: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], source: str, *, is_complex: bool
) -> dict[str, Any]:
    """Return the shape of a table's representations, which is not recorded."""
    table = tensors.get(f"{path}._embeddings.weight")
    if table is None or table.dim() != 2 or "normalizer" not in attributes:
        raise UnsupportedModel(f"{source} does not describe its {path}: a table of embeddings and its normalizer")
    width = table.shape[1]
    return {"class": "Embedding", "shape": [width // 2 if is_complex else width], "is_complex": is_complex}
