"""Work that goes on where it was interrupted: a folder says which job it holds, and which of its steps are finished.

::

    FOLDER/RECORD           identifies the job: a JSON object
    FOLDER/journal.jsonl    a JSON value for each finished step, a line each
    FOLDER/lock             held by who works here, where the folder has no other lock
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kgtrace_store import durable, layout
from kgtrace_store.errors import ResumeRefused

LOCK = "lock"
"""Survives when the rest of the folder is discarded."""

_LONGEST_VALUE = 40


class Journal:
    """The finished steps of the job in a folder."""

    def __init__(self, path: Path, steps: list[Any]) -> None:
        self.steps = steps
        """In the order in which they were finished."""
        self._path = path

    def add(self, step: Any) -> None:
        """Enter a step, which is on disk when this returns. Raises :class:`StorageFailed`."""
        durable.append(self._path, _line(step))
        self.steps.append(step)


def open_journal(folder: Path, *, valid: Callable[[Any], bool] = lambda step: True) -> Journal:
    """Read the journal of a folder that was claimed; steps that are not valid are forgotten.

    A line that was torn while it was written is ignored. Raises :class:`ResumeRefused` for one that is damaged, and
    :class:`StorageFailed`.
    """
    path = folder / layout.JOURNAL
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        steps = [step for step in map(json.loads, whole) if valid(step)]
    except ValueError as e:
        raise _unreadable(path) from e
    durable.replace_file(path, b"".join(map(_line, steps)))
    return Journal(path, steps)


def claim(folder: Path, record: str, job: Mapping[str, Any], *, other: str, fresh: bool) -> None:
    """Begin a job in a folder, or go on with it where it was begun. The caller holds a lock.

    ``record`` is the name of the file that identifies the job, ``job`` its content, and ``other`` a noun for any other
    job in messages. ``fresh`` discards the content of the folder. Raises :class:`ResumeRefused` when the folder holds
    another job, and :class:`StorageFailed`.
    """
    durable.make_folder(folder)
    path = folder / record
    if fresh or not path.exists():  # the latter: killed before anything was finished
        for entry in folder.iterdir():
            if entry.is_dir():
                durable.remove_tree(entry)
            elif entry.name != LOCK:
                durable.remove_file(entry)
        durable.replace_file(path, _line(job))
        return
    try:
        begun = json.loads(path.read_bytes())
        differing = [name for name in job if begun[name] != job[name]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _unreadable(path) from e
    if differing:
        changes = ", ".join(f"{name} was {_short(begun[name])}, is {_short(job[name])}" for name in differing)
        raise ResumeRefused(
            f"{folder} holds the beginning of {other} ({changes}): finish that first, or start afresh (--fresh)"
        )


def _unreadable(path: Path) -> ResumeRefused:
    return ResumeRefused(f"{path} cannot be read: start afresh (--fresh) to discard what is in its folder")


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
