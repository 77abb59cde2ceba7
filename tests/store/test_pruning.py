"""Pruning, beside readers and unfinished builds."""

import os
from pathlib import Path

import numpy as np
import pytest

from kgtrace_store import layout, locks
from kgtrace_store.errors import (
    BadRequest,
    IndexNotFound,
)
from kgtrace_store.generations import IndexRoot
from tests.store.building import A, B, C, build


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
