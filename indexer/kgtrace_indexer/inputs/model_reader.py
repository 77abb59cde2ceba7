"""Reading trained models from files that PyKEEN and PyTorch save, or from converted folders.

Neither PyKEEN nor anything a pickle names is imported; see :mod:`kgtrace_indexer.inputs.inert`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kgtrace_indexer.inputs import conve_shape
from kgtrace_indexer.inputs.frameworks import StoredModel, find_archive, find_folder, is_framework_folder
from kgtrace_indexer.inputs.inert import is_count
from kgtrace_indexer.inputs.model_file import FACTS, TENSORS, ModelFile, read_converted
from kgtrace_indexer.inputs.pykeen_unimodal import is_unimodal, later_form, later_names
from kgtrace_indexer.inputs.pykeen_versions import current_form, current_names
from kgtrace_indexer.inputs.saved_objects import (
    describe_modules,
    is_module,
    label_ids,
    load,
    module_tensors,
    state_dict,
)
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_indexer.inputs.torch_files import TorchArchive, open_archive
from kgtrace_store.errors import BadRequest, NonFinite, UnreadableModel, UnsupportedModel, VocabularyMismatch

PYKEEN_MODEL = "trained_model.pkl"
"""The model in a folder written by PyKEEN's ``save_to_directory``."""


def read_model(
    path: Path,
    *,
    interaction: str | None = None,
    embedding_dim: int | None = None,
    num_relations: int | None = None,
) -> ModelFile:
    """Read a trained model without running anything in it.

    Parameters
    ----------
    path
        A folder of PyKEEN's ``save_to_directory``, a folder of :func:`write_model`, or a file of
        ``torch.save``: a whole PyKEEN model, a state dict, or a mapping that holds one under ``state_dict``
        or ``model_state_dict``, as PyKEEN's checkpoints and those of its training loop do; or the file or folder of
        another framework (docs/frameworks.md).
    interaction
        Needed for a state dict whose names do not give it away (of PyKEEN's, all but ConvE's); checked otherwise. Of
        other frameworks ``NAME(key=value, ...)``, with hyper-parameters that the file does not record.
    embedding_dim
        Checked against the entity table.
    num_relations
        Original relations R, from the relation map: needed for a state dict, whose rows alone do not say
        whether they include inverses, unless the file records the relations' labels; checked otherwise.

    Raises
    ------
    UnreadableModel
        The file is missing, truncated, foreign or contradicts itself.
    UnsupportedModel
        It is a model, but none that can be used, or not the one described by the arguments.
    VocabularyMismatch
        `num_relations` fits neither R nor 2R rows.
    NonFinite
        A tensor holds NaN or infinity.
    SchemaTooNew
        A converted folder was written by a later version.
    """
    file, source = _locate(path), path.absolute().name
    if file.name == FACTS:
        model = read_converted(file.parent)
    elif file.is_dir():
        return _from_framework(find_folder(file), interaction, embedding_dim, num_relations)
    else:
        with open_archive(file) as archive:
            foreign = find_archive(archive, source)
            if foreign is not None:
                return _from_framework(foreign, interaction, embedding_dim, num_relations)
            if is_module(archive.root):
                model = _from_module(archive, source)
            else:
                tensors, labels = load(archive, state_dict(archive)), label_ids(archive)
                if "conv1.weight" in tensors:
                    tensors = later_names(tensors, "ConvE")
                recorded = len(labels.get("relations", ())) or None
                model = _from_state_dict(tensors, source, interaction, num_relations or recorded)
                model = dataclasses.replace(model, label_ids=labels)
    _check_arguments(model, interaction, embedding_dim, num_relations)
    _check_tables(model)
    _check_finite(model.tensors, model.source)
    return model


def with_checkpoints(model: ModelFile, paths: Sequence[Path], learning_rates: Sequence[float]) -> ModelFile:
    """Return the model with checkpoints to sum influence over, in TracInCP's sense; a single rate holds for all.

    Raises the errors of `read_checkpoint`, and :class:`BadRequest` for another number of rates or a rate that is not
    positive.
    """
    rates = list(learning_rates) or [1.0]
    rates = rates * len(paths) if len(rates) == 1 else rates
    if len(rates) != len(paths):
        raise BadRequest(
            f"there are {len(paths)} checkpoints and {len(rates)} learning rates: give one for each, or one"
        )
    for rate in rates:
        if not (0 < rate < math.inf):
            raise BadRequest(f"learning rate {rate} is not a positive number")
    return dataclasses.replace(
        model, checkpoints=tuple((rate, read_checkpoint(path, model)) for rate, path in zip(rates, paths, strict=True))
    )


