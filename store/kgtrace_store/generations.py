"""An index root: immutable generations, one of them live.

::

    with root.stage(fingerprint) as staging:      # one builder at a time; resumes after a crash
        ...                                       # parts, then the files of the generation
        id = staging.commit(...)                  # whole, or not there at all
    root.publish(id)                              # swaps one line in CURRENT
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

from kgtrace_store import durable, layout, locks
from kgtrace_store.errors import (
    BadRequest,
    BuilderRunning,
    CorruptGeneration,
    GenerationNotFound,
    IndexNotFound,
    PublishConflict,
    SchemaTooNew,
    SchemaTooOld,
)
from kgtrace_store.generation import Generation
from kgtrace_store.manifest import Manifest
from kgtrace_store.staging import Staging, generation_ids, open_staging


@dataclass(frozen=True, slots=True)
class GenerationStatus:
    """One line of the list of generations."""

    id: str
    live: bool
    manifest: Manifest | None
    """None when it cannot be read."""
    problem: str | None
    """Why it cannot be read."""


class IndexRoot:
    """The folder that holds all generations of one index. It need not exist until something is built."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generations = path / layout.GENERATIONS
        self._staging = path / layout.STAGING

    def require(self) -> None:
        """Raise :class:`IndexNotFound` where nothing was ever built, nor begun."""
        if not self._generations.is_dir() and not self._staging.is_dir():
            raise IndexNotFound(f"there is no index root {self.path}: build one first")

    def missing(self) -> str | None:
        """What is missing here before a generation can be served; None when one is live, or named as live."""
        try:
            if (self.path / layout.CURRENT).exists():
                return None
            if not self.path.exists():
                return f"{self.path} does not exist"
            if not self.path.is_dir():
                return f"{self.path} is not a folder"
            if ids := generation_ids(self._generations):
                return f"{self.path} has no live generation, publish one of {', '.join(ids)}"
            if self._staging.is_dir():
                return f"{self.path} has no generation, but a build that has not finished"
        except OSError as e:
            return f"{self.path} cannot be read: {e.strerror}"
        return f"{self.path} holds no index, neither a generation nor an unfinished build"

    def current(self) -> str | None:
        """The live generation's id, if there is one. Raises :class:`CorruptGeneration` for a foreign
        ``CURRENT``."""
        path = self.path / layout.CURRENT
        try:
            line = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise CorruptGeneration(f"cannot read {path}: {e.strerror}") from e
        live = line.decode("ascii", "replace").removesuffix("\n")
        if not layout.GENERATION_ID.fullmatch(live):
            raise CorruptGeneration(f"{path} holds {live[:100]!r}, expected a generation's id: publish one anew")
        return live

    def generations(self) -> list[GenerationStatus]:
        """All generations, oldest first; unreadable generations are listed with the reason."""
        live = self.current()
        statuses = []
        for id_ in generation_ids(self._generations):
            manifest, problem = None, None
            try:
                manifest = _read_manifest(self._generations / id_)
            except (CorruptGeneration, SchemaTooNew, SchemaTooOld) as e:
                problem = str(e)
            statuses.append(GenerationStatus(id_, id_ == live, manifest, problem))
        return statuses

    def open(self, generation: str | None = None, *, verify: bool = True) -> Generation:
        """Open a generation, by default the live one, and compare its checksums unless ``verify`` is off.

        Raises :class:`IndexNotFound`, :class:`GenerationNotFound`, :class:`CorruptGeneration`,
        :class:`SchemaTooNew` and :class:`SchemaTooOld`.
        """
        opened = self._open(generation) if generation is not None else self._open_live()
        if verify:
            try:
                opened.verify()
            except BaseException:
                opened.close()
                raise
        return opened

    @contextmanager
    def stage(self, fingerprint: str, *, fresh: bool = False) -> Iterator[Staging]:
        """Build a generation; after a crash, the next call with the same fingerprint goes on where it ended.

        ``fingerprint``: a hexadecimal digest of model, triples and configuration. ``fresh`` discards the files of
        an earlier attempt. Raises :class:`BuilderRunning`, :class:`ResumeRefused` and :class:`StorageFailed`.
        """
        durable.make_folder(self.path)
        with locks.builder(self.path / layout.BUILD_LOCK):
            folder = self._staging / fingerprint[: layout.STAGING_KEY_LENGTH]
            yield open_staging(folder, self._generations, fingerprint, fresh=fresh)

    def publish(self, generation: str, *, expected: str | EllipsisType | None = ...) -> None:
        """Make a generation the live one, after comparing its checksums.

        ``expected``: the id (None: no generation) that must be live at that moment, when given.

        Raises :class:`PublishConflict` when another one is, the errors of :meth:`open`, and
        :class:`StorageFailed`; the live generation then stays.
        """
        with self.open(generation), locks.exclusive(self.path / layout.PUBLISH_LOCK):
            if expected is not ...:
                live = self.current()
                if live != expected:
                    raise PublishConflict(f"the live generation of {self.path} is {live}, expected {expected}")
            durable.replace_file(self.path / layout.CURRENT, f"{generation}\n".encode())

    def rollback(self) -> str:
        """Make the generation before the live one live, and return its id.

        Raises :class:`IndexNotFound` when none is live, :class:`GenerationNotFound` when none is older, and
        the errors of :meth:`publish`.
        """
        live = self._live()
        older = [id_ for id_ in generation_ids(self._generations) if id_ < live]
        if not older:
            raise GenerationNotFound(f"{self.path} has no generation before the live one, {live}")
        self.publish(older[-1], expected=live)
        return older[-1]

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest ``keep`` generations, and return the removed ids, oldest first.

        The live generation and generations that are open anywhere stay. Unfinished builds that were last written
        before the live generation was made are removed too, unless a builder is at work.

        Raises :class:`BadRequest` for ``keep`` below 1, the errors of :meth:`require` and :class:`StorageFailed`.
        """
        if keep < 1:
            raise BadRequest(f"keep is {keep}, must be at least 1")
        self.require()
        durable.make_folder(self._staging)
        removed = []
        with locks.exclusive(self.path / layout.PUBLISH_LOCK):
            live = self.current()
            for id_ in generation_ids(self._generations)[:-keep]:
                path = self._generations / id_
                with locks.unused(path / layout.MANIFEST) as unused:
                    if unused and id_ != live:
                        # Removing files takes a while, a rename does not: no reader may find half a
                        # generation.
                        durable.rename(path, self._staging / (layout.PRUNED + id_))
                        removed.append(id_)
            if removed:
                durable.sync_folder(self._generations)
            for path in self._staging.glob(layout.PRUNED + "*"):
                durable.remove_tree(path)
        if live is not None and (self._generations / live).is_dir():
            self._remove_abandoned(before=(self._generations / live / layout.MANIFEST).stat().st_mtime)
        return removed

    def _remove_abandoned(self, before: float) -> None:
        with suppress(BuilderRunning), locks.builder(self.path / layout.BUILD_LOCK):
            for folder in self._staging.iterdir():
                if folder.is_dir() and max(p.stat().st_mtime for p in (folder, *folder.iterdir())) < before:
                    durable.remove_tree(folder)

    def _live(self) -> str:
        live = self.current()
        if live is None:
            ids = generation_ids(self._generations)
            hint = f"publish one of {', '.join(ids)}" if ids else "build one first"
            raise IndexNotFound(f"{self.path} has no live generation: {hint}")
        return live

    def _open_live(self) -> Generation:
        while True:
            live = self._live()
            try:
                return self._open(live)
            except GenerationNotFound:
                if self.current() == live:
                    raise
                # Another one was published, and this one pruned, since CURRENT was read.

    def _open(self, id_: str) -> Generation:
        path = self._generations / id_
        if not layout.GENERATION_ID.fullmatch(id_) or not path.is_dir():
            ids = generation_ids(self._generations)
            raise GenerationNotFound(f"{self.path} has no generation {id_!r}; it has {', '.join(ids) or 'none'}")
        try:
            descriptor = locks.share(path / layout.MANIFEST)
        except OSError as e:
            self._require_folder(path)
            raise CorruptGeneration(f"cannot read {path / layout.MANIFEST}: {e.strerror}") from e
        try:
            self._require_folder(path)
            return Generation(path, _read_manifest(path), descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _require_folder(self, path: Path) -> None:
        if not path.is_dir():
            raise GenerationNotFound(f"{self.path} has no generation {path.name!r}: it was just pruned")


def _read_manifest(path: Path) -> Manifest:
    manifest = Manifest.read(path)
    if manifest.generation != path.name:
        raise CorruptGeneration(f"{path} holds the manifest of generation {manifest.generation}")
    return manifest
