"""File systems without locks: readers do not need them, writers name what is missing."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kgtrace_server.cli import main
from kgtrace_store import IndexRoot
from kgtrace_store.arrays import assemble, open_arrays, read_blocks, read_part, write_part
from kgtrace_store.errors import CorruptGeneration, KgtraceError, LocksUnavailable

FINGERPRINT = "ab" * 32
CODES = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO)
"""What NFS without a lock daemon, Lustre without -o flock and others answer."""

PRELOADED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/file.h>
int flock(int fd, int operation) { errno = ENOLCK; return -1; }
static int refused(int command) {
  return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
}
#define REPLACE(name) \
  int name(int fd, int command, ...) { \
    va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \
    if (refused(command)) { errno = ENOLCK; return -1; } \
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #name); \
    return real(fd, command, argument); \
  }
REPLACE(fcntl)
REPLACE(fcntl64)
"""
"""Makes every lock of a process fail, HDF5's own included."""

READ = """
import sys
from pathlib import Path
from kgtrace_store import IndexRoot
from kgtrace_store.arrays import assemble, open_arrays, read_part, write_part
from kgtrace_store.errors import LocksUnavailable
import numpy as np

root, scratch = map(Path, sys.argv[1:])
with IndexRoot(root).open() as generation:
    print(open_arrays(generation.path / "gradients.h5")["a"].sum())
write_part(scratch / "part.h5", {"a": np.arange(5)})
assemble([scratch / "part.h5"], scratch / "all.h5")
print(read_part(scratch / "all.h5")["a"].sum())
try:
    with IndexRoot(root).stage("cd" * 32):
        print("staged")
except LocksUnavailable as e:
    print(e)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An index root with one live generation that holds an array."""
    index = IndexRoot(tmp_path / "index")
    with index.stage(FINGERPRINT) as staging:
        staging.write_part("0", {"a": np.arange(10)})
        assemble([staging.part_path("0")], staging.path / "gradients.h5")
        generation = staging.commit(configuration={}, counts={"triples": 10}, provenance={})
    index.publish(generation)
    return index.path


def without_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let every lock of this process fail, but for HDF5's."""

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.mark.parametrize("code", CODES)
def test_readers_need_no_locks(root: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A generation opens, verifies and lists as ever."""
    without_locks(monkeypatch, code)
    with IndexRoot(root).open() as generation:
        assert open_arrays(generation.path / "gradients.h5")["a"].tolist() == list(range(10))
    assert [status.live for status in IndexRoot(root).generations()] == [True]


def stage(root: IndexRoot) -> None:
    with root.stage("cd" * 32):
        pass


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("write", [stage, lambda root: root.publish(root.current()), lambda root: root.prune(1)])
def test_writers_name_what_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int, write: Callable[[IndexRoot], Any]
) -> None:
    """Two of them could be at work at once, so they refuse; the live generation stays, and so does every file."""
    index = IndexRoot(root)
    index.prune(1)  # makes what folders and lock files it needs
    before = sorted(root.rglob("*"))
    without_locks(monkeypatch, code)
    with pytest.raises(
        LocksUnavailable, match=rf"cannot lock {root}/.*: {os.strerror(code)}: .*reading needs no locks"
    ):
        write(index)
    assert sorted(set(root.rglob("*")) - {root / "build.lock"}) == sorted(set(before) - {root / "build.lock"})
    index.open().verify()


def test_the_command_line_says_it_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no fault to report."""
    without_locks(monkeypatch, errno.ENOLCK)
    assert main(["list", "--index", str(root)]) == 0
    capsys.readouterr()
    assert main(["prune", "--index", str(root)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"kgtrace: cannot lock {root}/publish.lock: No locks available: its file system has no locks"
    )


def test_prune_asks_for_a_lock_as_nfs_grants_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There an exclusive lock needs a descriptor that is open for writing."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    index = IndexRoot(root)
    (old,) = [status.id for status in index.generations()]
    with index.stage("cd" * 32) as staging:
        new = staging.commit(configuration={}, counts={}, provenance={})
    index.publish(new)
    assert index.prune(1) == [old]


def test_hdf5_is_asked_for_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads or writes a file of an index says so; a file in memory has none."""
    opened = []
    real = h5py.File

    def record(*args: Any, **arguments: Any) -> Any:
        opened.append(arguments)
        return real(*args, **arguments)

    monkeypatch.setattr(h5py, "File", record)
    write_part(tmp_path / "part.h5", {"a": np.arange(5)})
    assemble([tmp_path / "part.h5"], tmp_path / "all.h5")
    read_part(tmp_path / "part.h5")
    open_arrays(tmp_path / "all.h5")
    list(read_blocks(tmp_path / "all.h5"))
    on_disk = [arguments for arguments in opened if arguments.get("driver") != "core"]
    assert len(on_disk) >= 6
    assert all(arguments.get("locking") is False for arguments in on_disk)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOLCK, errno.EIO])
def test_a_refusal_of_the_system_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The message has the system's reason, in one line."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, "Unable to open file\n, errno = ...")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(CorruptGeneration) as caught:
        open_arrays(tmp_path / "all.h5")
    assert str(caught.value) == f"cannot read {tmp_path / 'all.h5'}: {os.strerror(code)}"


def test_the_error_is_of_the_tree_and_of_the_system() -> None:
    """Both kinds of handler catch it."""
    assert issubclass(LocksUnavailable, KgtraceError)
    assert issubclass(LocksUnavailable, OSError)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to make a library that refuses locks")
def test_a_process_whose_every_lock_fails(root: Path, tmp_path: Path) -> None:
    """HDF5 takes its locks in C, where only a preloaded library can refuse them."""
    library = tmp_path / "nolock.so"
    (tmp_path / "nolock.c").write_text(PRELOADED)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nolock.c", "-ldl"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    answer = subprocess.run(
        [sys.executable, "-c", READ, root, tmp_path],
        env={**environment, "LD_PRELOAD": str(library)},
        text=True,
        capture_output=True,
        check=True,
    )
    read, written, refused = answer.stdout.splitlines()
    assert (read, written) == ("45", "10")
    assert refused.startswith(f"cannot lock {root}/build.lock: No locks available")
