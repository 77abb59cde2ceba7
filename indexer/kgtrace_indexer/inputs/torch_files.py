"""Read files of ``torch.save`` without running them; see :mod:`kgtrace_indexer.inputs.inert`.

Only the format of PyTorch 1.6 and later is understood: a zip archive of uncompressed entries, ``NAME/data.pkl`` beside
``NAME/data/0``, ``NAME/data/1``, ... Everything else is :class:`UnreadableModel`.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kgtrace_indexer.inputs.inert import BadPickle, Storage, StoredTensor, TooLong, read_pickle
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_store.errors import UnreadableModel

MAX_PICKLE_BYTES = 64 * 2**20
"""Largest ``data.pkl`` that is read. A PyKEEN model needs 10 kB; a training-loop checkpoint carries the labels of all
entities, 50 bytes each or so. Its strings take four times as much memory at most."""


class TorchArchive:
    """An open ``torch.save`` file: its objects, and its tensors on request."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str, root: object, *, swap: bool) -> None:
        self.path = path
        self.root = root
        """What was saved: ``dict``, ``list``, ``tuple`` and scalars as they are, the rest as
        :class:`Inert`, :class:`Global` and :class:`StoredTensor`. It may hold cycles."""
        self.size = path.stat().st_size
        """Bytes of the whole file."""
        self._archive = archive
        self._prefix = prefix
        self._swap = swap
        self._unread = self.size
        self._storages: dict[str, tuple[Storage, torch.Tensor]] = {}

    def load(self, tensor: StoredTensor) -> torch.Tensor:
        """The tensor itself, on the CPU, with its own dtype; views of one storage share memory.

        Raises :class:`UnreadableModel` if the storage is missing, has another size than declared, or does not
        hold every element the view would touch.
        """
        storage = self._storage(tensor.storage)  # (numel,)
        size, numel = tensor.size, tensor.numel
        if numel == 0:
            return storage.new_empty(size)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(size, tensor.stride, strict=True))
        if last >= storage.numel() or numel > storage.numel():
            raise self._unreadable(
                f"a tensor of shape {size} reaches element {last} with {numel} values, "
                f"but its storage {quote(tensor.storage.key)} has {storage.numel()}"
            )
        stride = [step if n > 1 else 1 for n, step in zip(size, tensor.stride, strict=True)]
        return storage.as_strided(size, stride, tensor.offset)

    def _storage(self, storage: Storage) -> torch.Tensor:
        """All elements of a storage, (numel,)."""
        if storage.key in self._storages:
            known, elements = self._storages[storage.key]
            if known != storage:
                raise self._unreadable(f"storage {quote(storage.key)} is declared with two types or sizes")
            return elements
        nbytes = storage.numel * storage.dtype.itemsize
        data = self._read(f"data/{storage.key}", nbytes)
        if not data:
            return torch.empty(0, dtype=storage.dtype)
        elements = torch.frombuffer(data, dtype=storage.dtype)
        if self._swap:
            elements.untyped_storage().byteswap(storage.dtype)
        self._storages[storage.key] = (storage, elements)
        return elements

    def _read(self, name: str, nbytes: int) -> bytearray:
        """Contents of an entry, which must have exactly ``nbytes``."""
        try:
            entry = self._archive.getinfo(f"{self._prefix}/{name}")
        except KeyError:
            raise self._unreadable(f"its entry {quote(name)} is missing") from None
        if entry.file_size != nbytes:
            raise self._unreadable(f"its entry {quote(name)} has {entry.file_size} bytes instead of {nbytes}")
        data = bytearray(_stored(self.path, self._archive, entry))
        self._unread -= nbytes
        if self._unread < 0:  # entries that contain each other could add up to any size
            raise self._unreadable("its entries overlap")
        return data

    def _unreadable(self, reason: str) -> UnreadableModel:
        return UnreadableModel(f"{self.path} is damaged: {reason}")


