"""Builds that are interrupted and resumed, and builders that exclude each other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kgtrace_store import durable, layout
from kgtrace_store.arrays import lay_out, open_arrays, read_part, write_rows
from kgtrace_store.errors import (
    BuilderRunning,
    CorruptGeneration,
    ResumeRefused,
)
from kgtrace_store.generations import IndexRoot
from kgtrace_store.staging import place_rows
from tests.store.building import A, B, C, build, fill

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
            places = {"x.h5": (3 * i, rows), "shard/y.h5": (6 - 3 * i, rows)}
            staging.enter(place_rows(staging.path, str(i), places))
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
from kgtrace_store.staging import place_rows
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
