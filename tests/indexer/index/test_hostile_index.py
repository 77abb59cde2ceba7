"""Index folders that somebody prepared, checksums and all: refused by name, and nothing outside them is read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from kgtrace_indexer import open_index
from kgtrace_store import IndexRoot, layout
from kgtrace_store.errors import KgtraceError
from kgtrace_store.manifest import FileRecord, Manifest

Change = Callable[[Path], object]


def forge(source: Path, target: Path, change: Change, *, sign: bool = True) -> Path:
    """Copy an index root, change its live generation and, if asked, make the manifest agree with the change."""
    shutil.copytree(source, target)
    generation = target / "generations" / str(IndexRoot(target).current())
    change(generation)
    if sign:
        manifest = Manifest.read(generation)
        records = {
            str(path.relative_to(generation)): FileRecord.of(path)
            for path in sorted(generation.rglob("*"))
            if path.is_file() and not path.is_symlink() and path.name != layout.MANIFEST
        }
        replace(manifest, files=records).write(generation)
    return target


def link(name: str, to: str) -> Change:
    """Put a link in place of a file or folder."""

    def change(generation: Path) -> None:
        path = generation / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(to)

    return change


def external_storage(generation: Path) -> None:
    """Let a dataset's values lie in another file."""
    with h5py.File(generation / layout.GRADIENTS, "r+") as f:
        name = next(name for name, found in f.items() if found.ndim == 2)
        shape, dtype = f[name].shape, f[name].dtype
        del f[name]
        size = int(np.prod(shape)) * dtype.itemsize
        f.create_dataset(name, shape, dtype, external=[("/etc/hostname", 0, size)])


def external_link(generation: Path) -> None:
    """Let a dataset be one of another file."""
    with h5py.File(generation / layout.GRADIENTS, "r+") as f:
        name = next(iter(f))
        del f[name]
        f[name] = h5py.ExternalLink("/tmp/elsewhere.h5", "/x")


def in_place_of_an_array(make: Callable[[h5py.File, str], object]) -> Change:
    """Put something else under the name of an array."""

    def change(generation: Path) -> None:
        with h5py.File(generation / layout.GRADIENTS, "r+") as f:
            name = next(iter(f))
            del f[name]
            make(f, name)

    return change


def huge_dataset(generation: Path) -> None:
    """Claim a shape of petabytes, which takes no space while nothing is written."""
    with h5py.File(generation / layout.GRADIENTS, "r+") as f:
        name = next(name for name, found in f.items() if found.ndim == 2)
        dtype = f[name].dtype
        del f[name]
        f.create_dataset(name, (1 << 40, 1 << 10), dtype, chunks=(1 << 10, 1 << 10))


def overwrite(name: str, content: bytes) -> Change:
    """Replace a file."""
    return lambda generation: (generation / name).write_bytes(content)


def overwrite_by(name: str, other: str) -> Change:
    """Replace a file by another one of the generation."""
    return lambda generation: (generation / name).write_bytes((generation / other).read_bytes())


def truncate(name: str, share: float) -> Change:
    """Cut a file."""
    return lambda generation: os.truncate(generation / name, int((generation / name).stat().st_size * share))


def safetensors_header(header: object, *, length: int | None = None) -> Change:
    """Replace the model by a header alone."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return overwrite("model/model.safetensors", (length or len(text)).to_bytes(8, "little") + text)


def manifest_counts(generation: Path) -> None:
    """Claim more triples than there are."""
    manifest = Manifest.read(generation)
    replace(manifest, counts={**manifest.counts, "triples": 1 << 40}).write(generation)


HOSTILE: dict[str, Change] = {
    "gradients linked elsewhere": link(layout.GRADIENTS, "/etc/passwd"),
    "search index linked elsewhere": link(layout.SEARCH, "/etc/passwd"),
    "model folder linked elsewhere": link("model", "/etc"),
    "vocabulary linked to itself": link("vocabulary", "vocabulary"),
    "gradients is a device": link(layout.GRADIENTS, "/dev/zero"),
    "gradients stored in another file": external_storage,
    "gradients linked to another file": external_link,
    "gradients linked within the file": in_place_of_an_array(lambda f, n: f.__setitem__(n, h5py.SoftLink("/"))),
    "gradients a folder": in_place_of_an_array(lambda f, n: f.create_group(n)),
    "gradients of objects": in_place_of_an_array(lambda f, n: f.create_dataset(n, (4,), h5py.string_dtype())),
    "gradients larger than any disk": huge_dataset,
    "gradients empty": overwrite(layout.GRADIENTS, b""),
    "gradients foreign": overwrite(layout.GRADIENTS, b"PK\x03\x04" * 100),
    "gradients cut": truncate(layout.GRADIENTS, 0.5),
    "rows cut": truncate(layout.ROWS.format(1), 0.5),
    "rows of another table": overwrite_by(layout.ROWS.format(0), layout.GRADIENTS),
    "rows gone": lambda generation: [path.unlink() for path in generation.glob(layout.ROWS.format("*"))],
    "scales cut": truncate(layout.SCALES, 0.3),
    "inverted file empty": overwrite(layout.LISTS.format(0), b""),
    "inverted file foreign": overwrite(layout.LISTS.format(0), b"IwSq" + b"\xff" * 64),
    "inverted file cut": truncate(layout.LISTS.format(0), 0.5),
    "inverted file of another table": overwrite_by(layout.LISTS.format(0), layout.LISTS.format(1)),
    "search index empty": overwrite(layout.SEARCH, b""),
    "search index foreign": overwrite(layout.SEARCH, b"IxFI" + b"\xff" * 64),
    "search index cut": truncate(layout.SEARCH, 0.5),
    "model header without end": safetensors_header(b"{", length=1 << 62),
    "model tensor larger than memory": safetensors_header(
        {"x": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}
    ),
    "model tensor outside the file": safetensors_header(
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [1 << 30, (1 << 30) + 16]}}
    ),
    "model facts foreign": overwrite("model/model.json", b'{"interaction": "__import__"}'),
    "model facts nested": overwrite("model/model.json", b"[" * 200_000),
    "manifest counts wrong": manifest_counts,
}


@pytest.mark.parametrize("which", HOSTILE)
def test_prepared_folders_are_refused_by_name(umls_index: Path, tmp_path: Path, which: str) -> None:
    """Each is a named error, in time and memory of the ordinary."""
    root = forge(umls_index, tmp_path / "index", HOSTILE[which])
    with pytest.raises(KgtraceError):
        open_index(root, device="cpu")


def test_an_unchanged_copy_is_accepted(umls_index: Path, tmp_path: Path) -> None:
    """What the others are refused for is their change."""
    root = forge(umls_index, tmp_path / "index", lambda _: None)
    assert len(open_index(root, device="cpu")) > 0
