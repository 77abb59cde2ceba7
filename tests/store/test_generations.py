"""Stage, commit, publish, roll back, prune."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kgtrace_store import durable, layout, locks
from kgtrace_store.arrays import lay_out, open_arrays, read_part, write_rows
from kgtrace_store.errors import (
    BadRequest,
    BuilderRunning,
    CorruptGeneration,
    GenerationNotFound,
    IndexNotFound,
    PublishConflict,
    ResumeRefused,
    SchemaTooNew,
    StorageFailed,
)
from kgtrace_store.generations import IndexRoot
from kgtrace_store.staging import Staging

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def fill(staging: Staging, content: bytes = b"content") -> str:
    durable.write_file(staging.path / "top.txt", content)
    durable.make_folder(staging.path / "sub" / "deep")
    durable.write_file(staging.path / "sub" / "deep" / "empty", b"")
    return staging.commit(configuration={"dim": 4}, counts={"triples": 2}, provenance={"by": "test"})


def build(root: IndexRoot, fingerprint: str, *, publish: bool = True) -> str:
    with root.stage(fingerprint) as staging:
        id_ = fill(staging, fingerprint.encode())
    if publish:
        root.publish(id_)
    return id_


@pytest.fixture
def root(tmp_path: Path) -> IndexRoot:
    return IndexRoot(tmp_path / "index")


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


# Pruning.


def test_prune_keeps_the_newest(root: IndexRoot) -> None:
    """The oldest go, and nothing of them is left."""
    ids = [build(root, fingerprint) for fingerprint in (A, B, C, A)]
    assert root.prune(3) == ids[:1]
    assert root.prune(3) == []
    assert root.prune(1) == ids[1:3]
    assert [s.id for s in root.generations()] == ids[3:]
    assert list((root.path / layout.STAGING).iterdir()) == []


def test_prune_keeps_the_live_generation(root: IndexRoot) -> None:
    """However old it is."""
    ids = [build(root, fingerprint) for fingerprint in (A, B, C)]
    root.publish(ids[0])
    assert root.prune(1) == [ids[1]]
    root.open().close()


def test_prune_keeps_what_is_open(root: IndexRoot) -> None:
    """A reader's generation stays until it is closed."""
    first = build(root, A)
    opened = root.open()
    build(root, B)
    assert root.prune(1) == []
    opened.verify()
    opened.close()
    assert root.prune(1) == [first]


