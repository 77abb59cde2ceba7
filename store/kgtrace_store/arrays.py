"""Named arrays on disk: written in parts while building, published contiguous, read through memory maps.

A published file holds each array in one piece, because random rows then come straight from a memory map: several times
faster than from chunks, and no HDF5 call is on a reader's path. It is laid out at its full size, closed and forced to
disk before any rows are written into their places, because HDF5 files of a killed writer are unreadable. A part is a
small HDF5 file that is written whole before it gets its name.
"""

import hashlib
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from kgtrace_store import durable
from kgtrace_store.errors import CorruptGeneration

_BLOCK_BYTES = 16 << 20
"""Bytes copied at a time: enough for full disk speed, little beside everything else in memory."""

_METADATA_BYTES = 64 << 10
"""More than HDF5 writes besides the arrays themselves."""

_ALIGNMENT = 64
"""Arrays start on multiples of this many bytes, one cache line, so that memory maps are aligned."""


def write_part(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of any shape (n, ...) into a new file, which appears under its name only when it is whole.

    Raises :class:`StorageFailed`.
    """
    # In memory first: HDF5 cannot close a file on a full disk, and keeps it open until the process ends.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as f:
        for name, array in arrays.items():
            f.create_dataset(name, data=array)
        f.flush()
        image = f.id.get_file_image()
    durable.replace_file(path, image)


def read_part(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, in memory. Raises :class:`CorruptGeneration`."""
    with _open(path) as f:
        return {name: dataset[...] for name, dataset in f.items()}


def lay_out(
    target: Path, like: Mapping[str, np.ndarray], lengths: Mapping[str, int], extra: Mapping[str, np.ndarray]
) -> None:
    """Create a file of contiguous arrays, whose rows :func:`write_rows` writes; force it to disk.

    An array has ``lengths[name]`` rows, of the shape and type of the rows of ``like[name]``. ``extra`` are arrays that
    are written at once. Raises :class:`StorageFailed`.
    """
    shapes = {name: (length, *like[name].shape[1:]) for name, length in lengths.items()}
    _write(target, shapes, {name: like[name].dtype for name in lengths}, [], extra)
    durable.sync_folder(target.parent)


def write_rows(path: Path, start: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write rows into the arrays of a file that was laid out, from number ``start`` on, and force them to disk.

    Other processes, of this machine or of others, may write other rows of it meanwhile.

    Raises :class:`CorruptGeneration` for rows that do not belong there, and :class:`StorageFailed`.
    """
    with _open(path) as f:
        offsets = {name: _offset_of_rows(path, f, name, start, array) for name, array in arrays.items()}
    # An NFS client that may delay a write sends the whole page around it, and with that old rows of its neighbours.
    with durable.opened(path, "r+b", sum(array.nbytes for array in arrays.values()), flags=os.O_DSYNC) as out:
        for name, array in arrays.items():
            if array.size:
                out.seek(offsets[name])
                out.write(np.ascontiguousarray(array).data.cast("B"))


def read_rows(path: Path, names: Sequence[str], rows: range) -> dict[str, np.ndarray]:
    """Rows of some arrays of a file, in memory. Raises :class:`CorruptGeneration`."""
    with _open(path) as f:
        if missing := sorted(set(names) - set(f)):
            raise CorruptGeneration(f"{path} lacks {', '.join(missing)}")
        return {name: _own_dataset(path, f, name)[rows.start : rows.stop] for name in names}


def checksum(arrays: Iterable[np.ndarray]) -> str:
    """The sha256 of the numbers of some arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def assemble(
    parts: Sequence[Path],
    target: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Join parts along axis 0, in the order given, into one contiguous array per name, by bounded copies.

    All parts hold the same names, with the same types and the same shapes but for axis 0; arrays whose names are not
    ``wanted`` are left out. ``extra`` are arrays that belong to no part and are added as they are.

    Raises :class:`CorruptGeneration` for parts that do not fit together and :class:`StorageFailed`.
    """
    shapes, dtypes = _joined(parts, wanted)
    for name in extra or {}:
        if name in shapes:
            raise CorruptGeneration(f"array {name!r} is in the parts and in extra")
    _write(target, shapes, dtypes, (block for part in parts for block in read_blocks(part, wanted)), extra or {})


def open_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """Every array of an assembled file as a read-only memory map.

    Raises :class:`CorruptGeneration` for a missing, truncated or foreign file and for an array not in one
    piece.
    """
    with _open(path) as f:
        return MappingProxyType({name: _map(path, name, _own_dataset(path, f, name)) for name in f})


def let_go(array: np.ndarray) -> None:
    """Give back the memory of the pages of a map that were read; they come from the file again when they are needed."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def read_blocks(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a file that is ``wanted``, in bounded blocks with its name, read rather than mapped.

    Pages read through a map count as memory of the process for as long as the map lives: a pass over a whole file
    should not. Raises :class:`CorruptGeneration`.
    """
    with _open(path) as f:
        for name in filter(wanted, f):
            dataset = _own_dataset(path, f, name)
            if dataset.size:
                step = max(1, _BLOCK_BYTES * len(dataset) // dataset.nbytes)
                for start in range(0, len(dataset), step):
                    yield name, dataset[start : start + step]


def _own_dataset(path: Path, f: h5py.File, name: str) -> h5py.Dataset:
    """Look up an array of numbers, without following a link to another file."""
    dataset = f[name] if f.get(name, getclass=True, getlink=True) is h5py.HardLink else None
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.hasobject:
        raise CorruptGeneration(f"{path}: {name!r} is not an array of numbers in this file")
    return dataset


def _offset_of_rows(path: Path, f: h5py.File, name: str, start: int, rows: np.ndarray) -> int:
    """Where rows of an array begin in the file."""
    if name not in f:
        raise CorruptGeneration(f"{path} lacks {name}")
    dataset = _own_dataset(path, f, name)
    if (dataset.shape[1:], dataset.dtype) != (rows.shape[1:], rows.dtype) or start + len(rows) > len(dataset):
        raise CorruptGeneration(
            f"{path}: array {name!r} of shape {dataset.shape} and type {dataset.dtype} has no place for rows of shape "
            f"{rows.shape} and type {rows.dtype} from {start} on"
        )
    row_bytes = math.prod(rows.shape[1:]) * rows.itemsize
    return int(dataset.id.get_offset() or 0) + start * row_bytes


def _map(path: Path, name: str, dataset: h5py.Dataset) -> np.ndarray:
    if dataset.size == 0:  # HDF5 gives it no place in the file
        empty = np.empty(dataset.shape, dtype=dataset.dtype)
        empty.flags.writeable = False
        return empty
    offset = dataset.id.get_offset()
    if dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS or offset is None:
        raise CorruptGeneration(f"{path}: array {name!r} is not contiguous")
    try:
        return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    except ValueError as e:
        size = path.stat().st_size
        raise CorruptGeneration(
            f"{path}: array {name!r} ends at byte {offset + dataset.nbytes}, the file at {size}"
        ) from e


def _joined(
    parts: Sequence[Path], wanted: Callable[[str], bool]
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.dtype]]:
    """Shape and type of each joined array."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, np.dtype] = {}
    for part in parts:
        with _open(part) as f:
            names = list(filter(wanted, f))
            if shapes and set(names) != set(shapes):
                raise CorruptGeneration(f"{part} holds arrays {sorted(names)}, the parts before it {sorted(shapes)}")
            for name in names:
                dataset = f[name]
                rows, *rest = dataset.shape
                total, *expected = shapes.setdefault(name, (0, *rest))
                if (rest, dataset.dtype) != (expected, dtypes.setdefault(name, dataset.dtype)):
                    raise CorruptGeneration(
                        f"{part}: array {name!r} has rows of shape {tuple(rest)} and type {dataset.dtype}, "
                        f"the parts before it {tuple(expected)} and {dtypes[name]}"
                    )
                shapes[name] = (total + rows, *rest)
    return shapes, dtypes


def _write(
    target: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    blocks: Iterable[tuple[str, np.ndarray]],
    extra: Mapping[str, np.ndarray],
) -> None:
    """Write arrays from their blocks, each name's in order, and ``extra`` ones, into a new contiguous file."""
    more = {name: array.shape for name, array in extra.items()}
    kinds = {name: array.dtype for name, array in extra.items()}
    offsets = _lay_out(target, {**shapes, **more}, {**dtypes, **kinds})
    with durable.opened(target, "r+b") as f:  # HDF5 cannot close a file on a full disk
        for name, block in chain(blocks, extra.items()):
            if block.size:
                f.seek(offsets[name])
                f.write(np.ascontiguousarray(block).data.cast("B"))
                offsets[name] = f.tell()


def _lay_out(target: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]) -> dict[str, int]:
    """Create the file with all arrays in place but not yet written; returns where each that is not empty
    begins."""
    needed = _METADATA_BYTES + sum(math.prod(shapes[name]) * dtypes[name].itemsize for name in shapes)
    durable.require_space(target, needed)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_obj_track_times(False)  # the same arrays make the same file at any time
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    with (
        durable.writing(target, needed),
        h5py.File(target, "w", locking=False, alignment_threshold=1, alignment_interval=_ALIGNMENT) as f,
    ):
        for name in shapes:
            kind = h5py.h5t.py_create(dtypes[name], logical=True)
            dataset = h5py.h5d.create(f.id, name.encode(), kind, h5py.h5s.create_simple(shapes[name]), plan)
            if math.prod(shapes[name]):
                offsets[name] = dataset.get_offset()
    return offsets


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        # Without HDF5's own lock, which some file systems refuse: published files never change, parts are read by the
        # builder that wrote them, and the builder's lock file keeps others out.
        f = h5py.File(path, "r", locking=False)
    except FileNotFoundError as e:
        raise CorruptGeneration(f"{path} is missing") from e
    except OSError as e:
        if e.errno is not None:  # the system refused; e.strerror is HDF5's own report, several lines long
            raise CorruptGeneration(f"cannot read {path}: {os.strerror(e.errno)}") from e
        raise CorruptGeneration(f"{path} is not a whole HDF5 file: {e}") from e
    with f:
        yield f
