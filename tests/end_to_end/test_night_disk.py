"""Builds on disks that are really full: the writes that no test can intercept, those of HDF5 and FAISS, fail too."""

import itertools
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kgtrace_indexer import BuildConfig, build
from kgtrace_store import durable, layout
from kgtrace_store.errors import StorageFailed
from tests.end_to_end.conftest import Night, Umls

PAGE = 4096
"""What the file system gives out at a time."""
LIMITS = 64
"""Lengths that no file may exceed, which the slow test tries."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def room_for(pages: int, disk: Path) -> Iterator[None]:
    """Fill the disk with zeros but for so many pages."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - pages * PAGE))
    assert shutil.disk_usage(disk).free == pages * PAGE
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def longest_file(length: int) -> Iterator[None]:
    """Let the system refuse to write beyond so many bytes of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let builds begin that will fill the disk: somebody else may have filled it since they asked."""
    monkeypatch.setattr(durable, "require_space", lambda *_: None)


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk(umls: Umls, night: Night, small_disk: Path, checked: bool, request: pytest.FixtureRequest) -> None:
    """A generation that does not fit is a named error, told before the work where it can be; nothing is lost."""
    root = shutil.copytree(night.begun, small_disk / "index")
    if not checked:
        request.getfixturevalue("unchecked")
    with pytest.raises(StorageFailed, match="No space left on device"):
        build(root, *umls, BuildConfig(dim=4, landmarks=8, device="cpu", dtype="float32"))
    assert night.answer(root) == night.before
    shutil.rmtree(root / "staging")  # what was finished is kept for another attempt, and fills the disk
    assert night.check(root) == night.before


@pytest.mark.slow
def test_a_disk_that_fills_up_anywhere(night: Night, small_disk: Path, unchecked: None) -> None:
    """Whichever page is the one that is lacking, the error is named, and the build goes on once there is room."""
    told: list[str] = []
    for pages in itertools.count():
        root = shutil.copytree(night.begun, small_disk / "index")
        with room_for(pages, small_disk), errors_in(told):
            night.build(root)
        found = night.check(root)
        shutil.rmtree(root)
        if len(told) == pages:  # it was built
            break
        assert found == night.before
    print(f"{pages} numbers of pages of {PAGE} bytes were too few, each in turn")
    assert all("No space left on device" in line for line in told)
    assert all(any(f"/{name}" in line for line in told) for name in (layout.GRADIENTS, layout.SEARCH, layout.MANIFEST))


@pytest.mark.slow
def test_files_that_may_not_grow(night: Night, tmp_path: Path, unchecked: None) -> None:
    """Wherever in a file the system refuses to go on, the error is named, and the build goes on once it may."""
    told: list[str] = []
    size = max(record.bytes for record in night.files.values())
    for length in range(0, size, size // LIMITS):
        root = shutil.copytree(night.begun, tmp_path / str(length))
        with longest_file(length), errors_in(told):
            night.build(root)
        assert night.check(root) == night.before
        shutil.rmtree(root)
    print(f"{len(told)} lengths below {size} bytes were refused")
    assert len(told) > LIMITS
    assert all("File too large" in line for line in told)
    assert any(f"/{layout.GRADIENTS}" in line for line in told)


@contextmanager
def errors_in(told: list[str]) -> Iterator[None]:
    """Collect what is said when the disk refuses to write."""
    try:
        yield
    except StorageFailed as e:
        told.append(str(e))
