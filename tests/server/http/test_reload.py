"""Following an index root while answering from it."""

import gc
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kgtrace_indexer import open_index
from kgtrace_server.http.memory import available_memory
from kgtrace_server.http.reload import _BYTES_PER_LABEL_BYTE, NotEnoughMemory, Reloader
from kgtrace_server.schema.operation import Reload
from kgtrace_store import IndexRoot, Vocabulary, durable, layout
from tests.server.waiting import PATIENCE

ENDINGS = {
    "gradients": ".h5",
    "rows-0": ".h5",
    "lists-0": ".faiss",
    "self_influence": ".h5",
    "search": ".faiss",
    "model": ".safetensors",
    "entities": ".tsv",
}


class Fake:
    """A service as the reloader sees it."""

    def __init__(self, generation: str) -> None:
        self.generation = generation


class Backend:
    """Holds one service, as the application does."""

    def __init__(self) -> None:
        self.service: Fake | None = None
        self.swapped = threading.Event()

    def swap(self, service: Fake) -> None:
        self.service = service
        self.swapped.set()


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def root(tmp_path: Path) -> IndexRoot:
    """An index root without a generation."""
    return IndexRoot(tmp_path / "index")


@pytest.fixture
def backend() -> Backend:
    """What answers."""
    return Backend()


def commit(root: IndexRoot, *, publish: bool = True, **sizes: int) -> str:
    """Make a generation of files of these sizes; ``__`` stands for ``/``, and the endings are added."""
    with root.stage("ab" * 32) as staging:
        for name, size in (sizes or {"gradients": 10}).items():
            path = staging.path / (name.replace("__", "/") + ENDINGS[name.rpartition("__")[2]])
            durable.make_folder(path.parent)
            durable.write_file(path, bytes(size))
        id_ = staging.commit(configuration={}, counts={}, provenance={})
    if publish:
        root.publish(id_)
    return id_


def test_the_first_generation_may_come_late(root: IndexRoot, backend: Backend) -> None:
    """Without a generation nothing happens; when one appears it is loaded, once."""
    ended: list[Reload] = []
    reloader = Reloader(root.path, Fake, backend.swap, ended=ended.append)
    assert reloader.check() is None
    assert (reloader.generation, reloader.last) == (None, None)
    first = commit(root)
    result = reloader.check()
    assert result is not None
    assert (result.ok, result.generation, result.reason) == (True, first, None)
    assert backend.service is not None
    assert backend.service.generation == reloader.generation == first
    assert reloader.check() is None
    assert ended == [result]


def test_the_old_one_drains(root: IndexRoot, backend: Backend) -> None:
    """A replaced service is let go, and counts as draining for as long as a request holds it."""
    reloader = Reloader(root.path, Fake, backend.swap)
    first = commit(root)
    reloader.check()
    request = backend.service
    second = commit(root)
    reloader.check()
    assert (reloader.generation, reloader.draining) == (second, [first])
    assert request is not None
    assert request.generation == first
    del request
    gc.collect()
    assert reloader.draining == []


def test_a_generation_is_loaded_that_cannot_be_pruned(root: IndexRoot, backend: Backend) -> None:
    """While a generation is being loaded it is in use, whatever becomes live meanwhile."""
    commit(root)

    def load(generation: str) -> Fake:
        commit(root)
        assert root.prune(1) == []
        return Fake(generation)

    result = Reloader(root.path, load, backend.swap).check()
    assert result is not None
    assert result.ok


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), SystemExit(1)])
def test_failures_keep_the_old_one(root: IndexRoot, backend: Backend, error: BaseException) -> None:
    """What cannot be loaded leaves the one that answers in place, is told, and is tried again after a minute."""
    clock, attempts = Clock(), []
    first = commit(root)

    def load(generation: str) -> Fake:
        attempts.append(generation)
        if generation != first:
            raise error
        return Fake(generation)

    reloader = Reloader(root.path, load, backend.swap, clock=clock)
    reloader.check()
    second = commit(root)
    result = reloader.check(now=False)
    assert result is not None
    assert (result.ok, result.generation) == (False, second)
    assert result.reason == f"{type(error).__name__}; see the log"
    assert reloader.last is result
    assert backend.service is not None
    assert backend.service.generation == reloader.generation == first
    clock.now = 59.0
    assert reloader.check(now=False) is None
    clock.now = 61.0
    assert reloader.check(now=False) is not None
    assert reloader.check() is not None
    third = commit(root)
    assert reloader.check(now=False) is not None
    assert attempts == [first, second, second, second, third]


