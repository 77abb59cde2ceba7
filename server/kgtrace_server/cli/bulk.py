"""Explaining any number of test triples: a block at a time, into a file, and on from where it stopped.

::

    OUT.partial/question.json     the question, and the generation of the index
    OUT.partial/000000.json, …    the answers to the blocks that are finished
    OUT.partial/whole             becomes OUT in one rename, made of the blocks when all are there
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_server.cli import render
from kgtrace_server.schema.answer import from_json, to_json
from kgtrace_server.schema.answers import Influences
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service
from kgtrace_store import durable, locks
from kgtrace_store.errors import BuilderRunning, ResumeRefused
from kgtrace_store.journal import LOCK, claim

_BLOCK = 64
"""Test triples explained at a time: few enough to show progress, many enough to share forward passes."""
_MOST_INFLUENCES = 65_536
"""Of one block, so that memory does not grow with ``top_k`` either."""

_QUESTION = "question.json"
_WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Bulk:
    """Test triples, and the options of their explanations."""

    service: Service
    options: Mapping[str, Any]
    """Of an `InfluenceRequest`, all of them but its triples."""
    ids: np.ndarray
    """(n, 3): test triples."""
    test_indices: np.ndarray
    """(n,) int64: which rows of the file, or of the call, they are."""
    skipped: int | None = None
    """Lines of the file that were left out because of an unknown label; None where none may be."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return -(-len(self.ids) // self.block)

    @property
    def block(self) -> int:
        """Test triples in a block; the last one may have fewer."""
        return max(1, min(_BLOCK, _MOST_INFLUENCES // int(self.options["top_k"])))

    def answer(self, number: int) -> Influences:
        """Explain one block. Raises as `Service.influences`."""
        triples = self.ids[number * self.block : (number + 1) * self.block]
        return self.service.influences(InfluenceRequest.of(triples=triples, **self.options))

    def facts(self) -> dict[str, Any]:
        """Return the identity of a run: equal ones have equal answers, in equal blocks."""
        return {
            "generation": self.service.generation,
            "test triples": hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest(),
            "rows": hashlib.sha256(self.test_indices.astype("<i8").tobytes()).hexdigest(),
            **self.options,
        }


def stream(bulk: Bulk, progress: Callable[[str, int, int], None]) -> Iterator[Influences]:
    """Yield the answer to one block after another, keeping none."""
    for number in range(len(bulk)):
        yield bulk.answer(number)
        _tell(bulk, number, progress)


def write(bulk: Bulk, output: Path, *, fresh: bool, progress: Callable[[str, int, int], None]) -> int:
    """Explain all test triples into a file, and return how many influences it holds.

    A run that was interrupted is gone on with: blocks that it finished are not computed again, and the file is the same
    byte for byte (but for the seconds in ``.json``) as one written in one go. ``fresh`` discards its blocks.

    Raises
    ------
    ResumeRefused
        What an interrupted run left is of another question, or damaged.
    BuilderRunning
        Another process is writing this output.
    BadRequest, MissingExtra
        As `render.check_format`.
    StorageFailed
        The disk is full or broken.
    """
    ending = render.check_format(output, render.INFLUENCE_FORMATS)
    with _open_journal(output, bulk.facts(), fresh=fresh) as journal:
        for number in range(len(bulk)):
            if not journal.has(number):
                journal.keep(number, bulk.answer(number))
                _tell(bulk, number, progress)
        answers = map(journal.read, range(len(bulk)))
        with durable.opened(journal.whole, "wb") as sink:
            count = render.write_influences(sink, ending, answers, bulk.test_indices, skipped=bulk.skipped)
        durable.rename(journal.whole, output)
        durable.sync_folder(output.parent)
        durable.remove_tree(journal.folder)
    return count


def _tell(bulk: Bulk, number: int, progress: Callable[[str, int, int], None]) -> None:
    if len(bulk) > 1:
        progress("query", min((number + 1) * bulk.block, len(bulk.ids)), len(bulk.ids))


@dataclass(frozen=True, slots=True)
class _Journal:
    """The finished blocks of one output file."""

    folder: Path

    @property
    def whole(self) -> Path:
        return self.folder / _WHOLE

    def has(self, number: int) -> bool:
        return self._path(number).exists()

    def keep(self, number: int, answer: Influences) -> None:
        durable.replace_file(self._path(number), to_json(answer))

    def read(self, number: int) -> Influences:
        path = self._path(number)
        try:
            return from_json(Influences, path.read_bytes())
        except (OSError, ValueError) as e:
            raise ResumeRefused(f"{path} cannot be read ({e}): begin anew with --fresh") from e

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


@contextmanager
def _open_journal(output: Path, facts: Mapping[str, Any], *, fresh: bool) -> Iterator[_Journal]:
    """Open, under a lock, the journal beside an output file: an empty one, or one of the same question."""
    journal = _Journal(output.with_name(output.name + ".partial"))
    durable.make_folder(journal.folder)
    with _sole_writer(output, journal.folder / LOCK):
        claim(journal.folder, _QUESTION, facts, other="another answer", fresh=fresh)
        yield journal


@contextmanager
def _sole_writer(output: Path, lock: Path) -> Iterator[None]:
    try:
        with locks.builder(lock):
            yield
    except BuilderRunning as e:
        raise BuilderRunning(f"another process is writing {output}: wait for it, or choose another output") from e
