"""PyKEEN models as versions before 1.11 saved them, brought into the form of 1.11.

kgtrace computes with PyKEEN 1.11's interactions. Earlier versions name some attributes, modules and parameters
otherwise, leave out options that later ones added, and read some tables in another order. Each rule below goes by a
mark that only the earlier form carries. Where a file carries none, the version is taken from ``metadata.json`` beside
it; a model whose meaning stays open is refused.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kgtrace_indexer.inputs import conve_shape
from kgtrace_indexer.inputs.pykeen_unimodal import later_names
from kgtrace_store.errors import UnsupportedModel

METADATA = "metadata.json"
"""File that PyKEEN's ``save_to_directory`` writes beside the model."""

VERSION = "pykeen_version"
"""Its field that names the version of PyKEEN; PyKEEN writes it for replicated hyper-parameter searches alone."""

SLOTS = "relation_slots"
"""Attribute of an interaction: the relation representations in the order in which PyKEEN 1.11's score reads them."""

PROJECTION_NORM = "projection_p"
"""Attribute of a TransR: the norm that limits projections, where it need not be the score's."""

_LONGEST_METADATA = 2**20

_Modules = dict[str, dict[str, Any]]
"""Attributes by module path, as `ModelFile.modules` has them."""

_ROOT = "interaction"

_SINCE_1_10 = "relation_inverter"
"""Attribute that PyKEEN's models have since 1.10."""

_RENAMED_TENSORS = {"CrossE": {f"{_ROOT}.combination_bias": f"{_ROOT}.bias"}}
"""By interaction: names of parameters before 1.11, and since."""


def current_form(
    modules: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor], file: Path
) -> tuple[_Modules, dict[str, torch.Tensor]]:
    """Return the modules and tensors of a PyKEEN model in the form of 1.11.

    `file` is the model file, beside which ``metadata.json`` is looked for. Raises `UnsupportedModel` for a model that
    PyKEEN 1.11 does not compute, and for one whose version matters and is not recorded.
    """
    changed = {path: dict(attributes) for path, attributes in modules.items()}
    _check_normalizers(changed, file)
    name = str(changed[_ROOT].get("class")).removesuffix("Interaction")
    if name in _RULES:
        _RULES[name](changed, tensors, file)
    return changed, current_names(tensors, name)


def current_names(tensors: Mapping[str, torch.Tensor], interaction: str) -> dict[str, torch.Tensor]:
    """Return tensors under the names that PyKEEN 1.11 gives them."""
    renamed = _RENAMED_TENSORS.get(interaction, {})
    return {renamed.get(name, name): tensor for name, tensor in later_names(tensors, interaction).items()}


def relation_slots(interaction: Mapping[str, Any], count: int, source: str) -> Sequence[int]:
    """Return which relation representation each slot of the score reads.

    `interaction` holds the recorded attributes, `count` is the number of representations. Raises `UnsupportedModel` for
    a TransH that was converted, or indexed, without this order.
    """
    slots = interaction.get(SLOTS)
    if slots is None and interaction.get("class") != "TransHInteraction":
        return range(count)
    if not isinstance(slots, list) or sorted(slots) != list(range(count)):
        raise UnsupportedModel(
            f"{source} does not record which of its {count} relation tables holds TransH's normal vectors; "
            "convert the saved model again, or build the index again from it"
        )
    return slots


def _rename(modules: _Modules, old: str, new: str) -> None:
    if f"{_ROOT}.{old}" in modules:
        modules[f"{_ROOT}.{new}"] = modules.pop(f"{_ROOT}.{old}")