@pytest.mark.parametrize("before", [True, False], ids=["before its lock", "after its lock"])
def test_a_reader_that_meets_pruning_opens_the_next(
    root: IndexRoot, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Another is published, and the one that was live pruned, between the look at it and its lock, or after."""
    build(root, A)
    second = build(root, B, publish=False)
    share = locks.share

    def meanwhile(path: Path) -> int:
        monkeypatch.setattr(locks, "share", share)
        descriptor = None if before else share(path)
        root.publish(second)
        path.parent.rename(root.path / "pruned")
        return share(path) if descriptor is None else descriptor

    monkeypatch.setattr(locks, "share", meanwhile)
    with root.open() as opened:
        assert opened.id == second


def test_prune_removes_broken_generations(root: IndexRoot) -> None:
    """A folder without a manifest is pruned like any other."""
    first = build(root, A)
    build(root, B)
    (root.path / layout.GENERATIONS / first / layout.MANIFEST).unlink()
    assert root.prune(1) == [first]


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_keeps_at_least_one(root: IndexRoot, keep: int) -> None:
    """A generation that was committed but not yet published must not vanish."""
    with pytest.raises(BadRequest, match=f"keep is {keep}"):
        root.prune(keep)


def test_prune_needs_a_root(tmp_path: Path) -> None:
    """A folder where nothing was begun is refused and left as it is; an unfinished first build is not disturbed."""
    for path in (tmp_path, tmp_path / "nope"):
        with pytest.raises(IndexNotFound, match=f"there is no index root {path}: build one first"):
            IndexRoot(path).prune(1)
    assert list(tmp_path.iterdir()) == []
    root = IndexRoot(tmp_path)
    with root.stage(A) as staging:
        staging.write_part("0", {"a": np.arange(3)})
        assert root.prune(1) == []
        assert list(staging.parts()) == ["0"]


def test_prune_removes_superseded_builds_only(root: IndexRoot) -> None:
    """An unfinished build goes once a later one is live; a newer or running one stays."""

    def begin(fingerprint: str) -> Path:
        with root.stage(fingerprint) as staging:
            staging.write_part("0", {"a": np.arange(3)})
            return staging.path.parent

    old = begin(A)
    for path in (old, *old.iterdir()):
        os.utime(path, (1, 1))
    build(root, B)
    new = begin(C)
    with root.stage(B):
        root.prune(1)
        assert old.exists()
    root.prune(1)
    assert not old.exists()
    assert new.exists()


# Resuming.


def test_a_build_resumes(root: IndexRoot) -> None:
    """Finished parts survive an error; what was put into the generation's folder is begun anew."""
    with pytest.raises(KeyboardInterrupt), root.stage(A) as staging:  # noqa: PT012 - the build is what is interrupted
        staging.write_part("0", {"a": np.arange(3)})
        staging.write_part("1", {"a": np.arange(4)})
        (staging.path / "half").write_bytes(b"half")
        staging.part_path("2").write_bytes(b"half")
        raise KeyboardInterrupt
    with root.stage(A) as staging:
        assert staging.parts() == ["0", "1"]
        assert list(staging.path.iterdir()) == []
        assert not staging.part_path("2").exists()
        np.testing.assert_array_equal(read_part(staging.part_path("1"))["a"], np.arange(4))
        id_ = fill(staging)
    assert "half" not in root.open(id_).manifest.files


def test_fresh_discards_what_was_begun(root: IndexRoot) -> None:
    """On request a build begins at the beginning."""
    with root.stage(A) as staging:
        staging.write_part("0", {"a": np.arange(3)})
    with root.stage(A, fresh=True) as staging:
        assert staging.parts() == []
        assert not staging.part_path("0").exists()


@pytest.mark.parametrize("tail", [b'{"part": "2", "by', b"\xff\xff", b"3\n", b'{"part": "../0"}\n'])
def test_a_torn_journal_is_repaired(root: IndexRoot, tail: bytes) -> None:
    """A line cut short by a crash is ignored, and the next one does not run into it."""
    with root.stage(A) as staging:
        for name in ("0", "1"):
            staging.write_part(name, {"a": np.arange(3)})
        journal = staging.path.parent / layout.JOURNAL
    journal.write_bytes(journal.read_bytes() + tail)
    with root.stage(A) as staging:
        assert staging.parts() == ["0", "1"]
        staging.write_part("2", {"a": np.arange(3)})
    with root.stage(A) as staging:
        assert staging.parts() == ["0", "1", "2"]


def test_damaged_parts_are_dropped(root: IndexRoot) -> None:
    """A part that is not what the journal says is built again."""
    with root.stage(A) as staging:
        for name in ("0", "1", "2"):
            staging.write_part(name, {"a": np.arange(3)})
        first, second = staging.part_path("0"), staging.part_path("1")
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    with root.stage(A) as staging:
        assert staging.parts() == ["2"]
        assert not second.exists()
        staging.write_part("1", {"a": np.arange(5)})
    with root.stage(A) as staging:
        assert staging.parts() == ["2", "1"]


def test_rows_in_their_places_are_parts(root: IndexRoot) -> None:
    """They are kept as the journal has them; a damaged one is written again, and nothing else stays in the folder."""
    rows = {"a": np.arange(3), "b": np.ones((3, 2), np.float16)}
    with root.stage(A) as staging:
        durable.make_folder(staging.path / "shard")
        for file in ("x.h5", "shard/y.h5", "z.h5"):
            lay_out(staging.path / file, rows, {"a": 9, "b": 9}, {"all": np.arange(2)})
        for i in range(3):
            staging.write_rows(str(i), {"x.h5": (3 * i, rows), "shard/y.h5": (6 - 3 * i, rows)})
    with root.stage(A) as staging:
        assert staging.parts() == ["0", "1", "2"]
        assert not (staging.path / "z.h5").exists()
        for file in ("x.h5", "shard/y.h5"):
            arrays = open_arrays(staging.path / file)
            np.testing.assert_array_equal(arrays["a"], np.tile(np.arange(3), 3))
            np.testing.assert_array_equal(arrays["all"], np.arange(2))
        write_rows(staging.path / "shard/y.h5", 1, {"a": np.array([7])})  # of part 2
    with root.stage(A) as staging:
        assert staging.parts() == ["0", "1"]
        (staging.path / "x.h5").unlink()
    with root.stage(A) as staging:
        assert staging.parts() == []
        assert not any(path.is_file() for path in staging.path.rglob("*"))


def test_other_builds_are_not_resumed(root: IndexRoot) -> None:
    """A folder begun for another fingerprint or schema is refused, with both, until told to start afresh."""
    with root.stage(A) as staging:
        record = staging.path.parent / layout.STAGING_RECORD
    document = json.loads(record.read_text())
    for other in ({**document, "schema_version": 0}, {**document, "fingerprint": A[:16] + "0" * 48}, None):
        record.write_text(json.dumps(other))
        with pytest.raises(ResumeRefused, match="start afresh"), root.stage(A):
            pytest.fail("resumed a foreign build")
    with root.stage(A, fresh=True) as staging:
        assert staging.parts() == []


def test_links_are_not_committed(root: IndexRoot) -> None:
    """A generation holds its own files, or it could change after its checksums were taken."""
    with root.stage(A) as staging:
        (staging.path / "link").symlink_to("/etc/hostname")
        with pytest.raises(CorruptGeneration, match="link is not a regular file"):
            fill(staging)
    assert root.generations() == []


def test_what_does_not_read_back_is_not_committed(root: IndexRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that returns something else than it was given is noticed before anybody relies on it."""
    sync_file = durable.sync_file

    def damaging(path: Path) -> None:
        sync_file(path)
        if path.name == "top.txt":
            path.write_bytes(b"c0ntent")

    live = build(root, A)
    with root.stage(B) as staging:
        staging.write_part("0", {"a": np.arange(3)})
        monkeypatch.setattr(durable, "sync_file", damaging)
        with pytest.raises(CorruptGeneration, match=r"top\.txt has sha256"):
            fill(staging)
    assert [status.id for status in root.generations()] == [root.current()] == [live]
    monkeypatch.undo()
    with root.stage(B) as staging:
        assert staging.parts() == ["0"]
        root.publish(fill(staging))
    assert len(root.generations()) == 2


# Two builders.

HOLD = """
import sys
from pathlib import Path
from kgtrace_store.generations import IndexRoot
with IndexRoot(Path(sys.argv[1])).stage("a" * 64):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_second_builder_is_refused(root: IndexRoot) -> None:
    """One process builds at a time, the message says which, and its death frees the lock."""
    id_ = build(root, B)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, root.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        for fresh in (False, True):
            with (
                pytest.raises(BuilderRunning, match=rf"another builder \(process {holder.pid}\)"),
                root.stage(C, fresh=fresh),
            ):
                pytest.fail("two builders at once")
        assert root.current() == id_
        holder.send_signal(signal.SIGKILL)
    with root.stage(A), pytest.raises(BuilderRunning, match=f"process {os.getpid()}"), root.stage(A):
        pytest.fail("two builders at once")