def test_a_damaged_manifest_and_a_foreign_current_are_told(root: IndexRoot, backend: Backend) -> None:
    """Named errors become the reason in their own words, and the index may be mended while serving."""
    reloader = Reloader(root.path, Fake, backend.swap, clock=Clock())
    first = commit(root)
    reloader.check()
    second = commit(root)
    manifest = root.path / "generations" / second / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    result = reloader.check(now=False)
    assert result is not None
    assert "manifest.json is not JSON" in str(result.reason)
    (root.path / "CURRENT").write_text("nonsense")
    result = reloader.check(now=False)
    assert result is not None
    assert (result.generation, result.ok) == (None, False)
    assert "CURRENT holds 'nonsense'" in str(result.reason)
    assert reloader.check(now=False) is None
    assert reloader.generation == first
    root.publish(first)
    assert reloader.check(now=False) is None
    third = commit(root)
    reloader.check(now=False)
    assert reloader.generation == third


def test_memory_for_two_is_asked_for(root: IndexRoot, backend: Backend) -> None:
    """A generation that does not fit beside the one that answers is refused with both sizes."""
    available = 2000
    reloader = Reloader(root.path, Fake, backend.swap, memory=lambda: available)
    first = commit(root, search=1000, model__model=500, vocabulary__entities=1_000_000)
    reloader.check()
    second = commit(root, search=300, model__model=140, vocabulary__entities=10)
    result = reloader.check()
    assert result is not None
    assert not result.ok
    assert str(result.reason).startswith(
        f"generation {second} beside generation {first} needs 2100 bytes of memory, 2000 are available"
    )
    available = 2100
    reloader.check()
    assert reloader.generation == second


def test_the_first_generation_is_always_loaded(root: IndexRoot, backend: Backend) -> None:
    """How much memory it needs is a guess, and there is nothing that it could push out."""
    reloader = Reloader(root.path, Fake, backend.swap, memory=lambda: 0)
    first = commit(root, search=1000, gradients=1000)
    result = reloader.check()
    assert result is not None
    assert result.ok
    assert reloader.generation == first


def test_processes_share_all_but_the_vocabulary(root: IndexRoot, backend: Backend) -> None:
    """Each of several that load a generation at once makes labels and tables of its own."""
    available = 1000 + 3 * _BYTES_PER_LABEL_BYTE * 10 - 1
    reloader = Reloader(root.path, Fake, backend.swap, processes=3, memory=lambda: available)
    first = commit(root, search=500)
    reloader.check()
    second = commit(root, search=500, vocabulary__entities=10)
    result = reloader.check()
    assert result is not None
    assert not result.ok
    assert reloader.generation == first
    available += 1
    reloader.check()
    assert reloader.generation == second


def test_what_is_mapped_need_not_fit(root: IndexRoot, backend: Backend) -> None:
    """Codes and lists of rows may be larger than memory, those of shards and of the generation before, too."""
    reloader = Reloader(root.path, Fake, backend.swap, memory=lambda: 10)
    huge = dict.fromkeys(("gradients", "rows-0", "lists-0", "shards__0000__lists-0", "self_influence"), 10_000)
    for _ in range(2):
        id_ = commit(root, **huge, shards__0000__gradients=10_000, shards__0000__search=5)
        reloader.check()
        assert reloader.generation == id_
    commit(root, **huge, shards__0000__search=6)
    reloader.check()
    assert reloader.generation == id_


def test_what_milvus_searches_need_not_fit(root: IndexRoot, backend: Backend) -> None:
    """The searched index is then in another process's memory."""
    reloader = Reloader(root.path, Fake, backend.swap, searches=False, memory=lambda: 10)
    for _ in range(2):
        id_ = commit(root, search=10_000)
        reloader.check()
        assert reloader.generation == id_
    with root.open(id_, verify=False) as opened:
        reloader.require_memory(opened.manifest)
        with pytest.raises(NotEnoughMemory, match="needs 10000 bytes of memory, 10 are available"):
            reloader.require_memory(opened.manifest, searches=True)  # in this process, beside the live one