def read_checkpoint(path: Path, like: ModelFile) -> ModelFile:
    """Read another state of the same model: the tensors of `path`, everything else from `like`.

    `path` is anything :func:`read_model` takes. Raises as it does, and :class:`UnsupportedModel` if the names
    or shapes are not those of `like`.
    """
    file, source = _locate(path), path.absolute().name
    labels: Mapping[str, Mapping[str, int]] = {}
    if file.name == FACTS:
        tensors = read_converted(file.parent).tensors
    elif file.is_dir():
        tensors = find_folder(file).tensors
    else:
        with open_archive(file) as archive:
            foreign = find_archive(archive, source)
            if foreign is not None:
                tensors = foreign.tensors
            else:
                stored = module_tensors(archive) if is_module(archive.root) else state_dict(archive)
                tensors, labels = current_names(load(archive, stored), like.interaction), label_ids(archive)
    if difference := _difference(tensors, like.tensors):
        raise UnsupportedModel(f"{source} is not a checkpoint of {like.source}: {difference}")
    _check_finite(tensors, source)
    return dataclasses.replace(like, tensors=tensors, source=source, checkpoints=(), label_ids=labels)


def with_models(model: ModelFile, others: Sequence[ModelFile]) -> ModelFile:
    """Return the model with others, of other seeds, whose influences are averaged with its own: each has weight 1/C.

    Scores and ranks stay those of `model`. Raises `UnsupportedModel` for one of another architecture or other tables,
    and `BadRequest` for the same model twice.
    """
    models = [dataclasses.replace(each, checkpoints=()) for each in (model, *others)]
    for other in models[1:]:
        difference = _difference(other.tensors, model.tensors)
        for name in ("interaction", "inverse_triples", "num_relations"):
            ours, theirs = getattr(model, name), getattr(other, name)
            if ours != theirs:
                difference = f"its {name} is {theirs}, the first model's {ours}"
        if difference:
            raise UnsupportedModel(
                f"{other.source} cannot be averaged with {model.source}: {difference}; give models of one "
                "architecture, trained on the same triples with other seeds"
            )
    sources: dict[str, str] = {}
    for each in models:
        fingerprint = each.fingerprint()
        if fingerprint in sources:
            raise BadRequest(f"{each.source} is the same model as {sources[fingerprint]}: give models of other seeds")
        sources[fingerprint] = each.source
    return dataclasses.replace(model, checkpoints=tuple((1 / len(models), each) for each in models))


def _difference(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Say which tensor has another name or shape; nothing where none has."""
    for name in [*expected, *tensors]:
        theirs, ours = (f"{name} {tuple(t[name].shape)}" if name in t else f"no {name}" for t in (tensors, expected))
        if theirs != ours:
            return f"it has {theirs}, the model has {ours}"
    return ""


def check_place(path: Path) -> None:
    """Raise `UnreadableModel` for a folder that holds no model, naming one below that does."""
    _locate(path)


def _locate(path: Path) -> Path:
    """The file to open: a ``torch.save`` archive, or the ``model.json`` of a converted folder; or another framework's
    folder.
    """
    if path.is_dir():
        if (path / FACTS).is_file():
            return path / FACTS
        if (path / PYKEEN_MODEL).is_file():
            return path / PYKEEN_MODEL
        if is_framework_folder(path):
            return path
        below = sorted(model for depth in ("*", "*/*") for model in path.glob(f"{depth}/{PYKEEN_MODEL}"))
        raise UnreadableModel(
            f"folder {path} holds no model: neither PyKEEN's {PYKEEN_MODEL} nor {FACTS} with {TENSORS}, nor another "
            "framework's (docs/frameworks.md)"
            + (f"; pass {below[0].parent}" if below else "")
            + ("; replicate_best_pipeline(save_training=True) trains one" if not below and _is_search(path) else "")
        )
    if path.name in (FACTS, TENSORS) or path.suffix in (".safetensors", ".json"):
        raise UnreadableModel(
            f"{path} is not a file of torch.save; for a converted model pass its folder, which holds {FACTS} "
            f"and {TENSORS}"
        )
    return path


def _is_search(folder: Path) -> bool:
    """Whether PyKEEN's hyper-parameter search wrote the folder, or a part of it: settings, and no model."""
    return any((folder / name).is_file() for name in ("study.json", "pipeline_config.json"))


def _from_framework(
    stored: StoredModel, interaction: str | None, embedding_dim: int | None, num_relations: int | None
) -> ModelFile:
    """The model of another framework."""
    model = stored.model(interaction, embedding_dim, num_relations)
    _check_finite(model.tensors, model.source)
    return model


_MODEL_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    "num_entities": is_count,
    "num_relations": is_count,
    "use_inverse_triples": lambda v: isinstance(v, bool),
}
"""What every PyKEEN model carries; its ``num_relations`` counts inverses too."""


def _from_module(archive: TorchArchive, source: str) -> ModelFile:
    """A whole PyKEEN model."""
    modules, tensors = describe_modules(archive), load(archive, module_tensors(archive))
    if is_unimodal(archive.root) and "interaction" not in modules:
        modules, tensors = later_form(modules, tensors, source)
    root, kind = modules[""], modules.get("interaction", {}).get("class")
    if kind is None or not all(is_valid(root.get(key)) for key, is_valid in _MODEL_ATTRIBUTES.items()):
        raise UnsupportedModel(
            f"{source} holds a {quote(root['class'])}, which is not a PyKEEN model with an interaction, such as PyKEEN "
            "saves since 1.9; pass one, or another framework's (docs/frameworks.md), or register it (docs/models.md)"
        )
    entities, rows, inverse = (root[key] for key in _MODEL_ATTRIBUTES)
    modules, tensors = current_form(modules, tensors, archive.path)
    loss = dict(modules.get("loss", {}))
    for path, attributes in modules.items():
        if path.startswith("loss."):
            loss[path.removeprefix("loss.")] = attributes["class"]
    return ModelFile(
        interaction=modules["interaction"]["class"].removesuffix("Interaction"),
        tensors=tensors,
        num_entities=entities,
        num_relations=rows // 2 if inverse else rows,
        inverse_triples=inverse,
        modules=modules,
        loss=loss,
        source=source,
    )


