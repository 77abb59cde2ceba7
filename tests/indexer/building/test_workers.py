"""Builds that several processes share, against one that did all by itself, bit for bit."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build
from kgtrace_indexer.building import parts
from kgtrace_indexer.building.files import Layout
from kgtrace_indexer.building.local_workers import LocalWorkers
from kgtrace_indexer.building.workers import ATTEMPTS, Task, Workers
from kgtrace_indexer.index.training_set import in_order
from kgtrace_server.cli import parser as cli
from kgtrace_store import IndexRoot, Vocabulary, layout
from kgtrace_store.arrays import open_arrays, write_rows
from kgtrace_store.errors import BadRequest, MissingExtra, NonFinite, WorkerLost

Umls = tuple[ModelFile, Vocabulary, TripleTable]
TRIPLES, PART = 300, 64
CONFIG = BuildConfig(precondition="none", dim=8, landmarks=128, device="cpu")


@pytest.fixture
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork processes from one that has imported torch, where it does not matter how they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kgtrace_indexer.building.local_workers"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_PART", PART)


@pytest.fixture(scope="module")
def few(umls: Umls) -> Umls:
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:TRIPLES], table.train_index[:TRIPLES], 0)


@pytest.fixture(scope="module")
def alone(few: Umls, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that one process built."""
    root = tmp_path_factory.mktemp("alone")
    build(root, *few, CONFIG)
    return root


def assert_same(first: Path, second: Path) -> None:
    """All files that are made of gradients are equal, and that is all of them but the manifest, which has the time."""
    with IndexRoot(first).open() as one, IndexRoot(second).open() as other:
        for file in (name for name in one.manifest.files if name.endswith(".h5")):
            wanted, found = open_arrays(one.path / file), open_arrays(other.path / file)
            assert wanted.keys() == found.keys()
            for name, array in wanted.items():
                np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(array), name)
        for file in (name for name in one.manifest.files if name.endswith(".faiss")):
            assert (one.path / file).read_bytes() == (other.path / file).read_bytes()


class Killing:
    """Kill all workers once, as soon as one part is there: each other one is at work then, or about to be."""

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self.processes = processes
        self.killed: list[int] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done < total and not self.killed:
            self.killed = self.processes()
            for process in self.killed:
                os.kill(process, signal.SIGKILL)


def children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


@pytest.mark.parametrize("count", [1, 3])
def test_processes_build_the_same_index(
    few: Umls, alone: Path, tmp_path: Path, request: pytest.FixtureRequest, count: int
) -> None:
    """However many; and they are gone when it is done."""
    if count > 1:  # that a process starts as it does for users is shown by one
        request.getfixturevalue("_quick_start")
    build(tmp_path, *few, CONFIG, workers=LocalWorkers(count))
    assert_same(alone, tmp_path)
    assert not children()


@pytest.mark.usefixtures("_quick_start")
def test_a_killed_process_costs_its_part(few: Umls, alone: Path, tmp_path: Path) -> None:
    """Another takes it up."""
    progress = Killing(children)
    build(tmp_path, *few, CONFIG, workers=LocalWorkers(2), progress=progress)
    assert len(progress.killed) == 2
    assert_same(alone, tmp_path)


@pytest.mark.usefixtures("_quick_start")
def test_samples_and_other_losses_are_shared_too(few: Umls, tmp_path: Path) -> None:
    """What all training triples say, of which a sample is indexed, reaches the workers."""
    config = BuildConfig(dim=8, landmarks=64, loss="bce-kvsall", sample_rate=0.5, device="cpu")
    build(tmp_path / "alone", *few, config)
    build(tmp_path / "shared", *few, config, workers=LocalWorkers(2))
    assert_same(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.usefixtures("_quick_start")
@pytest.mark.parametrize(("first", "then"), [(None, LocalWorkers(2)), (LocalWorkers(2), None)])
def test_either_goes_on_where_the_other_stopped(
    few: Umls, alone: Path, tmp_path: Path, first: Workers | None, then: Workers | None
) -> None:
    """Parts that were finished are kept, whoever encoded them; one that was half written is written anew."""

    def stop(stage: str, done: int, total: int) -> None:
        if done >= 2 * PART:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, *few, CONFIG, workers=first, progress=stop)
    (staged,) = (tmp_path / layout.STAGING).glob(f"*/{layout.STAGED}")
    triples = open_arrays(staged / layout.GRADIENTS)["triples"]
    write_rows(staged / layout.GRADIENTS, 4 * PART, {"triples": np.full_like(triples[4 * PART :], 7)})
    seen: list[int] = []
    build(tmp_path, *few, CONFIG, workers=then, progress=lambda stage, done, total: seen.append(done))
    assert seen[0] >= PART
    assert_same(alone, tmp_path)


def wrong_task(few: Umls, folder: Path) -> Task:
    """A task that every worker refuses."""
    model, _, table = few
    for name, array in (("ids", table.ids), ("train-index", table.train_index)):
        np.save(folder / f"{name}.npy", array)
    configuration = {**asdict(CONFIG), "loss": "bce", "projection": "none", "directions": "sideways"}
    return Task(Layout(folder, {}, TRIPLES, None, model), configuration, folder, 8, "cpu")


class _Deadly:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (9,)


