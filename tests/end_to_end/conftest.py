"""A night: an index root with a live generation, and what a build that nothing disturbs makes of it."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.building import parts
from kgtrace_indexer.threads import limit_threads
from kgtrace_store import IndexRoot, Vocabulary, layout
from kgtrace_store.manifest import FileRecord
from tests.faults import interrupted

Umls = tuple[ModelFile, Vocabulary, TripleTable]
Answer = tuple[str, list[int], list[float]]
"""Fingerprint of the generation that answered, and the training triples that it named, with their influence."""

TRIPLES = 20
PART = 8
"""Triples in a part, so that there are several to be resumed from."""


class Night:
    """A root to copy and to build in, and the two answers that may be found in it afterwards."""

    old, new = (BuildConfig(dim=4, landmarks=8, seed=seed, device="cpu") for seed in (1, 2))

    def __init__(self, tiny: Umls, folder: Path) -> None:
        self.tiny = tiny
        self.query = tiny[2].ids[:1].astype(np.int64)
        self.begun = folder / "begun"
        """An index root whose live generation is the old one; never written again."""
        with small_steps():
            build(self.begun, *tiny, self.old)
        self.before = self.answer(self.begun)
        undisturbed = shutil.copytree(self.begun, folder / "undisturbed")
        with interrupted(-1, "never") as self.operations:
            self.build(undisturbed)
        self.after = self.answer(undisturbed)
        self.files = files(undisturbed)
        assert self.before != self.after

    def build(self, root: Path, *, threads: int = 1) -> None:
        """Build and publish the new generation, or go on with what was begun."""
        with small_steps(threads):
            build(root, *self.tiny, self.new)

    def answer(self, root: Path) -> Answer:
        """Ask the live generation of a root."""
        with small_steps():
            attributor = open_index(root, device="cpu")
            found = attributor.query(self.query, top_k=5).attributions[0]
        return attributor.manifest.fingerprint, found.train_index.tolist(), found.influence.tolist()

    def check(self, root: Path) -> Answer:
        """Every generation is whole and the live one answers as it did; the next build succeeds, bit for bit.

        Returns what was found live before that build.
        """
        assert not any(status.problem for status in IndexRoot(root).generations())
        found = self.answer(root)
        assert found in (self.before, self.after)
        self.build(root)
        assert self.answer(root) == self.after
        assert files(root) == self.files
        return found


def files(root: Path) -> dict[str, FileRecord]:
    """Return the checksums of what is the same in every build of one input: of all but the verdict of the gate, which
    names the generation that was live."""
    with IndexRoot(root).open() as generation:
        return {name: record for name, record in generation.manifest.files.items() if name != layout.GATE}


@contextmanager
def small_steps(threads: int = 1) -> Iterator[None]:
    """Let builds finish a part every few triples, and compute in so many threads.

    The sums of several threads are taken in another order, and differ in their last bits from those of one.
    """
    before = torch.get_num_threads()
    limit_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "_PART", PART)
            yield
    finally:
        limit_threads(before)


def wait_until(reached: Callable[[], bool]) -> None:
    """Look until it is so. Nothing waited for takes a second on an idle machine, nor ten minutes on any."""
    end = time.monotonic() + 600
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="package")
def tiny(umls: Umls) -> Umls:
    """A model and a handful of its training triples."""
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:TRIPLES], table.train_index[:TRIPLES], 0)


@pytest.fixture(scope="package")
def night(tiny: Umls, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The beginning of every test of a night."""
    return Night(tiny, tmp_path_factory.mktemp("night"))
