"""The few file operations whose order on disk matters, and the one place where they fail.

Everything that must survive a power cut goes through these functions, called as ``durable.rename(...)``. A
test that replaces them can therefore stop, fail or count every step of a build. Errors of the operating
system leave as :class:`~kgtrace_store.errors.StorageFailed`.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from kgtrace_store.errors import KgtraceError, StorageFailed


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn failures to write ``path`` into ``StorageFailed``; C libraries report theirs as ``RuntimeError``.

    ``needed`` is the number of bytes that were to be written: on a full disk the message sets it against the
    free bytes.
    """
    try:
        yield
    except KgtraceError:  # some are OSErrors too
        raise
    except (OSError, RuntimeError) as e:
        raise StorageFailed(f"cannot write {path}: {_reason(e, path, needed)}") from e


@contextmanager
def opened(
    path: Path, mode: Literal["wb", "ab", "r+b"], needed: int | None = None, *, flags: int = 0
) -> Iterator[BinaryIO]:
    """Open a file for writing, with further flags of `os.open`, and force it to disk at the end of the block."""
    with writing(path, needed), open(path, mode, opener=lambda name, own: os.open(name, own | flags, 0o666)) as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file and force it to disk. Its folder entry needs :func:`sync_folder`."""
    with opened(path, "wb", len(data)) as f:
        f.write(data)


def append(path: Path, data: bytes) -> None:
    """Append to a file and force it to disk."""
    with opened(path, "ab", len(data)) as f:
        f.write(data)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, unless they exist, and force their names to disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with writing(path):
        path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force a file that somebody else wrote to disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Force a folder's entries (created, renamed, removed names) to disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def rename(source: Path, target: Path) -> None:
    """Rename atomically, replacing a file of that name. Both folders need :func:`sync_folder`."""
    with writing(target):
        source.rename(target)


def require_space(path: Path, needed: int) -> None:
    """Raise ``StorageFailed`` now when ``needed`` bytes for ``path`` would fill the disk later.

    A file system that does not tell its size, as some network ones do not, is given the benefit of the doubt.
    """
    with writing(path, needed):
        usage = shutil.disk_usage(path.parent)
        if usage.total and usage.free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    with writing(path):
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and everything in it, if it is there."""
    with writing(path):
        if path.exists():
            shutil.rmtree(path)


def replace_file(path: Path, data: bytes) -> None:
    """Change a file so that a reader, even after a power cut, finds the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_file(temporary, data)
        rename(temporary, path)
    except StorageFailed:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _sync(path: Path, flags: int) -> None:
    with writing(path):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError | RuntimeError, path: Path, needed: int | None) -> str:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if getattr(error, "errno", None) != errno.ENOSPC and os.strerror(errno.ENOSPC) not in reason:
        return reason
    folder = next(p for p in path.absolute().parents if p.exists())
    free = f"{shutil.disk_usage(folder).free} free"
    sizes = f"needed {needed} bytes, {free}" if needed is not None else f"{free} bytes"
    return f"{os.strerror(errno.ENOSPC)} ({sizes})"
