"""A manifest comes back as it was, or not at all."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kgtrace_store import layout
from kgtrace_store.errors import CorruptGeneration, SchemaTooNew, SchemaTooOld
from kgtrace_store.manifest import FileRecord, Manifest, _checksum

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)
SEGMENTS = st.from_regex(r"[a-z0-9_é]+(\.[a-z0-9]+)?", fullmatch=True)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)
RECORDS = st.builds(FileRecord, st.integers(0, 2**50), st.text("0123456789abcdef", min_size=64, max_size=64))
MANIFESTS = st.builds(
    Manifest,
    generation=st.just("20261123T020000Z-1a2b3c"),
    created_at=st.just("2026-11-23T02:00:00Z"),
    fingerprint=st.text("0123456789abcdef", min_size=64, max_size=64),
    configuration=OBJECTS,
    counts=st.dictionaries(st.text(), st.integers(0), max_size=3),
    files=st.dictionaries(NAMES, RECORDS, max_size=3),
    provenance=OBJECTS,
)


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        generation="20261123T020000Z-1a2b3c",
        created_at="2026-11-23T02:00:00Z",
        fingerprint="1a2b3c" + "0" * 58,
        configuration={"loss": "bce", "dim": 64},
        counts={"triples": 3},
        files={"model/model.json": FileRecord(2, "ab" * 32)},
        provenance={"kgtrace": "0.1.0"},
    )


def change(folder: Path, edit: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Edit the manifest on disk, with a checksum that fits if ``seal``."""
    document = json.loads((folder / layout.MANIFEST).read_text())
    checksum = document.pop("checksum")
    edit(document)
    document["checksum"] = _checksum(document) if seal else checksum
    (folder / layout.MANIFEST).write_text(json.dumps(document) + "\n")


@given(MANIFESTS)
def test_round_trip(manifest: Manifest) -> None:
    """Every field comes back as it was."""
    with tempfile.TemporaryDirectory() as folder:
        manifest.write(Path(folder))
        assert Manifest.read(Path(folder)) == manifest


def test_any_changed_byte_is_noticed(tmp_path: Path, manifest: Manifest) -> None:
    """A flip anywhere is refused or, in white space, without meaning."""
    manifest.write(tmp_path)
    path = tmp_path / layout.MANIFEST
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        try:
            assert Manifest.read(tmp_path) == manifest
        except (CorruptGeneration, SchemaTooNew):  # one flip makes the version a later one
            continue
        assert data[i : i + 1].isspace()


def test_any_truncation_is_noticed(tmp_path: Path, manifest: Manifest) -> None:
    """A manifest that lost its end is refused."""
    manifest.write(tmp_path)
    path = tmp_path / layout.MANIFEST
    data = path.read_bytes().rstrip()
    for i in range(len(data)):
        path.write_bytes(data[:i])
        with pytest.raises(CorruptGeneration):
            Manifest.read(tmp_path)


def test_newer_schemas_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    """The message holds both versions, whatever else has changed in the newer one."""
    manifest.write(tmp_path)
    change(tmp_path, lambda d: d.update(schema_version=99, files=7), seal=False)
    with pytest.raises(SchemaTooNew, match=f"schema version 99, this kgtrace reads up to {layout.SCHEMA_VERSION}"):
        Manifest.read(tmp_path)


def test_older_schemas_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    """The message holds both versions, and says what to do."""
    manifest.write(tmp_path)
    change(tmp_path, lambda d: d.update(schema_version=1, files=7), seal=False)
    with pytest.raises(SchemaTooOld, match=f"version 1, this kgtrace reads {layout.SCHEMA_VERSION}: rebuild the index"):
        Manifest.read(tmp_path)


def test_unknown_fields_are_passed_over(tmp_path: Path, manifest: Manifest) -> None:
    """A later version may add a field without making its indexes unreadable."""
    manifest.write(tmp_path)
    change(tmp_path, lambda d: d.update(colour="green"))
    assert Manifest.read(tmp_path) == manifest


def test_edits_are_noticed(tmp_path: Path, manifest: Manifest) -> None:
    """The configuration of an index cannot be changed after the fact."""
    manifest.write(tmp_path)
    change(tmp_path, lambda d: d["configuration"].update(dim=65), seal=False)
    with pytest.raises(CorruptGeneration, match="was altered"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".", "./x", "a//b", "a/", "x\0", ".."])
def test_paths_out_of_the_generation_are_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    """A manifest cannot make its reader look elsewhere."""
    manifest.write(tmp_path)
    change(tmp_path, lambda d: d["files"].update({name: {"bytes": 1, "sha256": "ab" * 32}}))
    with pytest.raises(CorruptGeneration, match="not a plain path inside the generation"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("counts"), "counts is a NoneType, expected a dict"),
        (lambda d: d.update(fingerprint=3), "fingerprint is a int, expected a str"),
        (lambda d: d.update(schema_version="1"), "schema_version is '1', expected a positive integer"),
        (lambda d: d.update(schema_version=0), "schema_version is 0, expected a positive integer"),
        (lambda d: d["files"].update({"manifest.json": {"bytes": 1, "sha256": "ab" * 32}}), "lists itself"),
        (lambda d: d["files"].update({"a": {"bytes": -1, "sha256": "ab" * 32}}), "size and checksum of 'a'"),
        (lambda d: d["files"].update({"a": {"bytes": 1, "sha256": "AB"}}), "size and checksum of 'a'"),
        (lambda d: d["files"].update({"a": 3}), "size and checksum of 'a' are 3"),
    ],
)
def test_malformed_fields_are_refused(
    tmp_path: Path, manifest: Manifest, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    """The message names the field and what was found in it."""
    manifest.write(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(CorruptGeneration, match=message):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b'{"schema_version": NaN}', "is not JSON: NaN"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Anything but a manifest is named as such."""
    (tmp_path / layout.MANIFEST).write_bytes(content)
    with pytest.raises(CorruptGeneration, match=message):
        Manifest.read(tmp_path)


def test_missing_manifests_are_refused(tmp_path: Path) -> None:
    """A folder without a manifest was never finished."""
    with pytest.raises(CorruptGeneration, match=r"manifest\.json is missing"):
        Manifest.read(tmp_path)