@pytest.mark.usefixtures("_quick_start")
def test_a_part_that_no_process_survives_ends_the_build(few: Umls, tmp_path: Path) -> None:
    """With the reason; the others are not tried for ever."""
    task = Task(Layout(tmp_path, {}, TRIPLES, None, few[0]), {"deadly": _Deadly()}, tmp_path, 8, "cpu")
    with pytest.raises(WorkerLost, match=f"{ATTEMPTS} workers died over training triples 0 to 64.* exit code 9; "):
        list(LocalWorkers(2).encode(task, [range(64)]))


@pytest.mark.usefixtures("_quick_start")
def test_what_a_process_raises_is_raised(few: Umls, tmp_path: Path) -> None:
    """By its name, and with the triple."""
    model, vocabulary, table = few
    last = table.ids[in_order(table.ids)[-1]]
    others = np.delete(np.arange(len(table.ids)), np.flatnonzero((table.ids == last).all(1)))
    config = BuildConfig(dim=8, landmarks=1, device="cpu", directions="forward", layers=("last:1",))
    tail = int(last[2])
    good = [row for row in others if tail not in table.ids[row][[0, 2]]]
    ids = np.concatenate([table.ids[good], last[None]])
    tensors = dict(model.tensors)
    name = "entity_representations.1._embeddings.weight"
    tensors[name] = tensors[name].index_fill(0, torch.tensor([tail]), torch.nan)
    bad = replace(model, tensors=tensors)
    with pytest.raises(NonFinite, match=f"training triple {len(good)} "):
        build(tmp_path, bad, vocabulary, TripleTable(ids, np.arange(len(ids)), 0), config, workers=LocalWorkers(2))


@pytest.mark.usefixtures("_quick_start")
def test_the_command_line_takes_workers(umls_folder: Path, umls_index: Path, tmp_path: Path) -> None:
    """``--workers`` builds what is built without."""
    call = ["build", "--model", str(umls_folder), "--index", str(tmp_path), "--dim", "16", "--landmarks", "512"]
    assert cli.main([*call, "--workers", "2"]) == 0
    assert_same(umls_index, tmp_path)


class SharedCluster:
    """Stands for what `ray.init` returns: the first call makes a cluster, which later ones find, and nobody ends."""

    def __init__(self, ray: Any) -> None:
        self.ray, self.start, self.users = ray, ray.init, 0

    def init(self, **options: Any) -> "SharedCluster":
        if not self.ray.is_initialized():
            self.start(**options)
        return self

    def __enter__(self) -> None:
        self.users += 1

    def __exit__(self, *error: object) -> None:
        self.users -= 1


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kgtrace[scale]'")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray: Any) -> Iterator[SharedCluster]:
    cluster = SharedCluster(ray)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", cluster.init)
        yield cluster


class TestRay:
    """A cluster of this machine alone."""

    def test_a_cluster_that_is_not_there_is_named(self, ray: Any, few: Umls, tmp_path: Path) -> None:
        """And not waited for."""
        from kgtrace_indexer.building.ray_workers import RayWorkers

        with pytest.raises(BadRequest, match="no Ray cluster answers at auto"):
            build(tmp_path, *few, CONFIG, workers=RayWorkers("auto"))

    def test_actors_build_the_same_index(self, cluster: SharedCluster, few: Umls, alone: Path, tmp_path: Path) -> None:
        """Also where they were killed: others take their parts up."""
        from kgtrace_indexer.building.ray_workers import RayWorkers

        def actors() -> list[int]:
            return [process for process in descendants(os.getpid()) if _command(process).startswith("ray::_Actor")]

        progress = Killing(actors)
        build(tmp_path, *few, CONFIG, workers=RayWorkers("local", 2), progress=progress)
        assert progress.killed
        assert cluster.users == 0
        assert_same(alone, tmp_path)

    def test_actors_that_die_as_they_start_end_the_build(
        self, cluster: SharedCluster, few: Umls, tmp_path: Path
    ) -> None:
        """As where a node lacks memory, or kgtrace; others are not started for ever."""
        from kgtrace_indexer.building.ray_workers import RayWorkers

        task = Task(Layout(tmp_path, {}, TRIPLES, None, few[0]), {"deadly": _Deadly()}, tmp_path, 8, "cpu")
        with pytest.raises(WorkerLost, match=f"{ATTEMPTS} workers died before their first part; is there memory"):
            list(RayWorkers("local", 1).encode(task, [range(64)]))
        assert cluster.users == 0

    def test_what_an_actor_raises_is_raised(self, cluster: SharedCluster, few: Umls, tmp_path: Path) -> None:
        """By its name."""
        from kgtrace_indexer.building.ray_workers import RayWorkers

        with pytest.raises(BadRequest, match="directions 'sideways'"):
            list(RayWorkers("local", 1).encode(wrong_task(few, tmp_path), [range(64)]))
        assert cluster.users == 0


def descendants(process: int) -> Iterator[int]:
    with suppress(OSError):  # it has ended
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                yield child
                yield from descendants(child)


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


def test_ray_is_needed_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that has it is named."""
    from kgtrace_indexer.building.ray_workers import RayWorkers

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"kgtrace\[scale\]"):
        RayWorkers("auto")
