"""The tests of crashes are worth something: without any one of the precautions, they fail."""

import linecache
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from kgtrace_store import durable
from kgtrace_store.generations import IndexRoot
from tests.faults import Lost
from tests.store import test_crashes as crashes

PRECAUTIONS = ("sync_file", "sync_folder", "rename")
"""Functions of `durable` that are left out, one place they are called from at a time."""

Site = tuple[str, str, str]
"""Precaution, the function that takes it, and the line."""

NOT_NEEDED = {
    # Where a file system could keep both names of a renamed folder, emptying the old one would empty the generation.
    # Those that journal a rename as one step, like the simulated one, cannot.
    ("sync_folder", "commit", "durable.sync_folder(self._folder)"),
}
"""Taken all the same."""


def site(name: str) -> Site:
    """Return where the precaution was called from, tests left out."""
    frame = sys._getframe(2)
    while "tests" in Path(frame.f_code.co_filename).parts and frame.f_back is not None:
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return name, frame.f_code.co_name, line


def watched(sites: set[Site], name: str) -> Callable[..., None]:
    real = getattr(durable, name)

    def call(*paths: Path) -> None:
        sites.add(site(name))
        real(*paths)

    return call


def without(name: str, where: Site) -> Callable[..., None]:
    """Leave the precaution out there; instead of being renamed, a file or folder is copied, file by file."""
    real = getattr(durable, name)

    def call(*paths: Path) -> None:
        if site(name) != where:
            real(*paths)
        elif name == "rename":
            copied(*paths)

    return call


def copied(source: Path, target: Path) -> None:
    if source.is_dir():
        durable.make_folder(target)
        for child in sorted(source.iterdir()):
            copied(child, target / child.name)
        durable.remove_tree(source)
    else:
        durable.write_file(target, source.read_bytes())
        durable.remove_file(source)


def survives(folder: Path) -> bool:
    """Whether every test of crashes passes."""
    try:
        for lost in get_args(Lost):
            for before in (crashes.OLD, None):
                crashes.power_cuts(folder / lost / str(before), lost, before)
        for how in ("before", "after", "half"):
            crashes.test_any_step_may_be_the_last(folder / how, how)
    except (Exception, AssertionError):
        return False
    return True


@pytest.mark.slow
def test_every_precaution_is_needed(tmp_path: Path) -> None:
    """Leaving out any fsync of a folder or file, or any rename, at any place, fails a test of crashes."""
    sites: set[Site] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in PRECAUTIONS:
            patch.setattr(durable, name, watched(sites, name))
        root = IndexRoot(tmp_path / "sites")
        for fingerprint in (crashes.OLD, crashes.NEW):
            crashes.build(root, fingerprint)
    assert len(sites) > 10
    survived = set()
    for number, where in enumerate(sorted(sites)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, where[0], without(where[0], where))
            if survives(tmp_path / str(number)):
                survived.add(where)
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    print(f"{len(sites) - len(survived)} of {len(sites)} precautions are needed", sorted(survived))
    assert survived == NOT_NEEDED


@pytest.mark.slow
def test_files_must_be_forced_to_disk(tmp_path: Path) -> None:
    """Leaving out the fsync of what is written fails a test of crashes."""

    @contextmanager
    def opened(path: Path, mode: str, *_: object, **__: object) -> Iterator[Any]:
        with path.open(mode) as f:
            yield f

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "opened", opened)
        assert not survives(tmp_path)
