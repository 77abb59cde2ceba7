"""A build that dies at any step leaves whole generations only, a live one among them, and can be resumed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kgtrace_store import durable, layout
from kgtrace_store.arrays import assemble, open_arrays
from kgtrace_store.errors import KgtraceError, StorageFailed
from kgtrace_store.generations import IndexRoot
from kgtrace_store.search import FaissSearch
from kgtrace_store.vocabulary import Vocabulary

OLD, NEW = "0" * 64, "1" * 64
OPERATIONS = [
    "write_file",
    "append",
    "make_folder",
    "sync_file",
    "sync_folder",
    "rename",
    "remove_file",
    "remove_tree",
]


def build(root: IndexRoot, fingerprint: str) -> None:
    """What a real build does on disk: parts, arrays, search index, vocabulary, commit, publish, prune."""
    value = float(fingerprint[0])
    before = root.current()
    with root.stage(fingerprint) as staging:
        for name in ("0", "1"):
            if name not in staging.parts():
                staging.write_part(name, {"phi": np.full((3, 2), value, np.float32)})
        assemble([staging.part_path(name) for name in ("0", "1")], staging.path / layout.GRADIENTS)
        phi = open_arrays(staging.path / layout.GRADIENTS)["phi"]
        FaissSearch.build([phi], 6, 2).write(staging.path / layout.SEARCH)
        Vocabulary(["a", "b"], ["r"], {0: fingerprint}).write(staging.path / layout.VOCABULARY)
        durable.make_folder(staging.path / layout.MODEL)
        durable.write_file(staging.path / layout.MODEL / "model.json", fingerprint.encode())
        id_ = staging.commit(configuration={}, counts={"triples": 6}, provenance={})
    root.publish(id_, expected=before)
    root.prune(1)


def check(root: IndexRoot) -> str:
    """Every generation there is, is whole; returns the fingerprint of the live one."""
    assert not any(status.problem for status in root.generations())
    for status in root.generations():
        root.open(status.id).close()
    with root.open() as generation:
        fingerprint = generation.manifest.fingerprint
        phi = open_arrays(generation.path / layout.GRADIENTS)["phi"]
        np.testing.assert_array_equal(phi, np.full((6, 2), float(fingerprint[0]), np.float32))
        assert FaissSearch.read(generation.path / layout.SEARCH).ntotal == 6
        vocabulary = Vocabulary.read(generation.path / layout.VOCABULARY)
        assert vocabulary.entity_names == {0: fingerprint}
    return fingerprint


class Killed(BaseException):
    """Not an Exception, so that no handler can go on after it, as after SIGKILL."""


@contextmanager
def interrupted(at: int, how: str) -> Iterator[list[str]]:
    """Die at the operation with this number: before it, after it, or having done half of it."""
    done: list[str] = []

    def wrap(name: str, operation: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Path, *rest: Any) -> None:
            if len(done) == at:
                if how == "after":
                    operation(path, *rest)
                elif how == "half" and name in ("write_file", "append"):
                    with path.open("wb" if name == "write_file" else "ab") as f:
                        f.write(rest[0][: len(rest[0]) // 2])
                elif how == "half" and name == "remove_tree" and path.exists():
                    for child in sorted(p for p in path.rglob("*") if p.is_file())[::2]:
                        child.unlink()
                elif how == "fail":
                    raise StorageFailed(f"cannot write {path}: No space left on device")
                raise Killed
            done.append(name)
            operation(path, *rest)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(durable, name, wrap(name, getattr(durable, name)))
        yield done


def count_operations(folder: Path) -> int:
    root = IndexRoot(folder)
    build(root, OLD)
    with interrupted(-1, "never") as done:
        build(root, NEW)
    return len(done)


@pytest.mark.parametrize("how", ["before", "after", "half", "fail"])
def test_any_step_may_be_the_last(tmp_path: Path, how: str) -> None:
    """Whatever file operation a build ends at, readers see old or new, whole, and the next build succeeds."""
    total = count_operations(tmp_path / "counted")
    assert total > 40
    seen = set()
    for at in range(total):
        root = IndexRoot(tmp_path / f"{how}{at}")
        build(root, OLD)
        try:
            with interrupted(at, how):
                build(root, NEW)
        except (Killed, StorageFailed):
            pass
        else:
            assert how == "fail"  # failing to tidy up after the commit is not a failure
        seen.add(check(root))
        build(root, NEW)
        assert check(root) == NEW
        assert len(root.generations()) == 1
        assert list((root.path / layout.STAGING).iterdir()) == []
    assert seen == {OLD, NEW}


def test_everything_is_on_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rename makes visible was forced to disk before it, and the rename itself soon after."""
    unsynced: set[Path] = set()
    renames = []
    real = {name: getattr(durable, name) for name in (*OPERATIONS, "opened")}

    def watch(name: str, effect: Callable[[Path, Any], None]) -> None:
        def watched(path: Path, *rest: Any) -> None:
            real[name](path, *rest)
            effect(path, *rest)

        monkeypatch.setattr(durable, name, watched)

    @contextmanager
    def opened(path: Path, *rest: Any) -> Iterator[Any]:
        unsynced.add(path.parent)
        with real["opened"](path, *rest) as f:
            yield f

    def rename(source: Path, target: Path) -> None:
        inside = {p for p in unsynced if p.is_relative_to(source)}
        assert not inside, f"{inside} not on disk when {target} appeared"
        if target.name == layout.CURRENT:
            assert unsynced <= {target.parent}, f"{unsynced} not on disk when a generation went live"
        renames.append(target)
        unsynced.update({source.parent, target.parent})
        real["rename"](source, target)

    monkeypatch.setattr(durable, "opened", opened)
    monkeypatch.setattr(durable, "rename", rename)
    watch("sync_folder", lambda path, *_: unsynced.discard(path))
    root = IndexRoot(tmp_path)
    build(root, OLD)
    build(root, NEW)
    live = root.path / layout.GENERATIONS / str(root.current())
    assert live in renames
    assert renames.index(live) < len(renames) - 1 - renames[::-1].index(root.path / layout.CURRENT)
    assert not {p for p in unsynced if p.exists() and p != root.path / layout.STAGING}


KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_crashes import NEW, OPERATIONS, build
from kgtrace_store import durable
from kgtrace_store.generations import IndexRoot

left = int(sys.argv[2])
def wrap(operation):
    def wrapped(*args):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        operation(*args)
    return wrapped
for name in OPERATIONS:
    setattr(durable, name, wrap(getattr(durable, name)))
build(IndexRoot(Path(sys.argv[1])), NEW)
"""


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.8, 0.95])
def test_sigkill(tmp_path: Path, share: float) -> None:
    """A killed process leaves no lock behind, and its successor finishes the work."""
    at = int(share * count_operations(tmp_path / "counted"))
    root = IndexRoot(tmp_path / "index")
    build(root, OLD)
    killed = subprocess.run([sys.executable, "-c", KILL, root.path, str(at), Path(__file__).parent], check=False)
    assert killed.returncode == -9
    assert check(root) in (OLD, NEW)
    build(root, NEW)
    assert check(root) == NEW


READER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_crashes import check
from kgtrace_store.generations import IndexRoot
root = IndexRoot(Path(sys.argv[1]))
seen = set()
while not (root.path / "stop").exists():
    with root.open() as generation:
        seen.add(generation.id)
        generation.verify()
print(len(seen))
"""


def test_readers_never_see_half(tmp_path: Path) -> None:
    """A process that opens and verifies the live generation all the time succeeds while others come and go."""
    root = IndexRoot(tmp_path)
    build(root, OLD)
    with subprocess.Popen(
        [sys.executable, "-c", READER, tmp_path, Path(__file__).parent], stdout=subprocess.PIPE, text=True
    ) as reader:
        for i in range(40):
            build(root, (OLD, NEW)[i % 2])
        (tmp_path / "stop").touch()
        seen, _ = reader.communicate(timeout=30)
    assert reader.returncode == 0
    assert int(seen) >= 1


def test_errors_leave_as_one_tree(tmp_path: Path) -> None:
    """A root that cannot be written is a named error, not a bare OSError."""
    (tmp_path / "file").write_bytes(b"")
    for method in (
        lambda: build(IndexRoot(tmp_path / "file"), OLD),
        lambda: IndexRoot(tmp_path / "file").prune(1),
    ):
        with pytest.raises(KgtraceError):
            method()
