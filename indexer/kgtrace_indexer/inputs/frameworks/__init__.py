"""Models of frameworks other than PyKEEN, as files that are read without importing the frameworks.

Each module recognises one framework's files by their content, and makes a `ModelFile` of them whose interaction is
named after the framework, such as ``PyG.TransE``. `kgtrace_indexer.models.table_scores` computes their scores.
"""

from __future__ import annotations

from pathlib import Path

from kgtrace_indexer.inputs.frameworks import dicee, libkge, npy
from kgtrace_indexer.inputs.frameworks.described import Named
from kgtrace_indexer.inputs.frameworks.known import StoredModel as StoredModel
from kgtrace_indexer.inputs.frameworks.openke import OPENKE
from kgtrace_indexer.inputs.frameworks.pyg import PYG
from kgtrace_indexer.inputs.frameworks.torchkge import TORCHKGE
from kgtrace_indexer.inputs.saved_objects import describe_modules, is_module, load, module_tensors, state_dict
from kgtrace_indexer.inputs.torch_files import TorchArchive
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_store.errors import UnreadableModel
from kgtrace_store.vocabulary import Vocabulary

_STATE_DICTS = (PYG, TORCHKGE, OPENKE)
_FOLDERS = (npy, dicee)


def find_archive(archive: TorchArchive, source: str) -> StoredModel | None:
    """Return the model of another framework in a file of ``torch.save``; None if it is of none known here."""
    root = archive.root
    if is_module(root):
        package = root.origin.module
        for framework in _STATE_DICTS:
            if framework.package and package.startswith(framework.package):
                modules = describe_modules(archive)
                frozen = [path for path, attributes in modules.items() if "weight" in attributes.get("frozen", ())]
                recorded = Named(root.origin.name, modules[""])
                return StoredModel(framework, load(archive, module_tensors(archive)), source, recorded, frozen)
        return None
    if (checkpoint := libkge.find(archive, source)) is not None:
        return checkpoint
    try:
        stored = state_dict(archive)
    except UnreadableModel:  # said better by the reader of all other files
        return None
    nearest = max(_STATE_DICTS, key=lambda framework: framework.shares(stored))
    return StoredModel(nearest, load(archive, stored), source) if nearest.shares(stored) else None


def is_framework_folder(folder: Path) -> bool:
    """Return whether a folder holds the model of another framework."""
    return any(finder.recognises(folder) for finder in _FOLDERS)


def find_folder(folder: Path) -> StoredModel:
    """Return the model in a folder that `is_framework_folder`.

    Raises `UnreadableModel` for damaged files, `UnsupportedModel` for a folder of several models.
    """
    model: StoredModel = next(finder for finder in _FOLDERS if finder.recognises(folder)).find(folder)
    return model


def carried_data(folder: Path, names: Path | None, lang: str = "en") -> tuple[Vocabulary, TripleTable] | None:
    """Return labels and training triples that another framework keeps beside its model; None if there are none.

    Raises `InputError` for files that are damaged or contradict each other.
    """
    return dicee.training_data(folder, names, lang) if dicee.recognises(folder) else None
