"""``kgtrace build`` as a process that is killed at any moment, and two builders at once."""

import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kgtrace_indexer import write_model
from kgtrace_server.cli import parser as cli
from kgtrace_store import IndexRoot, layout
from tests.end_to_end.conftest import Night, files

KILLS = 200
SAMPLED = 4
"""Kills in the quick test."""
ROUND = 10
"""Kills between builds that are left to end: what those take says when to kill, for a machine is not always as fast."""
BEYOND = 1.1
"""Kills are drawn over so many times what lies between the beginning of a build and its publication."""


class Builder:
    """Runs ``kgtrace build`` on index roots, and kills it.

    Each build is a process of its own, forked from one that has imported torch, which takes ten times as long as such a
    build.
    """

    def __init__(self, night: Night, folder: Path) -> None:
        model, vocabulary, table = night.tiny
        write_model(model, folder / "model")
        for name, labels in (("entities", vocabulary.entities), ("relations", vocabulary.relations)):
            (folder / f"{name}.tsv").write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(labels)))
        lines = [
            f"{vocabulary.entities[h]}\t{vocabulary.relations[r]}\t{vocabulary.entities[t]}\n"
            for h, r, t in table.ids.tolist()
        ]
        (folder / "train.tsv").write_text("".join(lines))
        self._arguments = [
            *("build", "--model", str(folder / "model"), "--train", str(folder / "train.tsv")),
            *("--entity-to-id", str(folder / "entities.tsv"), "--relation-to-id", str(folder / "relations.tsv")),
            *("--dim", "4", "--landmarks", "8", "--seed", "2", "--device", "cpu"),
        ]
        self._night = night
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["kgtrace_server.cli.parser", "kgtrace_indexer"])
        self.seconds = 0.0
        """From the beginning of the last build that was published to its publication."""
        undisturbed = shutil.copytree(night.begun, folder / "undisturbed")
        assert self.run(undisturbed) == 0
        self.after = night.answer(undisturbed)
        self._files = files(undisturbed)

    def run(self, root: Path, kill_after: float = float("inf")) -> int:
        """Build and publish, but kill the process so many seconds after the build has begun; return its exit code."""
        before, lock = IndexRoot(root).current(), root / layout.BUILD_LOCK
        begun: float | None = None
        published = False
        process = self._context.Process(target=cli.main, args=([*self._arguments, "--index", str(root)],))
        process.start()
        while process.is_alive():
            now = time.perf_counter()
            if begun is None and lock.exists() and lock.read_text() == f"{process.pid}\n":
                begun = now
            if begun is not None and not published and IndexRoot(root).current() != before:
                self.seconds, published = now - begun, True
            if begun is not None and now >= begun + kill_after:
                process.kill()
            time.sleep(0.001)
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def check(self, root: Path) -> bool:
        """Every generation is whole, and the live one answers as it did, or else as the new one; whether it is that,
        and then it is what it would have been if nothing had ever been killed."""
        assert not any(status.problem for status in IndexRoot(root).generations())
        found = self._night.answer(root)
        if found == self.after:
            assert files(root) == self._files
        else:
            assert found == self._night.before
        return found == self.after


def reached(root: Path, before: int) -> str:
    """Return how far a build that was killed had come, in a root that had so many generations before it."""
    staging = root / layout.STAGING
    if len(IndexRoot(root).generations()) > before:
        return "committed"
    for what, pattern in (
        ("at the gate or committing", f"*/{layout.STAGED}/{layout.VOCABULARY}/{layout.RELATIONS}"),
        ("writing files", f"*/{layout.STAGED}/{layout.GRADIENTS}"),
        ("computing gradients", f"*/{layout.PARTS}/bases.h5"),
        ("begun", "*"),
    ):
        if any(staging.glob(pattern)):
            return what
    return "nothing on disk"


def kill_often(night: Night, folder: Path, kills: int) -> tuple[int, Counter[str]]:
    """Kill builds at random moments, one going on where the one before ended; return how many were published, and how
    far those came that were killed."""
    builder = Builder(night, folder)
    chance = random.Random(0)
    published, stages = 0, Counter[str]()
    root = folder / "root"
    for number in range(kills):
        if not root.exists():
            shutil.copytree(night.begun, root)
        before = len(IndexRoot(root).generations())
        code = builder.run(root, chance.uniform(0, BEYOND * builder.seconds))
        new = builder.check(root)
        if code == -signal.SIGKILL:
            stages["published" if new else reached(root, before)] += 1
        else:
            assert new
        if not new and (number + 1) % ROUND == 0:
            assert builder.run(root) == 0
            new = builder.check(root)
            assert new
        if new:
            shutil.rmtree(root)
            published += 1
    return published, stages


@pytest.fixture(autouse=True)
def _one_thread_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the others, for the same bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_some_random_kills(night: Night, tmp_path: Path) -> None:
    """A build that is killed at any moment leaves the live generation and no lock, and is gone on with."""
    kill_often(night, tmp_path, SAMPLED)


@pytest.mark.slow
def test_two_hundred_random_kills(night: Night, tmp_path: Path) -> None:
    """As above, over the whole duration of a build, from its first to its last file."""
    published, stages = kill_often(night, tmp_path, KILLS)
    print(f"{sum(stages.values())} of {KILLS} builds were killed ({dict(stages)}); {published} were published")
    assert sum(stages.values()) > KILLS // 2
    assert published > 0


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
    """A hundred times two processes begin at once; one builds, the other is told so."""
    command = [sys.executable, "-c", RACER, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as a, subprocess.Popen(command, **pipes) as b:
        racers = [a, b]
        for _ in range(100):
            for racer in racers:
                racer.stdin.write("go\n")
                racer.stdin.flush()
            said = [racer.stdout.readline() for racer in racers]
            assert sorted(line.split()[0] for line in said) == ["lost", "won"]
            assert "another builder" in "".join(said)
            for racer in racers:
                racer.stdin.write("next\n")
                racer.stdin.flush()
        for racer in racers:
            racer.stdin.close()
