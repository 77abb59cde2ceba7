"""Pickles and archives as ``torch.save`` writes them, made by hand."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kgtrace_indexer.inputs.inert import StoredTensor
from kgtrace_indexer.inputs.torch_files import TorchArchive, open_archive
from kgtrace_store.errors import UnreadableModel


@dataclass
class Call:
    """Pickles as a call that its reader should not make."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


@dataclass
class Reference:
    """Pickles as a persistent id, whatever it says."""

    id: Any


def dumps(value: object, protocol: int = 2) -> bytes:
    """Pickle with :class:`Reference` as persistent ids."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.id if isinstance(value, Reference) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(
    size: Any = (2, 3),
    stride: Any = (3, 1),
    offset: Any = 0,
    *,
    numel: Any = 6,
    key: Any = "0",
    kind: Any = torch.FloatStorage,
) -> Call:
    """A tensor as ``torch.save`` would write it, but with any numbers."""
    storage = Reference(("storage", kind, key, "cpu", numel))
    return Call(torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict()))


def write_archive(path: Path, data: bytes, entries: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A zip archive in the layout of ``torch.save`` around any pickle; one storage of six floats by default."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in ({"data/0": bytes(24)} if entries is None else entries).items():
            archive.writestr(f"archive/{name}", content)
    return path


def read_all(path: Path) -> Any:
    """Open an archive and load every tensor in it."""
    with open_archive(path) as archive:
        return _loaded(archive, archive.root)


def refusal(path: Path) -> str | None:
    """The error message of reading an archive, if it cannot be read."""
    try:
        read_all(path)
    except UnreadableModel as e:
        return str(e)
    return None


def _loaded(archive: TorchArchive, value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return archive.load(value)
    if isinstance(value, dict):
        return {k: _loaded(archive, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_loaded(archive, v) for v in value)
    return value
