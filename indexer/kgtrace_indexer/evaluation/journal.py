"""What an evaluation has found so far, on disk: one line of JSON for each finding, under a fingerprint of the input."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kgtrace_indexer.evaluation.configurations import Configuration
from kgtrace_store import durable, locks
from kgtrace_store.errors import ResumeRefused

_LOCK = "lock"
_JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Agreement with the exact answer: means over the test triples."""

    overlap: float
    """Share of the exact top k that is named; a triple that ties with the k-th counts."""
    pearson: float
    """Of the influences of the training triples looked at; 0 for a test triple that all of them influence alike."""
    spearman: float
    """The same of their ranks."""


@dataclass(frozen=True, slots=True)
class Built:
    """An index that was built for the evaluation."""

    seconds: float
    bytes: int
    """On disk."""


class Journal:
    """Findings by configuration, and the index. A finding is on disk when the call that adds it returns."""

    def __init__(self, path: Path, accuracy: dict[Configuration, Accuracy], built: Built | None) -> None:
        self._path = path
        self.accuracy = accuracy
        self.built = built

    def add_accuracy(self, configuration: Configuration, accuracy: Accuracy) -> None:
        """Note what was found of a configuration. Raises `StorageFailed`."""
        durable.append(self._path, _line({"configuration": asdict(configuration), "accuracy": asdict(accuracy)}))
        self.accuracy[configuration] = accuracy

    def add_built(self, built: Built) -> None:
        """Note that the index is there. Raises `StorageFailed`."""
        durable.append(self._path, _line({"built": asdict(built)}))
        self.built = built


@contextmanager
def open_journal(folder: Path, fingerprint: str, *, fresh: bool) -> Iterator[Journal]:
    """Begin an evaluation in a folder, or go on with the one in it, and keep others out meanwhile.

    `fresh` discards what is in it. Raises `ResumeRefused` when it holds another evaluation, or a damaged one,
    `BuilderRunning` when somebody is at work in it, and `StorageFailed`.
    """
    durable.make_folder(folder)
    with locks.builder(folder / _LOCK):
        path = folder / _JOURNAL
        if fresh:
            _discard(folder)
        header = {"fingerprint": fingerprint}
        found = _read(path)
        if found and found[0] != header:
            raise ResumeRefused(
                f"{folder} holds an unfinished evaluation of another model, data or choice of arguments "
                f"({found[0].get('fingerprint')}, this one is {fingerprint}): --fresh discards it"
            )
        durable.replace_file(path, b"".join(map(_line, found or [header])))  # without a line torn while it was written
        accuracy: dict[Configuration, Accuracy] = {}
        built = None
        for line in found[1:]:
            if "built" in line:
                built = Built(**line["built"])
            else:
                fields = line["configuration"]
                configuration = Configuration(**{**fields, "layers": tuple(fields["layers"])})
                accuracy[configuration] = Accuracy(**line["accuracy"])
        yield Journal(path, accuracy, built)


def _discard(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            durable.remove_tree(entry)
        elif entry.name != _LOCK:
            durable.remove_file(entry)


def _read(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines. Raises `ResumeRefused` for one that is damaged."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as e:
        raise ResumeRefused(f"{path} cannot be read ({e}): --fresh discards it") from e


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
