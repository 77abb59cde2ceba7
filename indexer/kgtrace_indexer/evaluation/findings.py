"""The findings of an evaluation, on disk as they are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kgtrace_indexer.evaluation.configurations import Configuration
from kgtrace_store import durable, locks
from kgtrace_store.journal import LOCK, Journal, claim, open_journal

_RECORD = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Agreement with the exact answer: means over the test triples."""

    overlap: float
    """Share of the exact top k that is named; a triple that ties with the k-th counts."""
    pearson: float
    """Of the influences of the training triples looked at; 0 for a test triple that all of them influence alike."""
    spearman: float
    """Of the ranks of these influences."""


@dataclass(frozen=True, slots=True)
class Built:
    """An index that was built for the evaluation."""

    seconds: float
    bytes: int
    """On disk."""


class Findings:
    """Findings by configuration, and the index. A finding is on disk when the call that adds it returns."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.accuracy: dict[Configuration, Accuracy] = {}
        self.built: Built | None = None
        for step in journal.steps:
            if "built" in step:
                self.built = Built(**step["built"])
            else:
                fields = step["configuration"]
                configuration = Configuration(**{**fields, "layers": tuple(fields["layers"])})
                self.accuracy[configuration] = Accuracy(**step["accuracy"])

    def add_accuracy(self, configuration: Configuration, accuracy: Accuracy) -> None:
        """Note the accuracy of a configuration. Raises `StorageFailed`."""
        self._journal.add({"configuration": asdict(configuration), "accuracy": asdict(accuracy)})
        self.accuracy[configuration] = accuracy

    def add_built(self, built: Built) -> None:
        """Note that the index is there. Raises `StorageFailed`."""
        self._journal.add({"built": asdict(built)})
        self.built = built


@contextmanager
def open_findings(folder: Path, fingerprint: str, *, fresh: bool) -> Iterator[Findings]:
    """Begin an evaluation in a folder, or go on with the one in it, and keep others out meanwhile.

    `fresh` discards its content. Raises `ResumeRefused` when it holds another evaluation, or a damaged one,
    `BuilderRunning` when another process is at work in it, and `StorageFailed`.
    """
    durable.make_folder(folder)
    with locks.builder(folder / LOCK):
        other = "an evaluation of another model, data or choice of arguments"
        claim(folder, _RECORD, {"fingerprint": fingerprint}, other=other, fresh=fresh)
        yield Findings(open_journal(folder))
