"""Advisory file locks. The operating system releases them when their process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kgtrace_store import durable
from kgtrace_store.errors import BuilderRunning


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for it. Raises :class:`StorageFailed` where it cannot be created."""
    with durable.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with durable.writing(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def builder(path: Path) -> Iterator[None]:
    """Hold the builder's lock file, which tells others the process id.

    Raises :class:`BuilderRunning` at once when it is taken and :class:`StorageFailed` where it cannot be
    created.
    """
    with durable.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    unused."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
