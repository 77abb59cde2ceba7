"""A build in progress: parts that survive a crash, and the commit that turns a folder into a generation.

::

    staging/KEY/staging.json     identifies the build
    staging/KEY/journal.jsonl    the finished parts, with their checksums
    staging/KEY/parts/           parts that are files; one that is not in the journal does not count
    staging/KEY/generation/      becomes generations/ID in one rename; of an earlier attempt only files are kept that
                                 hold parts which are rows
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_store import durable, layout
from kgtrace_store.errors import CorruptGeneration, StorageFailed
from kgtrace_store.generation import Generation, list_tree
from kgtrace_store.journal import Journal, claim, open_journal
from kgtrace_store.manifest import FileRecord, Manifest

if TYPE_CHECKING:
    import numpy as np


Step = dict[str, Any]
"""A part as the journal has it."""


def place_rows(folder: Path, name: str, places: Mapping[str, tuple[int, Mapping[str, np.ndarray]]]) -> Step:
    """Write a part that is rows of files below a folder, laid out by `arrays.lay_out`; return it for the journal.

    ``places`` give, for each file, the number of the first row and the rows of its arrays. The folder is
    :attr:`Staging.path`, or its name on another machine. Raises :class:`StorageFailed`.
    """
    from kgtrace_store.arrays import checksum, write_rows

    rows: dict[str, Any] = {}
    for file, (start, arrays) in places.items():
        write_rows(folder / file, start, arrays)
        rows[file] = [start, start + len(next(iter(arrays.values()))), list(arrays)]
    digest = checksum(array for _, arrays in places.values() for array in arrays.values())
    return {"part": name, "rows": rows, "sha256": digest}


class Staging:
    """The folder of one build. :func:`open_staging` makes one, under the builder's lock."""

    def __init__(self, folder: Path, generations: Path, fingerprint: str, journal: Journal) -> None:
        self.path = folder / layout.STAGED
        """Everything in this folder becomes the generation."""
        self.fingerprint = fingerprint
        self._folder = folder
        self._generations = generations
        self._journal = journal

    def parts(self) -> list[str]:
        """Names of the finished parts, those of earlier attempts included, in the order they were
        finished."""
        return [step["part"] for step in self._journal.steps]

    def part_path(self, name: str) -> Path:
        """Where a part lies, or is to be written."""
        return self._folder / layout.PARTS / name

    def write_part(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a part and enter it in the journal. Raises :class:`StorageFailed`."""
        from kgtrace_store.arrays import write_part

        write_part(self.part_path(name), arrays)
        self.enter({"part": name, **asdict(FileRecord.of(self.part_path(name)))})

    def enter(self, part: Step) -> None:
        """Enter a part that is on disk in the journal. Raises :class:`StorageFailed`."""
        self._journal.add(part)

    def draft(
        self, *, configuration: Mapping[str, Any], counts: Mapping[str, int], provenance: Mapping[str, Any]
    ) -> Generation:
        """What :meth:`commit` would make of :attr:`path` as it is now, to be tried before it.

        It has no id yet, and no checksums.
        """
        manifest = Manifest(
            "draft", _rfc3339(datetime.now(UTC)), self.fingerprint, configuration, counts, {}, provenance
        )
        return Generation(self.path, manifest, os.open(self.path, os.O_RDONLY))

    def commit(
        self, *, configuration: Mapping[str, Any], counts: Mapping[str, int], provenance: Mapping[str, Any]
    ) -> str:
        """Turn :attr:`path` into a generation, forced to disk, and return its id. It is not yet live.

        Raises :class:`StorageFailed`, and :class:`CorruptGeneration` when a file does not read back as it was written;
        then no generation has appeared and the parts are still there.
        """
        names, folders = list_tree(self.path)
        created = datetime.now(UTC)
        generation = _next_id(self._generations, self.fingerprint, created)
        manifest = Manifest(
            generation=generation,
            created_at=_rfc3339(created),
            fingerprint=self.fingerprint,
            configuration=configuration,
            counts=counts,
            files={name: FileRecord.of(self.path / name) for name in names},
            provenance=provenance,
        )
        for name in names:
            durable.sync_file(self.path / name)
        manifest.write(self.path)
        for name in folders:
            durable.sync_folder(self.path / name)
        durable.sync_folder(self.path)
        with Generation(self.path, Manifest.read(self.path), os.open(self.path, os.O_RDONLY)) as written:
            written.verify()
        durable.make_folder(self._generations)
        durable.rename(self.path, self._generations / generation)
        durable.sync_folder(self._generations)
        durable.sync_folder(self._folder)
        with contextlib.suppress(StorageFailed):  # the generation is whole; leftovers here are only untidy
            durable.remove_tree(self._folder)
        return generation


def open_staging(folder: Path, generations: Path, fingerprint: str, *, fresh: bool) -> Staging:
    """Begin a build in ``folder``, or go on with the one in it: parts whose checksums match are kept.

    ``fresh`` discards its content. Raises :class:`ResumeRefused` when another build is in it and
    :class:`StorageFailed`.
    """
    job = {"schema_version": layout.SCHEMA_VERSION, "fingerprint": fingerprint}
    claim(folder, layout.STAGING_RECORD, job, other="another build", fresh=fresh)
    staged, parts = folder / layout.STAGED, folder / layout.PARTS
    durable.make_folder(staged)
    durable.make_folder(parts)
    journal = open_journal(folder, valid=partial(_is_whole, folder))
    staging = Staging(folder, generations, fingerprint, journal)
    for leftover in parts.iterdir():
        if leftover.name not in staging.parts():
            durable.remove_file(leftover)
    kept = {file for step in journal.steps for file in step.get("rows", ())}
    for name in list_tree(staged)[0]:
        if name not in kept:
            durable.remove_file(staged / name)
    return staging


def generation_ids(generations: Path) -> list[str]:
    """Ids of all generations, oldest first."""
    if not generations.is_dir():
        return []
    return sorted(p.name for p in generations.iterdir() if layout.GENERATION_ID.fullmatch(p.name))


def _is_whole(folder: Path, step: Any) -> bool:
    """Whether a part agrees with its entry in the journal."""
    with contextlib.suppress(CorruptGeneration):  # missing
        match step:
            case {"sha256": str(digest), "rows": dict(rows)}:
                return _checksum_of_rows(folder / layout.STAGED, rows) == digest
            case {"part": str(name), "bytes": int(size), "sha256": str(digest)}:
                return FileRecord.of(folder / layout.PARTS / name) == FileRecord(size, digest)
    return False


def _checksum_of_rows(staged: Path, places: Mapping[str, Any]) -> str:
    from kgtrace_store.arrays import checksum, read_rows

    return checksum(
        array
        for file, (start, stop, names) in places.items()
        for array in read_rows(staged / file, names, range(start, stop)).values()
    )


def _next_id(generations: Path, fingerprint: str, now: datetime) -> str:
    """An id later than every other, even when two builds end in one second or the clock was set back."""
    existing: Sequence[str] = generation_ids(generations)
    if existing:
        newest = existing[-1].partition("-")[0]
        after = datetime.strptime(newest, layout.GENERATION_TIME).replace(tzinfo=UTC) + timedelta(seconds=1)
        now = max(now, after)
    return f"{now.strftime(layout.GENERATION_TIME)}-{fingerprint[:6]}"


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