def _conve(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    attributes = modules[_ROOT]
    if "embedding_height" in attributes:
        attributes.setdefault("shape_info", conve_shape.shape_before_1_11(attributes, tensors))


def _crosse(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    _rename(modules, "combination_activation", "activation")
    _rename(modules, "combination_dropout", "dropout")
    if "frozen" in modules[_ROOT]:
        names = _RENAMED_TENSORS["CrossE"]
        frozen = (names.get(f"{_ROOT}.{name}", f"{_ROOT}.{name}") for name in modules[_ROOT]["frozen"])
        modules[_ROOT]["frozen"] = [name.removeprefix(f"{_ROOT}.") for name in frozen]


def _kg2e(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    similarities = {"KL": "NegativeKullbackLeiblerDivergence", "EL": "ExpectedLikelihood"}
    similarity = modules[_ROOT].get("similarity")
    if isinstance(similarity, str):  # a module since 1.11
        modules[f"{_ROOT}.similarity"] = {
            "class": similarities.get(similarity, similarity),
            "exact": modules[_ROOT].get("exact"),
        }


def _ntn(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    _rename(modules, "non_linearity", "activation")


def _proje(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    if f"{_ROOT}.inner_non_linearity" in modules:
        _rename(modules, "inner_non_linearity", "inner_activation")
        modules[f"{_ROOT}.outer_activation"] = {"class": "Identity"}


def _quate(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    if f"{_ROOT}.table" not in tensors:
        raise UnsupportedModel(
            f"{file.name} is a QuatE of PyKEEN before 1.10, which keeps the parts of quaternions in another order; "
            "train it again with PyKEEN 1.10 or later"
        )
    for attributes in modules.values():
        if attributes.get("normalizer") == "pykeen.models.unimodal.quate.quaternion_normalizer":
            attributes["normalizer"] = "pykeen.nn.quaternion.normalize"


def _rotate(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    modules[_ROOT] = {"p": 2, "power_norm": False, **modules[_ROOT]}


def _simple(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    if f"{_ROOT}.base" in modules:
        return
    modules[f"{_ROOT}.base"] = {"class": "DistMultInteraction"}
    clamp = modules[_ROOT].pop("clamp_score", None)
    if clamp is not None:  # an interaction around it since 1.11
        modules[f"{_ROOT}.base.base"] = modules.pop(f"{_ROOT}.base")
        modules[f"{_ROOT}.base"] = modules.pop(_ROOT)
        modules[_ROOT] = {"class": "ClampedInteraction", "clamp_score": clamp}


def _transh(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Record the order of the tables: 1.10 reads the normal vectors from the second, 1.9 and 1.11 from the first."""
    if _SINCE_1_10 not in modules[""]:
        modules[_ROOT][SLOTS] = [0, 1]
        return
    version = _recorded_version(file)
    slots = {"1.10": [1, 0], "1.11": [0, 1]}.get(".".join(version.split(".")[:2]))
    if slots is None:
        raise UnsupportedModel(
            f"{file.name} is a TransH, and PyKEEN 1.10 reads its relation tables in another order than 1.11, but "
            + (f"{METADATA} names version {version!r}" if version else "the file does not say which version saved it")
            + f'; put {{"{VERSION}": "1.11.1"}}, or the version that it was, into {METADATA} beside it'
        )
    modules[_ROOT][SLOTS] = slots


def _transr(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    if "max_projection_norm" not in modules[_ROOT]:
        modules[_ROOT] |= {"max_projection_norm": 1.0, PROJECTION_NORM: 2}


def _tucker(modules: _Modules, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    modules[_ROOT]["class"] = "TuckERInteraction"


_RULES: Mapping[str, Callable[[_Modules, Mapping[str, torch.Tensor], Path], None]] = {
    "ConvE": _conve,
    "CrossE": _crosse,
    "KG2E": _kg2e,
    "NTN": _ntn,
    "ProjE": _proje,
    "QuatE": _quate,
    "RotatE": _rotate,
    "SimplE": _simple,
    "TransH": _transh,
    "TransR": _transr,
    "Tucker": _tucker,
}
"""What differs from 1.11, by the interaction's name without suffix as recorded."""


def _check_normalizers(modules: _Modules, file: Path) -> None:
    """Refuse real tables with `complex_normalize` before 1.10, which took each number by itself."""
    for path, attributes in modules.items():
        by_pairs = attributes.get("normalizer") == "pykeen.utils.complex_normalize"
        if by_pairs and attributes.get("is_complex") is False and _SINCE_1_10 not in modules[""]:
            raise UnsupportedModel(
                f"{file.name}: {path} is a table of real numbers with complex_normalize, which PyKEEN before 1.10 "
                "computes otherwise; train it again"
            )


def _recorded_version(file: Path) -> str:
    """Return the version of PyKEEN that ``metadata.json`` beside a model names; empty if there is none."""
    try:
        with (file.parent / METADATA).open("rb") as f:
            metadata = json.loads(f.read(_LONGEST_METADATA))
    except (OSError, ValueError, RecursionError):
        return ""
    version = metadata.get(VERSION) if isinstance(metadata, dict) else None
    return version if isinstance(version, str) and re.fullmatch(r"\d+\.\d+[\w.+-]{0,30}", version) else ""
