"""Commit, publish, roll back; what is damaged is named."""

import json
import os
from pathlib import Path

import pytest

from kgtrace_store import layout
from kgtrace_store.errors import (
    CorruptGeneration,
    GenerationNotFound,
    IndexNotFound,
    PublishConflict,
    SchemaTooNew,
    StorageFailed,
)
from kgtrace_store.generations import IndexRoot
from tests.store.building import A, B, C, build


def test_a_build_becomes_a_generation(root: IndexRoot) -> None:
    """What was staged is found under the id, with its manifest, and nothing of the build is left."""
    id_ = build(root, A)
    assert root.current() == id_
    assert layout.GENERATION_ID.fullmatch(id_)
    with root.open() as generation:
        assert generation.id == id_
        assert (generation.path / "top.txt").read_bytes() == A.encode()
        manifest = generation.manifest
    assert list(manifest.files) == ["sub/deep/empty", "top.txt"]
    assert manifest.files["top.txt"].bytes == 64
    assert (manifest.fingerprint, manifest.configuration) == (A, {"dim": 4})
    assert (manifest.counts, manifest.provenance) == ({"triples": 2}, {"by": "test"})
    assert manifest.created_at.endswith("Z")
    assert list((root.path / layout.STAGING).iterdir()) == []


def test_a_commit_is_not_live_until_published(root: IndexRoot) -> None:
    """Between commit and publication the old generation serves on."""
    first = build(root, A)
    second = build(root, B, publish=False)
    assert root.current() == first
    assert [(s.id, s.live) for s in root.generations()] == [(first, True), (second, False)]
    with root.open(second) as generation:
        assert generation.manifest.fingerprint == B


def test_ids_sort_by_age(root: IndexRoot) -> None:
    """Builds within one second, or after the clock was set back, still get later ids."""
    ids = [build(root, fingerprint) for fingerprint in (C, B, A, A)]
    assert ids == sorted(set(ids))
    assert [s.id for s in root.generations()] == ids


def test_empty_roots_say_what_to_do(root: IndexRoot) -> None:
    """A root that does not exist, or has nothing live, is not found."""
    assert root.current() is None
    assert root.generations() == []
    with pytest.raises(IndexNotFound, match="has no live generation: build one first"):
        root.open()
    id_ = build(root, A, publish=False)
    with pytest.raises(IndexNotFound, match=f"publish one of {id_}"):
        root.open()
    with pytest.raises(IndexNotFound):
        root.rollback()


def test_what_is_missing_is_named(root: IndexRoot, tmp_path: Path) -> None:
    """Whoever waits for a generation is told what it waits for, at each step."""
    assert root.missing() == f"{root.path} does not exist"
    (tmp_path / "file").touch()
    assert IndexRoot(tmp_path / "file").missing() == f"{tmp_path / 'file'} is not a folder"
    root.path.mkdir()
    assert root.missing() == f"{root.path} holds no index, neither a generation nor an unfinished build"
    with root.stage(A):
        assert root.missing() == f"{root.path} has no generation, but a build that has not finished"
    id_ = build(root, B, publish=False)
    assert root.missing() == f"{root.path} has no live generation, publish one of {id_}"
    root.publish(id_)
    assert root.missing() is None
    assert "cannot be read: File name too long" in str(IndexRoot(tmp_path / ("x" * 300)).missing())


@pytest.mark.parametrize("id_", ["20200101T000000Z-abcdef", "../../etc", "", ".", "manifest.json"])
def test_unknown_generations_are_not_found(root: IndexRoot, id_: str) -> None:
    """The message lists those that there are; a path is no id."""
    known = build(root, A)
    for method in (root.open, root.publish):
        with pytest.raises(GenerationNotFound, match=f"it has {known}"):
            method(id_)


# Corruption.


def test_corruption_is_named(root: IndexRoot) -> None:
    """A flipped, cut, deleted, extra, replaced or linked file fails verification, and the message names it."""
    id_ = build(root, A)
    folder = root.path / layout.GENERATIONS / id_
    top = folder / "top.txt"

    def expect(message: str) -> None:
        with pytest.raises(CorruptGeneration, match=message):
            root.open()
        with pytest.raises(CorruptGeneration, match=message):
            root.publish(id_)
        root.open(verify=False).close()

    data = top.read_bytes()
    top.write_bytes(b"b" + data[1:])
    expect(r"top\.txt has sha256 \w{64}, the manifest says \w{64}")
    top.write_bytes(data[:-1])
    expect(r"top\.txt has 63 bytes, the manifest says 64")
    top.unlink()
    expect(r"top\.txt is missing")
    top.mkdir()
    expect(r"top\.txt is missing")
    top.rmdir()
    (folder.parent / "elsewhere").write_bytes(data)
    top.symlink_to(folder.parent / "elsewhere")
    expect(r"top\.txt is not a regular file")
    top.unlink()
    os.mkfifo(top)
    expect(r"top\.txt is not a regular file")
    top.unlink()
    top.write_bytes(data)
    (folder / "sub" / "extra").write_bytes(b"")
    expect("sub/extra is not in the manifest")
    (folder / "sub" / "extra").unlink()
    (folder / "link").symlink_to(folder / "sub")
    expect("link is not in the manifest")
    (folder / "link").unlink()
    root.open().close()


