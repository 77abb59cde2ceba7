"""Modules and state dicts in a file of ``torch.save``: their tensors, and their attributes as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch

from kgtrace_indexer.inputs.inert import Global, Inert, StoredTensor, is_count
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_indexer.inputs.torch_files import TorchArchive
from kgtrace_store.errors import UnreadableModel, UnsupportedModel

MAX_MODULES = 10_000
MAX_DEPTH = 64
"""Bounds on the module tree of a pickle: a hostile one may contain itself. A ConvE has 18 modules, 3 deep."""

MAX_SHARING = 4
"""How many times the file's own size its tensors may add up to: tied weights are read once for each name."""

MAX_ATTRIBUTES = 100_000
"""Values kept of all modules' attributes together."""

_INT64 = 2**63
_LONGEST_STRING = 1_000


def is_module(value: object) -> TypeGuard[Inert]:
    """Whether a value would have been a ``torch.nn.Module``."""
    return isinstance(value, Inert) and "_modules" in value.attributes


def module_tensors(archive: TorchArchive) -> dict[str, StoredTensor]:
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
        if not is_module(module):
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


def describe_modules(archive: TorchArchive) -> dict[str, dict[str, Any]]:
    """Describe every module by its path, as `ModelFile.modules` does."""
    describe = _Describer()
    return {path: describe.module(module) for path, module in _walk(archive)}


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


def state_dict(archive: TorchArchive) -> dict[str, StoredTensor]:
    """The tensors of a state dict, bare or inside a checkpoint."""
    root = archive.root
    entries = root if type(root) is dict else {}
    for key in ("state_dict", "model_state_dict"):
        if type(entries.get(key)) is dict:
            entries = entries[key]
            break
    tensors = {k: v for k, v in entries.items() if type(k) is str and isinstance(v, StoredTensor)}
    if tensors and len(tensors) == len(entries):
        return tensors
    if type(root) is not dict:
        description = _origin(root)
    elif tensors:
        key, value = next((k, v) for k, v in entries.items() if not isinstance(v, StoredTensor))
        description = f"a mapping whose entry {quote(key)} is {_origin(value)}, not a tensor"
    else:
        description = f"a mapping with keys {quote(', '.join(str(k) for k in root if type(k) is str))}"
    raise UnreadableModel(
        f"{archive.path} holds {description}; expected a PyKEEN model, a state dict, or a mapping with state_dict "
        "or model_state_dict"
    )


def label_ids(archive: TorchArchive) -> dict[str, dict[str, int]]:
    """Ids by label that a checkpoint of PyKEEN's training loop carries; empty for other files."""
    root = _dict(archive.root)
    maps = {noun: _dict(root.get(key)) for noun, key in _LABEL_IDS.items()}
    return {noun: ids for noun, ids in maps.items() if ids and all(is_count(i) for i in ids.values())}


_LABEL_IDS = {"entities": "entity_to_id_dict", "relations": "relation_to_id_dict"}
"""Keys of the id maps in a checkpoint, by noun."""


def load(archive: TorchArchive, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
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


def _dict(value: Any) -> dict[str, Any]:
    """A dictionary's entries with string keys; of anything else, none."""
    return {k: v for k, v in value.items() if type(k) is str} if type(value) is dict else {}


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _origin(value: Any) -> str:
    """What an inert value is, for a message."""
    return quote(value.origin if isinstance(value, Inert) else type(value).__name__)
