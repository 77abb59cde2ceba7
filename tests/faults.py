"""Ways in which a machine fails under a program that writes: killed at a step, out of space, out of power."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pytest

from kgtrace_store import durable
from kgtrace_store.errors import StorageFailed

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
"""Functions of `durable` that change or secure what is on disk."""


class Killed(BaseException):
    """Not an Exception, so that no handler can go on after it, as after SIGKILL."""


@contextmanager
def interrupted(at: int, how: str) -> Iterator[list[str]]:
    """Die at the operation with this number: before it, after it, or having done half of it; or let it fail."""
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


@contextmanager
def failing(at: int, code: int) -> Iterator[list[str]]:
    """Let the write, fsync, rename or mkdir with this number fail as the operating system would."""
    done: list[str] = []

    def step(name: str) -> None:
        done.append(name)
        if len(done) - 1 == at:
            raise OSError(code, os.strerror(code))

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            step(name)
            return real(*args, **kwargs)

        return wrapped

    class File:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            step("write")
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    opened = durable.opened

    @contextmanager
    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with opened(*args, **kwargs) as f:
            yield File(f)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "opened", counted)
        for name in ("fsync", "rename", "mkdir"):
            patch.setattr(os, name, wrap(name))
        yield done


Lost = Literal["everything", "names", "content", "all but removals"]
"""What a power cut takes of that which was not forced to disk: new names, new content, both, or everything but the
removal of files."""


class Disk:
    """Remembers what was forced to disk below a folder, which is all that a power cut must leave.

    Use as a context manager around the writing; `after_power_cut` may be called in it or after it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[int, dict[str, int]] = {}
        self._content: dict[int, bytes] = {}
        self._held: dict[int, int] = {}
        self._fsync = os.fsync
        for path in (root, *root.rglob("*")):
            self._synced(os.open(path, os.O_RDONLY))

    def __enter__(self) -> "Disk":
        """Begin to watch."""
        os.fsync = self._watched
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        os.fsync = self._fsync

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def after_power_cut(self, target: Path, lost: Lost) -> None:
        """Write down what is left, as a folder of its own."""
        self._restore(self._root, self._root.stat().st_ino, target, lost)

    def _watched(self, descriptor: int) -> None:
        self._synced(os.dup(descriptor))

    def _synced(self, descriptor: int) -> None:
        """Take ownership of a descriptor: while it is open, the number of its inode is not given to another."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(descriptor) as entries:
                names = {entry.name: entry.inode() for entry in entries}
            self._names[found.st_ino] = names
        else:
            self._content[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        if found.st_ino in self._held:
            os.close(descriptor)
        else:
            self._held[found.st_ino] = descriptor

    def _restore(self, now: Path | None, inode: int, target: Path, lost: Lost) -> None:
        """Restore a folder that is now at `now`, if it still is anywhere."""
        target.mkdir()
        if lost == "content" and now is not None:
            with os.scandir(now) as entries:
                names = {entry.name: entry.inode() for entry in entries}
        else:
            names = self._names.get(inode, {})
        for name, child in names.items():
            path = self._find(child)
            replaced = now is not None and (now / name).exists()
            if lost == "all but removals" and path is None and not replaced:
                continue
            if child in self._names or (path is not None and path.is_dir()):
                self._restore(path, child, target / name, lost)
            elif lost == "names" and path is not None:
                shutil.copyfile(path, target / name)
            else:
                (target / name).write_bytes(self._content.get(child, b""))

    def _find(self, inode: int) -> Path | None:
        return next((path for path in self._root.rglob("*") if path.lstat().st_ino == inode), None)


FULL, BROKEN = errno.ENOSPC, errno.EIO
