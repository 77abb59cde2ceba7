"""One generation: a folder that agrees with its manifest."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import TracebackType

from kgtrace_store import layout
from kgtrace_store.errors import CorruptGeneration
from kgtrace_store.manifest import FileRecord, Manifest


class Generation:
    """A generation that is open for reading. Until it is closed, or forgotten, it cannot be pruned."""

    def __init__(self, path: Path, manifest: Manifest, descriptor: int) -> None:
        self.path = path
        """The folder."""
        self.manifest = manifest
        self._release = weakref.finalize(self, os.close, descriptor)

    @property
    def id(self) -> str:
        """The generation's id."""
        return self.manifest.generation

    def verify(self) -> None:
        """Compare every file with the manifest: about a second for each gigabyte.

        Raises :class:`CorruptGeneration`, naming the first file that is missing, unknown or different.
        """
        names, _ = list_tree(self.path)
        present = set(names) - {layout.MANIFEST}
        for name in sorted(present ^ set(self.manifest.files)):
            problem = "is not in the manifest" if name in present else "is missing"
            raise CorruptGeneration(f"{self.path / name} {problem}")
        for name, recorded in self.manifest.files.items():
            actual = FileRecord.of(self.path / name)
            if actual.bytes != recorded.bytes:
                raise CorruptGeneration(
                    f"{self.path / name} has {actual.bytes} bytes, the manifest says {recorded.bytes}"
                )
            if actual.sha256 != recorded.sha256:
                raise CorruptGeneration(
                    f"{self.path / name} has sha256 {actual.sha256}, the manifest says {recorded.sha256}"
                )

    def close(self) -> None:
        """Let the generation be pruned. Arrays that are already mapped stay readable."""
        self._release()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def list_tree(folder: Path) -> tuple[list[str], list[str]]:
    """Paths inside a folder, with ``/``: everything but folders, sorted, and folders, innermost first.

    Symbolic links are not followed: they are in the first list, even those to folders.
    """
    files: list[str] = []
    folders: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        (folders if path.is_dir() and not path.is_symlink() else files).append(name)
    return files, folders[::-1]
