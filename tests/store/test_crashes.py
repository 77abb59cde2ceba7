"""A build that dies at any step leaves whole generations only, a live one among them, and can be resumed."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from kgtrace_store import durable, layout
from kgtrace_store.arrays import lay_out, open_arrays
from kgtrace_store.errors import KgtraceError, StorageFailed
from kgtrace_store.generations import IndexRoot
from kgtrace_store.search import FaissSearch
from kgtrace_store.staging import place_rows
from kgtrace_store.vocabulary import Vocabulary
from tests.faults import OPERATIONS, Disk, Killed, Lost, interrupted

OLD, NEW = "0" * 64, "1" * 64


def build(
    root: IndexRoot, fingerprint: str, finished: list[str] | None = None, published: list[bool] | None = None
) -> None:
    """What a real build does on disk: parts, arrays, search index, vocabulary, commit, publish, prune.

    Tells which parts it has finished, and when it has published.
    """
    value = float(fingerprint[0])
    before = root.current()
    with root.stage(fingerprint) as staging:
        rows = {"phi": np.full((3, 2), value, np.float32)}
        if "bases" not in staging.parts():
            staging.write_part("bases", rows)
        if not (staging.path / layout.GRADIENTS).exists():
            lay_out(staging.path / layout.GRADIENTS, rows, {"phi": 6}, {})
        for name in ("0", "1"):
            if name not in staging.parts():
                staging.enter(place_rows(staging.path, name, {layout.GRADIENTS: (3 * int(name), rows)}))
                if finished is not None:
                    finished.append(name)
        phi = open_arrays(staging.path / layout.GRADIENTS)["phi"]
        FaissSearch.build([phi], 6, 2).write(staging.path / layout.SEARCH)
        Vocabulary(["a", "b"], ["r"], {0: fingerprint}).write(staging.path / layout.VOCABULARY)
        durable.make_folder(staging.path / layout.MODEL)
        (staging.path / layout.MODEL / "model.json").write_bytes(fingerprint.encode())  # forced to disk by nobody
        id_ = staging.commit(configuration={}, counts={"triples": 6}, provenance={})
    root.publish(id_, expected=before)
    if published is not None:
        published.append(True)
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


def count_operations(folder: Path) -> int:
    root = IndexRoot(folder)
    build(root, OLD)
    with interrupted(-1, "never") as done:
        build(root, NEW)
    return len(done)


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("before", "after")]


@pytest.mark.parametrize("how", ["half", "fail", *SLOW])
def test_any_step_may_be_the_last(tmp_path: Path, how: str) -> None:
    """Whatever file operation a build ends at, readers see old or new, whole, and the next build succeeds."""
    total = count_operations(tmp_path / "counted")
    assert total > 40
    begun = IndexRoot(tmp_path / "begun")
    build(begun, OLD)
    seen = set()
    for at in range(total):
        root = IndexRoot(shutil.copytree(begun.path, tmp_path / f"{how}{at}"))
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


def test_power_cuts(tmp_path: Path) -> None:
    """Whatever was not forced to disk is lost: readers see old or new, whole, and the next build goes on."""
    assert power_cuts(tmp_path, "everything", OLD) == {OLD, NEW}


@pytest.mark.slow
@pytest.mark.parametrize("lost", get_args(Lost))
def test_power_cuts_that_lose_a_part(tmp_path: Path, lost: Lost) -> None:
    """The same when the disk wrote down names before content, content before names, or removals before both."""
    assert power_cuts(tmp_path, lost, OLD) == {OLD, NEW}


@pytest.mark.slow
@pytest.mark.parametrize("lost", get_args(Lost))
def test_power_cuts_in_the_first_build(tmp_path: Path, lost: Lost) -> None:
    """The same where nothing was live before."""
    assert power_cuts(tmp_path, lost, None) == {None, NEW}


def power_cuts(folder: Path, lost: Lost, before: str | None) -> set[str | None]:
    """Cut the power before each operation of a build; return which generations were found live afterwards."""
    seen = set()
    begun = IndexRoot(folder / "begun")
    begun.path.mkdir(parents=True)
    if before is not None:
        build(begun, before)
    total = count_operations(folder / "counted")
    for at in range(total + 1):
        root, left = IndexRoot(folder / f"{at}"), IndexRoot(folder / f"{at}-left")
        shutil.copytree(begun.path, root.path)
        finished: list[str] = []
        published: list[bool] = []
        disk = Disk(root.path)
        with disk, interrupted(at, "half"), contextlib.suppress(Killed):
            build(root, NEW, finished, published)
        disk.after_power_cut(left.path, lost)
        disk.close()
        found = None if left.current() is None else check(left)
        assert found == NEW or not published, "a publication was undone"
        with left.stage(NEW) as staging:
            committed = {s.manifest.fingerprint for s in left.generations() if s.manifest is not None}
            assert NEW in committed or set(staging.parts()) >= set(finished), "finished parts are gone"
        seen.add(found)
        build(left, NEW)
        assert check(left) == NEW
        shutil.rmtree(root.path)
        shutil.rmtree(left.path)
    return seen


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
    def opened(path: Path, *rest: Any, **flags: Any) -> Iterator[Any]:
        unsynced.add(path.parent)
        with real["opened"](path, *rest, **flags) as f:
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
from tests.faults import OPERATIONS
from tests.store.test_crashes import NEW, build
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
    killed = subprocess.run([sys.executable, "-c", KILL, root.path, str(at), Path(__file__).parents[2]], check=False)
    assert killed.returncode == -9
    assert check(root) in (OLD, NEW)
    build(root, NEW)
    assert check(root) == NEW


READER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.store.test_crashes import check
from kgtrace_store.generations import IndexRoot
root = IndexRoot(Path(sys.argv[1]))
seen = set()
while not (root.path / "stop").exists():
    with root.open() as generation:
        generation.verify()
        if not seen:
            print("reading", flush=True)
        seen.add(generation.id)
print(len(seen))
"""


def test_readers_never_see_half(tmp_path: Path) -> None:
    """A process that opens and verifies the live generation all the time succeeds while others come and go."""
    root = IndexRoot(tmp_path)
    build(root, OLD)
    with subprocess.Popen(
        [sys.executable, "-c", READER, tmp_path, Path(__file__).parents[2]], stdout=subprocess.PIPE, text=True
    ) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
            for i in range(40):
                build(root, (OLD, NEW)[i % 2])
        finally:
            (tmp_path / "stop").touch()
        seen = reader.stdout.read().splitlines()[-1]
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


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """What was written for it goes, and the error is that of the replacement."""
    target = tmp_path / "file"
    target.mkdir()
    with pytest.raises(StorageFailed, match=f"cannot write {target}: Is a directory"):
        durable.replace_file(target, b"new")
    assert list(tmp_path.iterdir()) == [target]
