"""Advisory file locks. The operating system releases them when their process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kgtrace_store import durable
from kgtrace_store.errors import BuilderRunning, LocksUnavailable


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for it.

    Raises :class:`LocksUnavailable`, and :class:`StorageFailed` where the file cannot be created.
    """
    with durable.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(path, descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def builder(path: Path) -> Iterator[None]:
    """Hold the builder's lock file, which tells others the process id.

    Raises :class:`BuilderRunning` at once when it is taken, :class:`LocksUnavailable`, and
    :class:`StorageFailed` where it cannot be created.
    """
    with durable.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _lock(path, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise BuilderRunning(
                f"another builder (process {holder}) is at work in {path.parent}: wait for it or stop it"
            ) from e
        with durable.writing(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def share(path: Path) -> int:
    """Open a file for reading and lock it against :func:`unused`; returns the descriptor, which holds the
    lock."""
    descriptor = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):  # network file systems without locks can still be read
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextlib.contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Whether nobody shares the file; if so, nobody can begin to until the block ends. Missing files are
    unused. Raises :class:`LocksUnavailable`."""
    try:
        # NFS grants an exclusive lock to a file that is open for writing only.
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            _lock(path, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int, operation: int) -> None:
    """Lock an open file. Raises :class:`LocksUnavailable`, and `BlockingIOError` when somebody else holds the lock."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as e:
        raise LocksUnavailable(
            f"cannot lock {path}: {e.strerror}: its file system has no locks, and without them two processes could "
            "write there at once: mount it with locks (NFS: a lock daemon; Lustre: -o flock), or work on another file "
            "system and copy the finished folder; reading needs no locks"
        ) from e
