"""Builds that are interrupted: the live generation answers as before, and the next build makes up for it."""

import random
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from kgtrace_indexer import append
from kgtrace_store.errors import StorageFailed
from tests.end_to_end.conftest import TRIPLES, Answer, Night, Umls, files, small_steps
from tests.faults import BROKEN, FULL, Disk, Killed, Lost, failing, interrupted

SAMPLED = 4
"""Steps that the quick tests are interrupted at; the slow ones take all."""


def sample(steps: Iterable[int]) -> list[int]:
    """Return a few of the steps, the same in each run."""
    return sorted(random.Random(0).sample(list(steps), SAMPLED))


def operations(night: Night) -> range:
    """Number the file operations of a build and its publication, and what comes after the last of them."""
    return range(len(night.operations) + 1)


def writes(night: Night, folder: Path) -> range:
    """Number the writes, fsyncs, renames and mkdirs, and what comes after the last of them."""
    with failing(-1, FULL) as done:
        night.build(shutil.copytree(night.begun, folder / "counted"))
    return range(len(done) + 1)


def kill(night: Night, folder: Path, how: str, steps: Iterable[int]) -> list[Answer]:
    """Interrupt a build at each of the steps, check what it left, and return what was found live."""
    found = []
    for at in steps:
        root = shutil.copytree(night.begun, folder / str(at))
        with interrupted(at, how), suppress(Killed, StorageFailed):
            night.build(root)
        found.append(night.check(root))
        shutil.rmtree(root)
    return found


def cut_power(night: Night, folder: Path, lost: Lost, steps: Iterable[int]) -> list[Answer]:
    """Cut the power in the middle of each of the steps, check what is left, and return what was found live."""
    found = []
    for at in steps:
        root, left = shutil.copytree(night.begun, folder / str(at)), folder / f"{at}-left"
        disk = Disk(root)
        with disk, interrupted(at, "half"), suppress(Killed):
            night.build(root)
        disk.after_power_cut(left, lost)
        disk.close()
        found.append(night.check(left))
        shutil.rmtree(root)
        shutil.rmtree(left)
    return found


def fail(night: Night, folder: Path, code: int, steps: Iterable[int]) -> list[Answer]:
    """Let each of the writes fail, check what is left, and return what was found live."""
    found = []
    for at in steps:
        root = shutil.copytree(night.begun, folder / str(at))
        with failing(at, code), suppress(StorageFailed):
            night.build(root)
        found.append(night.check(root))
        shutil.rmtree(root)
    return found


def test_a_build_killed_at_some_steps(night: Night, tmp_path: Path) -> None:
    """A build that dies between or in the middle of file operations is made up for, bit for bit."""
    assert kill(night, tmp_path, "half", sample(operations(night)))


def test_power_cuts_at_some_steps(night: Night, tmp_path: Path) -> None:
    """The same when everything is lost that was not forced to disk."""
    assert cut_power(night, tmp_path, "everything", sample(operations(night)))


def test_failures_at_some_steps(night: Night, tmp_path: Path) -> None:
    """A write, fsync, rename or mkdir that fails is a named error, and nothing is lost."""
    assert fail(night, tmp_path, FULL, sample(writes(night, tmp_path)))


def test_a_build_resumed_with_other_threads(night: Night, tmp_path: Path) -> None:
    """Sums in another order make for other last bits in the parts that were not finished; the answers are the same."""
    root = shutil.copytree(night.begun, tmp_path / "root")
    appends = (at for at, name in enumerate(night.operations) if name == "append")  # to the journal
    _directions, _first, second, *_ = appends
    with interrupted(second, "before"), suppress(Killed):
        night.build(root)
    night.build(root, threads=2)
    fingerprint, rows, influences = night.answer(root)
    assert (fingerprint, rows) == night.after[:2]
    assert influences == pytest.approx(night.after[2], rel=1e-4)


def at_all(run: Callable[[range], list[Answer]], steps: range, night: Night) -> None:
    """Run at every step; some leave the old generation live, and some the new one."""
    found = run(steps)
    old, new = found.count(night.before), found.count(night.after)
    print(f"{len(steps)} steps: the old generation was live after {old}, the new one after {new}")
    assert len(found) == old + new
    assert min(old, new) > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after", "half", "fail"])
def test_a_build_killed_at_every_step(night: Night, tmp_path: Path, how: str) -> None:
    """As above, at every file operation of build and publication."""
    at_all(lambda steps: kill(night, tmp_path, how, steps), operations(night), night)


@pytest.mark.slow
@pytest.mark.parametrize("lost", get_args(Lost))
def test_power_cuts_at_every_step(night: Night, tmp_path: Path, lost: Lost) -> None:
    """As above, at every file operation, and whichever part of what was not forced to disk is lost."""
    at_all(lambda steps: cut_power(night, tmp_path, lost, steps), operations(night), night)


@pytest.mark.slow
@pytest.mark.parametrize("code", [FULL, BROKEN])
def test_failures_at_every_step(night: Night, tmp_path: Path, code: int) -> None:
    """As above, at every write, fsync, rename and mkdir, for a full disk and a broken one."""
    at_all(lambda steps: fail(night, tmp_path, code, steps), writes(night, tmp_path), night)


@pytest.mark.slow
def test_an_append_killed_at_every_step(night: Night, umls: Umls, tmp_path: Path) -> None:
    """Extending the live generation is as safe as building one."""
    _, vocabulary, table = umls
    lines = [
        f"{vocabulary.entities[h]}\t{vocabulary.relations[r]}\t{vocabulary.entities[t]}\n"
        for h, r, t in table.ids[TRIPLES : TRIPLES + 12].tolist()
    ]
    (tmp_path / "new.tsv").write_text("".join(lines))
    undisturbed = shutil.copytree(night.begun, tmp_path / "undisturbed")
    with small_steps(), interrupted(-1, "never") as done:
        append(undisturbed, tmp_path / "new.tsv", device="cpu")
    after = night.answer(undisturbed)
    seen = set()
    for at in range(len(done)):
        root = shutil.copytree(night.begun, tmp_path / str(at))
        with small_steps(), interrupted(at, "half"), suppress(Killed):
            append(root, tmp_path / "new.tsv", device="cpu")
        found = night.answer(root)
        if found != after:
            assert found == night.before
            with small_steps():
                append(root, tmp_path / "new.tsv", device="cpu")
        assert night.answer(root) == after
        assert files(root) == files(undisturbed)
        seen.add(found[0])
        shutil.rmtree(root)
    assert seen == {night.before[0], after[0]}
