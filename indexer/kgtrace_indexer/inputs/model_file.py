"""Trained models as inert data, and the folders of safetensors and JSON that hold them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from kgtrace_indexer.inputs.inert import is_count
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_store import durable
from kgtrace_store.errors import SchemaTooNew, UnreadableModel

TENSORS = "model.safetensors"
FACTS = "model.json"
"""The two files of such a folder."""

FORMAT = "kgtrace-model"
SCHEMA_VERSION = 1


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
    """Attributes of the loss, with the class names of its submodules; empty when the file does not record it."""
    source: str
    """Name of the file or folder it was read from."""
    checkpoints: tuple[tuple[float, ModelFile], ...] = ()
    """Weight and state of the checkpoints, or models of other seeds, that influence is summed over; none: this state
    alone, with weight 1. The weight of a checkpoint is its learning rate η_c, of one of C models 1/C."""
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


def read_converted(folder: Path) -> ModelFile:
    """Read a folder that :func:`write_model` wrote."""
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
    states = [read_converted(_checkpoint_folder(folder, i)) for i in range(len(rates))]
    model = ModelFile(tensors=tensors, checkpoints=tuple(zip(rates, states, strict=True)), **facts)
    if (actual := model.fingerprint()) != fingerprint:
        raise UnreadableModel(
            f"{folder}: {TENSORS} and {FACTS} do not belong together, or one was changed: fingerprint "
            f"{actual[:12]}, recorded {quote(fingerprint[:12])}; convert the model again"
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
    "num_entities": is_count,
    "num_relations": is_count,
    "inverse_triples": lambda v: isinstance(v, bool),
    "modules": lambda v: isinstance(v, dict) and all(isinstance(m, dict) for m in v.values()),
    "loss": lambda v: isinstance(v, dict),
    "source": lambda v: isinstance(v, str),
    "learning_rates": lambda v: isinstance(v, list) and all(isinstance(rate, float) and rate > 0 for rate in v),
    "fingerprint": lambda v: isinstance(v, str),
}


def _facts(model: ModelFile) -> dict[str, Any]:
    """The JSON side of a model: all fields but tensors and provenance."""
    return {name: getattr(model, name) for name in _FACT_TYPES if name not in _PROVENANCE}


_PROVENANCE = ("source", "learning_rates", "fingerprint")


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, each with memory of its own: safetensors has no word for tied weights."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        own = whole and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        separate[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
    return separate
