"""Builds that end badly: the live generation answers as before, and the next build makes up for it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_attributor, write_model
from kgtrace_server.reload import Reloader, open_warm
from kgtrace_store import IndexRoot, Vocabulary, durable
from kgtrace_store.errors import StorageFailed, StoreError
from kgtrace_store.generation import list_tree
from kgtrace_store.manifest import FileRecord
from tests.faults import BROKEN, FULL, Disk, Killed, Lost, failing, interrupted

Umls = tuple[ModelFile, Vocabulary, TripleTable]
OLD, NEW = (BuildConfig(dim=4, landmarks=8, seed=seed, device="cpu") for seed in (1, 2))
TRIPLES = 20
SAMPLED = 4
"""Steps that the quick tests are interrupted at; the slow ones take all."""


@pytest.fixture(scope="module")
def tiny(umls: Umls) -> Umls:
    """A model and a handful of its training triples."""
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:TRIPLES], table.train_index[:TRIPLES], 0)


class Night:
    """An index root with a live generation, and what a build that nothing disturbs makes of it."""

    def __init__(self, tiny: Umls, folder: Path) -> None:
        self.tiny = tiny
        self.begun = folder / "begun"
        build(self.begun, *tiny, OLD)
        self.query = tiny[2].ids[:1].astype(np.int64)
        self.before = self.answer(self.begun)
        undisturbed = shutil.copytree(self.begun, folder / "undisturbed")
        begun = time.perf_counter()
        with interrupted(-1, "never") as operations:
            build(undisturbed, *tiny, NEW)
        self.seconds = time.perf_counter() - begun
        self.operations = len(operations)
        with IndexRoot(undisturbed).open() as generation:
            self.files = self.fingerprints(generation.manifest.files)
            self.fingerprint = generation.manifest.fingerprint
        self.after = self.answer(undisturbed)

    @staticmethod
    def fingerprints(files: Any) -> dict[str, FileRecord]:
        """Return what is the same in every build of one input: all but the verdict, which names another generation."""
        return {name: record for name, record in files.items() if name != "gate.json"}

    def answer(self, root: Path) -> tuple[str, list[int], list[float]]:
        """Ask the live generation of a root."""
        attributor = open_attributor(root, device="cpu")
        found = attributor.query(self.query, top_k=5).attributions[0]
        return attributor.manifest.fingerprint, found.train_index.tolist(), found.influence.tolist()

    def check(self, root: Path) -> None:
        """Every generation is whole, the live one answers as it did, and the next build succeeds."""
        assert not any(status.problem for status in IndexRoot(root).generations())
        assert self.answer(root) in (self.before, self.after)
        build(root, *self.tiny, NEW)
        assert self.answer(root) == self.after
        with IndexRoot(root).open() as generation:
            assert self.fingerprints(generation.manifest.files) == self.files

    def steps(self, total: int, sampled: bool) -> list[int]:
        """Return the steps to interrupt at."""
        return sorted(random.Random(0).sample(range(total), SAMPLED)) if sampled else list(range(total))


@pytest.fixture(scope="module")
def night(tiny: Umls, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The beginning of every test."""
    return Night(tiny, tmp_path_factory.mktemp("night"))


def every_step(night: Night, folder: Path, how: str, *, sampled: bool) -> None:
    for at in night.steps(night.operations, sampled):
        root = shutil.copytree(night.begun, folder / str(at))
        with interrupted(at, how), suppress(Killed, StorageFailed):
            build(root, *night.tiny, NEW)
        night.check(root)
        shutil.rmtree(root)


def every_power_cut(night: Night, folder: Path, lost: Lost, *, sampled: bool) -> None:
    for at in night.steps(night.operations, sampled):
        root, left = shutil.copytree(night.begun, folder / str(at)), folder / f"{at}-left"
        disk = Disk(root)
        with disk, interrupted(at, "half"), suppress(Killed):
            build(root, *night.tiny, NEW)
        disk.after_power_cut(left, lost)
        disk.close()
        night.check(left)
        shutil.rmtree(root)
        shutil.rmtree(left)