def test_broken_generations_are_listed(root: IndexRoot) -> None:
    """The list goes on past a generation that cannot be read, and says why."""
    ids = [build(root, fingerprint) for fingerprint in (A, B, C)]
    folder = root.path / layout.GENERATIONS
    (folder / ids[0] / layout.MANIFEST).unlink()
    manifest = folder / ids[1] / layout.MANIFEST
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "schema_version": 9}) + "\n")
    (folder / "lost+found").mkdir()
    missing, newer, fine = root.generations()
    assert missing.manifest is None
    assert "is missing" in str(missing.problem)
    assert "schema version 9" in str(newer.problem)
    assert (fine.problem, fine.live) == (None, True)
    with pytest.raises(CorruptGeneration, match=r"cannot read .*manifest\.json"):
        root.open(ids[0])
    with pytest.raises(SchemaTooNew):
        root.open(ids[1])


def test_a_manifest_of_another_generation_is_refused(root: IndexRoot) -> None:
    """A copied folder does not pass for a generation of its own."""
    id_ = build(root, A)
    folder = root.path / layout.GENERATIONS / id_
    folder.rename(folder.with_name("20200101T000000Z-abcdef"))
    with pytest.raises(CorruptGeneration, match=f"holds the manifest of generation {id_}"):
        root.open("20200101T000000Z-abcdef")


@pytest.mark.parametrize("content", [b"", b"\xff", b"../../etc\n", b"20200101T000000Z-abcdef\n\n"])
def test_a_foreign_current_is_refused(root: IndexRoot, content: bytes) -> None:
    """What is not an id is not followed; publishing repairs it."""
    id_ = build(root, A)
    (root.path / layout.CURRENT).write_bytes(content)
    for method in (root.current, root.open, root.generations, root.rollback, lambda: root.prune(1)):
        with pytest.raises(CorruptGeneration, match=r"CURRENT holds .*publish one anew"):
            method()
    root.publish(id_)
    assert root.current() == id_


def test_a_current_that_leads_nowhere(root: IndexRoot) -> None:
    """A live generation that somebody deleted is not found."""
    build(root, A)
    (root.path / layout.CURRENT).write_text("20200101T000000Z-abcdef\n")
    with pytest.raises(GenerationNotFound, match="20200101T000000Z-abcdef"):
        root.open()


# Publishing.


def test_publishing_compares_and_swaps(root: IndexRoot) -> None:
    """Whoever published in between is not overwritten."""
    first = build(root, A, publish=False)
    second = build(root, B, publish=False)
    root.publish(first, expected=None)
    with pytest.raises(PublishConflict, match=f"is {first}, expected None"):
        root.publish(second, expected=None)
    assert root.current() == first
    root.publish(second, expected=first)
    with pytest.raises(PublishConflict, match=f"is {second}, expected {first}"):
        root.publish(first, expected=first)
    root.publish(first)
    assert root.current() == first


def test_rollback_goes_back_one_at_a_time(root: IndexRoot) -> None:
    """Each step publishes the generation before the live one, until there is none."""
    first, second, third = (build(root, fingerprint) for fingerprint in (A, B, C))
    assert [root.rollback(), root.rollback()] == [second, first]
    with pytest.raises(GenerationNotFound, match=f"no generation before the live one, {first}"):
        root.rollback()
    root.publish(third)
    assert root.current() == third


def test_rollback_refuses_a_broken_generation(root: IndexRoot) -> None:
    """The live generation stays when the one before it is damaged."""
    first, second = build(root, A), build(root, B)
    (root.path / layout.GENERATIONS / first / "top.txt").write_bytes(b"")
    with pytest.raises(CorruptGeneration):
        root.rollback()
    assert root.current() == second


def test_failing_to_publish_keeps_the_live_generation(root: IndexRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the last moment changes nothing."""
    first = build(root, A)
    second = build(root, B, publish=False)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match=r"cannot write .*CURRENT\.tmp: No space left on device \(needed 24 bytes"):
        root.publish(second)
    monkeypatch.undo()
    assert root.current() == first
    root.publish(second)
    assert root.current() == second