def _from_state_dict(
    tensors: dict[str, torch.Tensor], source: str, interaction: str | None, num_relations: int | None
) -> ModelFile:
    """A model from its tensors alone: other facts come from the caller, or are PyKEEN's defaults."""
    if interaction is None:
        if not conve_shape.looks_like_conve([*tensors]):
            prefix = next(iter(tensors)).partition(".")[0] + "."
            inside = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
            if len(inside) == len(tensors) and conve_shape.looks_like_conve(inside):
                raise UnsupportedModel(
                    f"{source} is a ConvE's state dict whose names begin with {quote(prefix)}, as wrappers of a model "
                    "write them: save the state dict of the model inside"
                )
            raise UnsupportedModel(
                f"{source} is a state dict, and only ConvE's is taken (found {quote(', '.join(tensors))}): pass the "
                f"whole saved model ({PYKEEN_MODEL}), and its state dicts as --checkpoints; models that "
                "docs/frameworks.md does not name must be registered (docs/models.md)"
            )
        interaction = "ConvE"
    interaction = interaction.removesuffix("Interaction")
    modules: dict[str, dict[str, Any]] = {
        "": {"class": interaction},
        "interaction": {"class": f"{interaction}Interaction"},
    }
    if interaction == "ConvE":
        modules["interaction"]["shape_info"] = conve_shape.infer_shape(tensors, source)
        modules |= conve_shape.batch_norm_modules([*tensors])
    entities, rows = (_rows(tensors, source, name) for name in (conve_shape.ENTITIES, conve_shape.RELATIONS))
    if num_relations is None:
        raise UnsupportedModel(
            f"{source} is a state dict: its {rows} relation rows do not say whether they include inverses; "
            "pass --relation-to-id"
        )
    if rows not in (num_relations, 2 * num_relations):
        raise VocabularyMismatch(
            f"{source} has {rows} relation rows, but there are {num_relations} relations "
            f"({2 * num_relations} with inverses)"
        )
    return ModelFile(
        interaction=interaction,
        tensors=tensors,
        num_entities=entities,
        num_relations=num_relations,
        inverse_triples=rows == 2 * num_relations,
        modules=modules,
        loss={},
        source=source,
    )


def _rows(tensors: Mapping[str, torch.Tensor], source: str, name: str) -> int:
    """Rows of an embedding table."""
    if name not in tensors or tensors[name].dim() != 2:
        raise UnsupportedModel(
            f"{source} is not a state dict of a PyKEEN model: expected a table {name}, "
            f"found {quote(', '.join(tensors))}"
        )
    return tensors[name].shape[0]


def _check_arguments(
    model: ModelFile, interaction: str | None, embedding_dim: int | None, num_relations: int | None
) -> None:
    """Compare the caller's facts about the model with the file's."""
    if interaction is not None and interaction.removesuffix("Interaction") != model.interaction:
        raise UnsupportedModel(f"{model.source} is a {model.interaction}, not a {interaction}")
    if num_relations is not None and num_relations != model.num_relations:
        raise VocabularyMismatch(
            f"{model.source} has {model.num_relations} relations, but the relation map has {num_relations}"
        )
    table = model.tensors.get(conve_shape.ENTITIES)
    if embedding_dim is not None and table is not None:
        width = table.shape[-1]
        if width not in (embedding_dim, 2 * embedding_dim):  # complex embeddings are stored as two reals each
            raise UnsupportedModel(
                f"{model.source} has embeddings of {width} values, not {embedding_dim} (--embedding-dim)"
            )


def _check_tables(model: ModelFile) -> None:
    """Compare the tables' rows with the numbers of entities and relations."""
    rows = {
        "entity": model.num_entities,
        "relation": model.num_relations * (2 if model.inverse_triples else 1),
    }
    for name, tensor in model.tensors.items():
        match = re.fullmatch(r"(entity|relation)_representations\.\d+\._embeddings\.weight", name)
        if match and (tensor.dim() != 2 or tensor.shape[0] != rows[match[1]]):
            raise UnreadableModel(
                f"{model.source} contradicts itself: {name} has shape {tuple(tensor.shape)}, "
                f"but the model says {rows[match[1]]} rows"
            )
    if model.interaction == "ConvE":
        shape_info = model.modules.get("interaction", {}).get("shape_info")
        conve_shape.check_shapes(model.tensors, shape_info, model.source)


def _check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise NonFinite(
                    f"{source}: {name} holds {bad} NaN or infinite values of {tensor.numel()}; "
                    "train again or use an earlier checkpoint"
                )