def test_files_that_need_not_fit_are_mapped(umls_index: Path) -> None:
    """What the check leaves out, an open index really maps: the operating system's own list has it."""
    attributor = open_index(umls_index)
    attributor.query(np.zeros((1, 3), np.int64), score="preconditioned")  # which other questions do without
    attributor.reasons.prepare()
    mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    folder = umls_index / "generations" / attributor.manifest.generation
    left_out = {name for name in attributor.manifest.files if layout.MAPPED.fullmatch(name)}
    assert left_out >= {"gradients.h5", "rows-0.h5", "lists-0.faiss"}
    assert {str(folder / name) for name in left_out} <= mapped


@pytest.mark.parametrize("names", [False, True])
def test_a_vocabulary_takes_no_more_than_is_counted(tmp_path: Path, names: bool) -> None:
    """Short labels cost most for their bytes."""
    labels = [f"Q{i}" for i in range(20_000)]
    Vocabulary(labels, ["r"], {i: f"entity {i}" for i in range(20_000)} if names else {}, {}).write(tmp_path)
    tracemalloc.start()
    try:
        vocabulary = Vocabulary.read(tmp_path)
        vocabulary.resolve_entity("Q1")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 4 * size < taken < _BYTES_PER_LABEL_BYTE * 1.25 * size


def test_the_thread_follows_and_stops(root: IndexRoot, backend: Backend) -> None:
    """Started, it loads what is published without being asked; closed, it ends."""
    reloader = Reloader(root.path, Fake, backend.swap, interval=0.01)
    reloader.start()
    for _ in range(2):
        backend.swapped.clear()
        id_ = commit(root)
        assert backend.swapped.wait(PATIENCE)
        assert backend.service is not None
        assert backend.service.generation == id_
    reloader.close()
    assert threading.active_count() == 1 or "kgtrace-reload" not in {t.name for t in threading.enumerate()}


def test_closing_while_loading_swaps_nothing(root: IndexRoot, backend: Backend) -> None:
    """A load that ends after the service was told to stop is dropped."""
    loading, finish = threading.Event(), threading.Event()

    def load(generation: str) -> Fake:
        loading.set()
        assert finish.wait(PATIENCE)
        return Fake(generation)

    commit(root)
    reloader = Reloader(root.path, load, backend.swap)
    reloader.start()
    assert loading.wait(PATIENCE)
    reloader.close(timeout=0)
    finish.set()
    reloader.close()
    assert (backend.service, reloader.last) == (None, None)


def test_available_memory_knows_containers(tmp_path: Path) -> None:
    """The smaller of what the machine has and what the container's limit leaves; files in the cache are free."""
    own = tmp_path / "own"
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\nHugePages_Total: 0\n")
    assert available_memory(tmp_path / "meminfo", tmp_path, own) == 5_120_000
    limit(tmp_path, 4_000_000)
    assert available_memory(tmp_path / "meminfo", tmp_path, own) == 1_750_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path, own) == 5_120_000
    assert available_memory(tmp_path / "absent", tmp_path / "absent", own) is None


def limit(group: Path, size: int) -> None:
    """Limit a control group that uses 3 MB, 750 kB of them files in the cache."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{size}\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 1\nactive_file 500000\ninactive_file 250000\n")


def test_available_memory_knows_units_and_what_is_around_them(tmp_path: Path) -> None:
    """Without a namespace of its own, a service finds its limit in its own control group, or in one around it."""
    own, groups = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("1:name=systemd:/other\n0::/system.slice/kgtrace.service\n")
    service = groups / "system.slice" / "kgtrace.service"
    limit(service, 4_000_000)
    assert available_memory(tmp_path / "absent", groups, own) == 1_750_000
    limit(service.parent, 3_500_000)
    assert available_memory(tmp_path / "absent", groups, own) == 1_250_000
    limit(groups, 2_000_000)
    assert available_memory(tmp_path / "absent", groups, own) == 0
    own.write_text("0::/../../elsewhere\n")
    limit(groups, 3_250_000)
    assert available_memory(tmp_path / "absent", groups, own) == 1_000_000