@contextmanager
def open_archive(path: Path) -> Iterator[TorchArchive]:
    """Open a file written by ``torch.save``, for as long as tensors are to be loaded from it.

    Raises :class:`UnreadableModel` for a file that is missing, truncated or foreign.
    """
    try:
        with path.open("rb") as f:
            head = f.read(16)
    except OSError as e:
        raise UnreadableModel(f"cannot read model {path}: {e.strerror}") from e
    if not head.startswith(b"PK\x03\x04"):
        raise UnreadableModel(f"{path} is not a file of torch.save: {_foreign(head)}")
    with _unreadable_zip(path):
        archive = zipfile.ZipFile(path)
    with archive:
        prefix = _prefix(path, archive)
        yield TorchArchive(
            path,
            archive,
            prefix,
            _root(path, archive, prefix),
            swap=_byteorder(path, archive, prefix) != sys.byteorder,
        )


def _foreign(head: bytes) -> str:
    """What a file that is not a zip archive seems to be."""
    if not head:
        return "it is empty"
    if head.startswith(b"\x80"):
        return (
            "it is a bare pickle or was saved by PyTorch before 1.6; where the file is trusted, load it with "
            "torch.load and save it again with torch.save"
        )
    if head.startswith(b"\x93NUMPY"):
        return "it is a NumPy array; of a model saved as such, pass the folder with both tables"
    return "it is not a zip archive"


@contextmanager
def _unreadable_zip(path: Path) -> Iterator[None]:
    """Turn the errors of :mod:`zipfile` for a broken archive into :class:`UnreadableModel`."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        OSError,
        OverflowError,
        RuntimeError,  # encrypted, or a compression zipfile does not know
        UnicodeDecodeError,
    ) as e:
        reason = " ".join(str(e).split())
        raise UnreadableModel(f"{path} is truncated or damaged: {reason}; copy it again") from e


def _prefix(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder inside the archive that holds everything."""
    names = [name for name in archive.namelist() if name.split("/", 1)[1:] == ["data.pkl"]]
    if len(names) != 1:
        raise UnreadableModel(
            f"{path} is not a file of torch.save: a zip archive with {len(names)} entries NAME/data.pkl instead of one"
        )
    return names[0].split("/", 1)[0]


def _root(path: Path, archive: zipfile.ZipFile, prefix: str) -> object:
    """What ``data.pkl`` describes."""
    entry = archive.getinfo(f"{prefix}/data.pkl")
    if entry.file_size > MAX_PICKLE_BYTES:
        raise UnreadableModel(
            f"{path} describes its objects in {entry.file_size} bytes, more than the {MAX_PICKLE_BYTES} "
            "allowed; save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    try:
        return read_pickle(_stored(path, archive, entry))
    except TooLong as e:
        raise UnreadableModel(
            f"{path} describes its objects in {e}; save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except BadPickle as e:
        raise UnreadableModel(f"{path} holds a pickle that torch.save does not write: {e}") from e


def _byteorder(path: Path, archive: zipfile.ZipFile, prefix: str) -> str:
    """``little`` or ``big``; PyTorch before 2.1 did not write it and ran on little-endian machines."""
    try:
        entry = archive.getinfo(f"{prefix}/byteorder")
    except KeyError:
        return "little"
    order = _stored(path, archive, entry)
    if order not in (b"little", b"big"):
        raise UnreadableModel(f"{path} is damaged: its byte order is {quote(order[:16])}")
    return order.decode()


def _stored(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Contents of an entry. A compressed one is refused: it could grow to any size."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise UnreadableModel(f"{path} is not a file of torch.save: its entry {quote(entry.filename)} is compressed")
    with _unreadable_zip(path):
        data = archive.read(entry)
    if len(data) != entry.file_size:
        raise UnreadableModel(
            f"{path} is truncated: its entry {quote(entry.filename)} has {len(data)} bytes instead of {entry.file_size}"
        )
    return data
