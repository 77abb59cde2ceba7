"""Trained models as inert data: read from what PyKEEN and PyTorch save, written as safetensors and JSON.

Neither PyKEEN nor anything a pickle names is imported; see :mod:`kgtrace_indexer.inputs.inert`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch

from kgtrace_indexer.inputs import conve_shape
from kgtrace_indexer.inputs.inert import Global, Inert, StoredTensor, quote
from kgtrace_indexer.inputs.pykeen_versions import current_form, current_names
from kgtrace_indexer.inputs.torch_files import TorchArchive, open_archive
from kgtrace_store import durable
from kgtrace_store.errors import (
    BadRequest,
    NonFinite,
    SchemaTooNew,
    UnreadableModel,
    UnsupportedModel,
    VocabularyMismatch,
)

PYKEEN_MODEL = "trained_model.pkl"
"""The model in a folder written by PyKEEN's ``save_to_directory``."""

TENSORS = "model.safetensors"
FACTS = "model.json"
"""The two files of a converted folder."""

FORMAT = "kgtrace-model"
SCHEMA_VERSION = 1

MAX_MODULES = 10_000
MAX_DEPTH = 64
"""Bounds on the module tree of a pickle: a hostile one may contain itself. A ConvE has 18 modules, 3 deep."""

MAX_SHARING = 4
"""How many times the file's own size its tensors may add up to: tied weights are read once for each name."""

MAX_ATTRIBUTES = 100_000
"""Values kept of all modules' attributes together."""