def every_failure(night: Night, folder: Path, code: int, *, sampled: bool) -> None:
    counted = shutil.copytree(night.begun, folder / "counted")
    with failing(-1, code) as steps:
        build(counted, *night.tiny, NEW)
    for at in night.steps(len(steps), sampled):
        root = shutil.copytree(night.begun, folder / str(at))
        with failing(at, code), suppress(StorageFailed):
            build(root, *night.tiny, NEW)
        night.check(root)
        shutil.rmtree(root)


def test_a_build_killed_at_some_steps(night: Night, tmp_path: Path) -> None:
    """A build that dies between or in the middle of file operations is made up for, bit for bit."""
    every_step(night, tmp_path, "half", sampled=True)


def test_power_cuts_at_some_steps(night: Night, tmp_path: Path) -> None:
    """The same when everything is lost that was not forced to disk."""
    every_power_cut(night, tmp_path, "everything", sampled=True)


def test_failures_at_some_steps(night: Night, tmp_path: Path) -> None:
    """A write, fsync, rename or mkdir that fails is a named error, and nothing is lost."""
    every_failure(night, tmp_path, FULL, sampled=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after", "half", "fail"])
def test_a_build_killed_at_every_step(night: Night, tmp_path: Path, how: str) -> None:
    """As above, at every file operation of build and publication."""
    every_step(night, tmp_path, how, sampled=False)


@pytest.mark.slow
@pytest.mark.parametrize("lost", get_args(Lost))
def test_power_cuts_at_every_step(night: Night, tmp_path: Path, lost: Lost) -> None:
    """As above, at every file operation, and whichever part of what was not forced to disk is lost."""
    every_power_cut(night, tmp_path, lost, sampled=False)


@pytest.mark.slow
@pytest.mark.parametrize("code", [FULL, BROKEN])
def test_failures_at_every_step(night: Night, tmp_path: Path, code: int) -> None:
    """As above, at every write, fsync, rename and mkdir, for a full disk and a broken one."""
    every_failure(night, tmp_path, code, sampled=False)


KILLED = """
import os, sys, time
from pathlib import Path
from kgtrace_indexer import BuildConfig, build, read_model, read_triples
from kgtrace_indexer.triples import TripleTable
from kgtrace_store import Vocabulary
import numpy as np, torch
torch.set_num_threads(int(sys.argv[2]))  # sums in the same order, for the same bits
folder = Path(sys.argv[1])
model, vocabulary = read_model(folder / "model"), Vocabulary.read(folder / "vocabulary")
ids = np.load(folder / "ids.npy")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        build(Path(line.strip()), model, vocabulary, TripleTable(ids, np.arange(len(ids)), 0),
              BuildConfig(dim=4, landmarks=8, seed=2, device="cpu"))
        os._exit(0)
    print(pid, flush=True)
    print("ended", os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_two_hundred_random_kills(night: Night, tmp_path: Path) -> None:
    """A process that is killed at any moment leaves the live generation and no lock, and its work goes on."""
    model, vocabulary, table = night.tiny
    write_model(model, tmp_path / "model")
    vocabulary.write(tmp_path / "vocabulary")
    np.save(tmp_path / "ids.npy", table.ids)
    chance = random.Random(0)
    root = shutil.copytree(night.begun, tmp_path / "root")
    killed = completed = 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path, str(torch.get_num_threads())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(200):
            process.stdin.write(f"{root}\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            timer = threading.Timer(chance.uniform(0, 1.5 * night.seconds), os.kill, (pid, signal.SIGKILL))
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            killed += line.split()[1] == "9"
            live = night.answer(root)
            assert live in (night.before, night.after)
            assert not any(status.problem for status in IndexRoot(root).generations())
            if live == night.after:
                completed += 1
                shutil.rmtree(root)
                shutil.copytree(night.begun, root)
        process.stdin.close()
    night.check(root)
    print(f"{killed} of 200 builds were killed; {completed} times the new generation was found live")
    assert killed > 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 10 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk(umls: Umls, tiny: Umls, small_disk: Path, checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that does not fit is a named error, told before the work where it can be; nothing is lost."""
    root = small_disk / "index"
    build(root, *tiny, OLD)
    live = IndexRoot(root).current()
    if not checked:
        monkeypatch.setattr(durable, "require_space", lambda *_: None)
    with pytest.raises(StorageFailed, match="No space left on device"):
        build(root, *umls, BuildConfig(dim=16, landmarks=256, device="cpu", dtype="float32"))
    assert IndexRoot(root).current() == live
    open_attributor(root, device="cpu")
    shutil.rmtree(root / "staging")  # what was finished is kept for another attempt, and fills the disk
    build(root, *tiny, NEW)
    assert len(IndexRoot(root).generations()) == 2


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    sound = path.read_bytes()
    path.write_bytes(data)
    yield
    path.write_bytes(sound)


def test_damage_is_found_and_the_old_generation_serves_on(night: Night, tmp_path: Path) -> None:
    """64 truncations and 256 flipped bits of each file are all found when the generation is opened."""
    root = IndexRoot(shutil.copytree(night.begun, tmp_path / "root"))
    live: list[Any] = []
    reloader = Reloader(root.path, lambda id_: _Served(root.path, id_), live.append)
    reloader.check()
    old = reloader.generation
    build(root.path, *night.tiny, NEW)
    folder = root.path / "generations" / str(root.current())
    files, _ = list_tree(folder)
    assert len(files) == 9
    chance = random.Random(0)
    tried = 0
    for name in files:
        sound = (folder / name).read_bytes()
        size = len(sound)
        harm = [sound[:end] for end in sorted(chance.sample(range(size), min(64, size)))]
        for bit in chance.sample(range(8 * size), min(256, 8 * size)):
            flipped = bytearray(sound)
            flipped[bit // 8] ^= 1 << bit % 8
            harm.append(bytes(flipped))
        for data in harm:
            with damaged(folder / name, data), pytest.raises(StoreError):
                root.open()
        tried += len(harm)
        with damaged(folder / name, harm[-1]):
            result = reloader.check()
        assert result is not None
        assert not result.ok
        assert reloader.generation == old
    assert tried > 2000
    assert len(live) == 1
    reloader.check()
    assert reloader.generation == folder.name


class _Served:
    def __init__(self, root: Path, generation: str) -> None:
        self._attributor = open_warm(root, generation, device="cpu")
        self.generation = generation


RACER = """
import sys
from pathlib import Path
from kgtrace_store import IndexRoot
from kgtrace_store.errors import BuilderRunning
for line in sys.stdin:
    try:
        with IndexRoot(Path(sys.argv[1])).stage("ab" * 32):
            print("won", flush=True)
            sys.stdin.readline()
    except BuilderRunning as e:
        print("lost", e, flush=True)
        sys.stdin.readline()
"""


def test_of_two_builders_one_wins(tmp_path: Path) -> None:
    """A hundred times two processes begin at once; one builds, the other is told that it does."""
    command = [sys.executable, "-c", RACER, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as a, subprocess.Popen(command, **pipes) as b:
        for _ in range(100):
            for racer in (a, b):
                racer.stdin.write("go\n")
                racer.stdin.flush()
            said = [racer.stdout.readline().split() for racer in (a, b)]
            assert sorted(words[0] for words in said) == ["lost", "won"]
            for racer in (a, b):
                racer.stdin.write("next\n")
                racer.stdin.flush()
        for racer in (a, b):
            racer.stdin.close()


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_generations_of_every_schema_still_answer(version: str, tmp_path: Path) -> None:
    """An index that an earlier release wrote opens, verifies and answers as it did."""
    root = shutil.copytree(GOLDEN / version, tmp_path / "index")
    wanted = json.loads((root / "answer.json").read_bytes())
    attributor = open_attributor(root, device="cpu")
    found = attributor.query(np.array([wanted["triple"]]), top_k=len(wanted["train_index"])).attributions[0]
    assert found.certified
    assert found.train_index.tolist() == wanted["train_index"]
    np.testing.assert_allclose(found.influence, wanted["influence"], rtol=1e-3)