_INT64 = 2**63
_LONGEST_STRING = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """A trained model: its tensors and the few facts needed to compute with them."""

    interaction: str
    """PyKEEN's class name without suffix: ``ConvE``, ``TransE``, ..."""
    tensors: Mapping[str, torch.Tensor]
    """Parameters and buffers by their name in PyKEEN's ``state_dict()``, on the CPU; floats as float32."""
    num_entities: int
    num_relations: int
    """Original relations R, without inverses."""
    inverse_triples: bool
    """Whether the relation table has 2R rows: 2r for relation r, 2r + 1 for its inverse."""
    modules: Mapping[str, Mapping[str, Any]]
    """Attributes by module path: the class name under ``class``, and whatever is plain data (numbers,
    strings, lists and mappings of them). Functions are dotted names, objects mappings with a ``class``. Parameters
    that were not trained are listed under ``frozen``."""
    loss: Mapping[str, Any]
    """The same for the loss, with the class names of its submodules; empty when the file does not say."""
    source: str
    """Name of the file or folder it was read from."""
    checkpoints: tuple[tuple[float, ModelFile], ...] = ()
    """Learning rate η_c and state of the checkpoints that influence is summed over; none: this state alone, η = 1."""
    label_ids: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """Ids by label, of ``entities`` and ``relations``, where the file records them, as checkpoints of PyKEEN's training
    loop do. The id maps are compared with them; `write_model` leaves them out."""

    def fingerprint(self) -> str:
        """sha256, in hex, over everything but `source` and `label_ids`: a converted model keeps its fingerprint."""
        digest = hashlib.sha256(json.dumps(_facts(self), sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        for rate, checkpoint in self.checkpoints:
            digest.update(f"{rate!r} {checkpoint.fingerprint()}".encode())
        return digest.hexdigest()


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
        or ``model_state_dict``, as PyKEEN's checkpoints and those of its training loop do.
    interaction
        Needed for a state dict whose names do not give it away (all but ConvE's); checked otherwise.
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
        model = _read_converted(file.parent)
    else:
        with open_archive(file) as archive:
            if _is_module(archive.root):
                model = _from_module(archive, source)
            else:
                tensors, label_ids = _load(archive, _state_dict(archive)), _label_ids(archive)
                recorded = len(label_ids.get("relations", ())) or None
                model = _from_state_dict(tensors, source, interaction, num_relations or recorded)
                model = dataclasses.replace(model, label_ids=label_ids)
    _check_arguments(model, interaction, embedding_dim, num_relations)
    _check_tables(model)
    _check_finite(model.tensors, model.source)
    return model


def write_model(model: ModelFile, folder: Path) -> None:
    """Write ``model.safetensors`` and ``model.json`` into `folder`, which is made if needed.

    Each file is replaced whole, the JSON last; a reader that finds the two at odds refuses them.
    Raises :class:`StorageFailed`.
    """
    durable.make_folder(folder)
    for i, (_, checkpoint) in enumerate(model.checkpoints):
        write_model(checkpoint, _checkpoint_folder(folder, i))
    durable.replace_file(folder / TENSORS, safetensors.torch.save(_unshared(model.tensors)))
    facts = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **_facts(model),
        "source": model.source,
        "learning_rates": [rate for rate, _ in model.checkpoints],
        "fingerprint": model.fingerprint(),
    }
    durable.replace_file(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())


def with_checkpoints(model: ModelFile, paths: Sequence[Path], learning_rates: Sequence[float]) -> ModelFile:
    """Return the model with checkpoints to sum influence over, in TracInCP's sense; a single rate holds for all.

    Raises what `read_checkpoint` does, and :class:`BadRequest` for another number of rates or one that is not
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
    label_ids: Mapping[str, Mapping[str, int]] = {}
    if file.name == FACTS:
        tensors = _read_converted(file.parent).tensors
    else:
        with open_archive(file) as archive:
            stored = _module_tensors(archive) if _is_module(archive.root) else _state_dict(archive)
            tensors, label_ids = current_names(_load(archive, stored), like.interaction), _label_ids(archive)
    for name in [*like.tensors, *tensors]:
        found, wanted = (
            f"{name} {tuple(t[name].shape)}" if name in t else f"no {name}" for t in (tensors, like.tensors)
        )
        if found != wanted:
            raise UnsupportedModel(
                f"{source} is not a checkpoint of {like.source}: it has {found}, the model has {wanted}"
            )
    _check_finite(tensors, source)
    return dataclasses.replace(like, tensors=tensors, source=source, checkpoints=(), label_ids=label_ids)


def check_place(path: Path) -> None:
    """Raise `UnreadableModel` for a folder that holds no model, naming one below that does."""
    _locate(path)


def _locate(path: Path) -> Path:
    """The file to open: a ``torch.save`` archive, or the ``model.json`` of a converted folder."""
    if path.is_dir():
        if (path / FACTS).is_file():
            return path / FACTS
        if (path / PYKEEN_MODEL).is_file():
            return path / PYKEEN_MODEL
        below = sorted(found for depth in ("*", "*/*") for found in path.glob(f"{depth}/{PYKEEN_MODEL}"))
        raise UnreadableModel(
            f"folder {path} holds no model: neither PyKEEN's {PYKEEN_MODEL} nor {FACTS} with {TENSORS}"
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


# Pickled modules.


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _INT64


_MODEL_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    "num_entities": _is_count,
    "num_relations": _is_count,
    "use_inverse_triples": lambda v: isinstance(v, bool),
}
"""What every PyKEEN model carries; its ``num_relations`` counts inverses too."""


def _is_module(value: object) -> TypeGuard[Inert]:
    return isinstance(value, Inert) and "_modules" in value.attributes


def _from_module(archive: TorchArchive, source: str) -> ModelFile:
    """A whole PyKEEN model."""
    describe = _Describer()
    modules = {path: describe.module(module) for path, module in _walk(archive)}
    root, kind = modules[""], modules.get("interaction", {}).get("class")
    if kind is None or not all(is_valid(root.get(key)) for key, is_valid in _MODEL_ATTRIBUTES.items()):
        raise UnsupportedModel(
            f"{source} holds a {quote(root['class'])}, which is not a PyKEEN model with an interaction, such as PyKEEN "
            "saves since 1.9; pass one, or a model that is registered (docs/models.md)"
        )
    entities, rows, inverse = (root[key] for key in _MODEL_ATTRIBUTES)
    modules, tensors = current_form(modules, _load(archive, _module_tensors(archive)), archive.path)
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


def _module_tensors(archive: TorchArchive) -> dict[str, StoredTensor]:
    """What the module's ``state_dict()`` would hold, in its order."""
    tensors: dict[str, StoredTensor] = {}
    for path, module in _walk(archive):
        attributes = module.attributes
        skipped = _list(attributes.get("_non_persistent_buffers_set"))
        buffers = {k: v for k, v in _dict(attributes.get("_buffers")).items() if k not in skipped}
        for key, value in (_dict(attributes.get("_parameters")) | buffers).items():
            name = f"{path}.{key}" if path else key
            if value is None:
                continue
            if not isinstance(value, StoredTensor):
                raise UnsupportedModel(
                    f"{archive.path.name}: {quote(name)} is made by {_origin(value)}; "
                    "only plain dense tensors can be read"
                )
            if name in tensors:
                raise UnreadableModel(f"{archive.path} holds two tensors named {quote(name)}")
            tensors[name] = value
    return tensors


def _walk(archive: TorchArchive) -> Iterator[tuple[str, Inert]]:
    """Every module with its path, parents first, in the order of ``named_modules``."""
    waiting: list[tuple[str, object, int]] = [("", archive.root, 0)]
    seen = 0
    while waiting:
        path, module, depth = waiting.pop()
        if not _is_module(module):
            raise UnreadableModel(f"{archive.path} holds {_origin(module)} where module {quote(path)} should be")
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_MODULES:
            raise UnreadableModel(
                f"{archive.path} holds modules more than {MAX_DEPTH} deep or more than {MAX_MODULES}: "
                "one that contains itself?"
            )
        yield path, module
        children = _dict(module.attributes.get("_modules"))
        for name, child in reversed(children.items()):
            if child is not None:
                waiting.append((f"{path}.{name}" if path else name, child, depth + 1))


class _Describer:
    """Turns inert attributes into JSON values, up to :data:`MAX_ATTRIBUTES` for all modules of a file."""

    def __init__(self) -> None:
        self._left = MAX_ATTRIBUTES

    def module(self, module: Inert) -> dict[str, Any]:
        """Class name, untrained parameters and public attributes that are plain data (no tensors, bytes, ...)."""
        described: dict[str, Any] = {"class": module.origin.name}
        for name, value in module.attributes.items():
            if not name.startswith("_") and name not in ("training", "class"):
                try:
                    described[name] = self._value(value, depth=0)
                except _Indescribable:
                    continue
        parameters = _dict(module.attributes.get("_parameters"))
        if frozen := [k for k, v in parameters.items() if isinstance(v, StoredTensor) and v.frozen]:
            described["frozen"] = frozen
        return described

    def _value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > 4 or self._left < 0:
            raise _Indescribable
        match value:
            case None | bool():
                return value
            case int() if abs(value) < _INT64:
                return value
            case float():
                return value if math.isfinite(value) else str(value)
            case str() if len(value) < _LONGEST_STRING:
                return value
            case list() | tuple():
                return [self._value(v, depth + 1) for v in value]
            case dict():
                return self._mapping(value, depth)
            case Global():
                return str(value)
            case Inert(Global(_, "getattr"), (Global() as owner, str(name))):
                return f"{owner}.{name}"
            case Inert(Global("functools", "partial"), _, (Global() as function, args, keywords, _)):
                return {
                    "class": "partial",
                    "function": str(function),
                    "args": self._value(args, depth + 1),
                    "keywords": self._value(keywords, depth + 1),
                }
            case Inert():
                return {"class": value.origin.name, **self._mapping(value.attributes, depth)}
        raise _Indescribable

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        public = {k: v for k, v in values.items() if type(k) is str and not k.startswith("_")}
        return {k: self._value(v, depth + 1) for k, v in public.items()}


class _Indescribable(Exception):
    """A value that JSON has no word for."""


# State dicts.


def _state_dict(archive: TorchArchive) -> dict[str, StoredTensor]:
    """The tensors of a state dict, bare or inside a checkpoint."""
    root = archive.root
    found = root if type(root) is dict else {}
    for key in ("state_dict", "model_state_dict"):
        if type(found.get(key)) is dict:
            found = found[key]
            break
    tensors = {k: v for k, v in found.items() if type(k) is str and isinstance(v, StoredTensor)}
    if tensors and len(tensors) == len(found):
        return tensors
    if type(root) is not dict:
        what = _origin(root)
    elif tensors:
        key, value = next((k, v) for k, v in found.items() if not isinstance(v, StoredTensor))
        what = f"a mapping whose entry {quote(key)} is {_origin(value)}, not a tensor"
    else:
        what = f"a mapping with keys {quote(', '.join(str(k) for k in root if type(k) is str))}"
    raise UnreadableModel(
        f"{archive.path} holds {what}; expected a PyKEEN model, a state dict, or a mapping with state_dict "
        "or model_state_dict"
    )


def _label_ids(archive: TorchArchive) -> dict[str, dict[str, int]]:
    """Ids by label that a checkpoint of PyKEEN's training loop carries; empty for other files."""
    root = _dict(archive.root)
    maps = {noun: _dict(root.get(key)) for noun, key in _LABEL_IDS.items()}
    return {noun: ids for noun, ids in maps.items() if ids and all(_is_count(i) for i in ids.values())}


_LABEL_IDS = {"entities": "entity_to_id_dict", "relations": "relation_to_id_dict"}
"""Where those are, by noun."""


def _from_state_dict(
    tensors: dict[str, torch.Tensor], source: str, interaction: str | None, num_relations: int | None
) -> ModelFile:
    """A model from its tensors alone: what they do not say is asked for, or PyKEEN's default."""
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
                f"whole saved model ({PYKEEN_MODEL}), and its state dicts as --checkpoints; other frameworks' models "
                "must be registered (docs/models.md)"
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


# Converted folders.


def _read_converted(folder: Path) -> ModelFile:
    """What :func:`write_model` wrote."""
    facts = _read_facts(folder / FACTS)
    path = folder / TENSORS
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError as e:
        raise UnreadableModel(f"{path} is missing; convert the model again") from e
    except (safetensors.SafetensorError, OSError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UnreadableModel(f"{path} is truncated or damaged: {reason}; convert the model again") from e
    fingerprint, rates = facts.pop("fingerprint"), facts.pop("learning_rates")
    states = [_read_converted(_checkpoint_folder(folder, i)) for i in range(len(rates))]
    model = ModelFile(tensors=tensors, checkpoints=tuple(zip(rates, states, strict=True)), **facts)
    if (found := model.fingerprint()) != fingerprint:
        raise UnreadableModel(
            f"{folder}: {TENSORS} and {FACTS} do not belong together, or one was changed: fingerprint "
            f"{found[:12]}, recorded {quote(fingerprint[:12])}; convert the model again"
        )
    return model


def _checkpoint_folder(folder: Path, i: int) -> Path:
    return folder / "checkpoints" / f"{i:04d}"


def _read_facts(path: Path) -> dict[str, Any]:
    """Fields of :class:`ModelFile` in ``model.json``, and the fingerprint; all there and of their type."""
    try:
        facts = json.loads(path.read_bytes())
    except OSError as e:
        raise UnreadableModel(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UnreadableModel(f"{path} is not JSON: {e}; convert the model again") from e
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UnreadableModel(f"{path} was not written by kgtrace: its format is not {FORMAT!r}")
    version = facts.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise SchemaTooNew(f"{path} has schema version {version}; this kgtrace reads up to {SCHEMA_VERSION}")
    if version != SCHEMA_VERSION:
        raise UnreadableModel(f"{path} has schema version {quote(version)}; this kgtrace reads {SCHEMA_VERSION}")
    for name, is_valid in _FACT_TYPES.items():
        if not is_valid(facts.get(name)):
            raise UnreadableModel(f"{path} is damaged: field {name!r} is missing or wrong; convert the model again")
    return {name: facts[name] for name in _FACT_TYPES}


_FACT_TYPES: dict[str, Callable[[Any], bool]] = {
    "interaction": lambda v: isinstance(v, str),
    "num_entities": _is_count,
    "num_relations": _is_count,
    "inverse_triples": lambda v: isinstance(v, bool),
    "modules": lambda v: isinstance(v, dict) and all(isinstance(m, dict) for m in v.values()),
    "loss": lambda v: isinstance(v, dict),
    "source": lambda v: isinstance(v, str),
    "learning_rates": lambda v: isinstance(v, list) and all(isinstance(rate, float) and rate > 0 for rate in v),
    "fingerprint": lambda v: isinstance(v, str),
}


def _facts(model: ModelFile) -> dict[str, Any]:
    """The JSON side of a model: what is neither tensor nor provenance."""
    return {
        "interaction": model.interaction,
        "num_entities": model.num_entities,
        "num_relations": model.num_relations,
        "inverse_triples": model.inverse_triples,
        "modules": model.modules,
        "loss": model.loss,
    }


# Tensors.


def _load(archive: TorchArchive, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """Read tensors, floats as float32."""
    room = MAX_SHARING * archive.size
    tensors: dict[str, torch.Tensor] = {}
    for name, view in stored.items():
        if not name.isprintable():
            raise UnreadableModel(f"{archive.path} holds a tensor with an unprintable name, {quote(name)}")
        tensor = archive.load(view)
        if tensor.is_complex():
            raise UnsupportedModel(f"{archive.path.name}: {quote(name)} is complex; only real tensors can be read")
        room -= tensor.numel() * tensor.element_size()
        if room < 0:
            raise UnreadableModel(
                f"{archive.path} holds tensors of more than {MAX_SHARING} times its own size: too many share their data"
            )
        tensors[name] = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return tensors


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, each with memory of its own: safetensors has no word for tied weights."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        own = whole and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        separate[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
    return separate


# Checks.


def _check_arguments(
    model: ModelFile, interaction: str | None, embedding_dim: int | None, num_relations: int | None
) -> None:
    """Compare what the caller says about the model with what the file says."""
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


# Inert values.


def _dict(value: Any) -> dict[str, Any]:
    """A dictionary's entries with string keys; of anything else, none."""
    return {k: v for k, v in value.items() if type(k) is str} if type(value) is dict else {}


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _origin(value: Any) -> str:
    """What an inert value is, for a message."""
    return quote(value.origin if isinstance(value, Inert) else type(value).__name__)
