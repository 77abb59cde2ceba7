"""Fixtures shared by all tests: a small trained model, an index of it, and real data where it is at hand."""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for every process of the tests, and before anything loads OpenMP

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, read_model, read_training_folder
from kgtrace_indexer.models import protocol
from kgtrace_server.cli.demo import train_umls
from kgtrace_store import Vocabulary
from tests.simulated_gpu import simulated_gpu

REPOSITORY = Path(__file__).parents[1]

settings.register_profile("any-speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")


LONGEST = (
    "tests/test_matrix.py",
    "tests/indexer/index/test_self_influence.py",
    "tests/end_to_end/test_examples.py",
    "tests/indexer/building/test_workers.py",
    "tests/end_to_end/test_real_models.py",
    "tests/end_to_end/test_rdf.py",
    "tests/test_site.py",
    "tests/end_to_end/test_night_crashes.py",
    "tests/store/test_crashes.py",
    "tests/indexer/inputs/test_archives.py",
)
"""Files of tests that take half a minute or so, longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: of those that are run last, one keeps a core busy and the others idle."""
    ranks = {REPOSITORY / file: rank for rank, file in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of garbage collections: PyKEEN collects after each epoch, half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep runs comparable between machines of many cores and of few, and quick where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _disk_not_waited_for() -> Iterator[None]:
    """Leave out what forces files to disk, which only a loss of power shows; `tests.faults.Disk` loses it of itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which knows a descriptor from none
        yield


@pytest.fixture(scope="session", autouse=True)
def _packages_looked_through_once() -> Iterator[None]:
    """Look for models of installed packages once: each look reads the metadata of all packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "entry_points", cache(protocol.entry_points))
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a test computes: on the CPU, and on a GPU, or on a simulated one where there is none."""
    if request.param == "cpu" or torch.cuda.is_available():
        yield torch.device(request.param)
        return
    with simulated_gpu():
        yield torch.device(request.param)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and models; tests that need it are skipped where it is absent."""
    folder = (REPOSITORY / os.environ.get("KGTRACE_SHARED", "../shared")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"no data sets and models at {folder}; set KGTRACE_SHARED")
    return folder


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Give a folder of a name that a function fills: once, however many processes of pytest-xdist need it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of this run's processes together

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        path = base / f"once-{name}"
        with FileLock(base / f"once-{name}.lock"):
            if not path.exists():
                filled = base / f"once-{name}.partial"
                fill(filled)
                filled.rename(path)
        return path

    return folder


@pytest.fixture(scope="session")
def umls_folder(made_once: Shared) -> Path:
    """A small ConvE, trained on UMLS for a few epochs and saved as PyKEEN saves. Not to be changed."""
    return made_once("umls", lambda folder: train_umls(folder, epochs=4, embedding_dim=32))


@pytest.fixture(scope="session")
def umls(umls_folder: Path) -> tuple[ModelFile, Vocabulary, TripleTable]:
    """What `build` needs of it."""
    return read_model(umls_folder), *read_training_folder(umls_folder / "training_triples")


@pytest.fixture(scope="session")
def umls_index(umls: tuple[ModelFile, Vocabulary, TripleTable], made_once: Shared) -> Path:
    """An index root with one live generation of all UMLS training triples, which answers with plain influence.

    Not to be changed.
    """
    config = BuildConfig(dim=16, landmarks=512, precondition="none")
    return made_once("umls-index", lambda root: build(root, *umls, config))


FEWER = 200
"""Triples that the older generation of `nights` lacks."""


@pytest.fixture(scope="session")
def nights(umls: tuple[ModelFile, Vocabulary, TripleTable], made_once: Shared) -> Path:
    """An index root with two generations, the newer one live: of another model, and of a few triples more.

    Not to be changed.
    """

    def fill(root: Path) -> None:
        model, vocabulary, table = umls
        train_umls(root / "model", epochs=2, embedding_dim=32, seed=1)
        fewer = replace(table, ids=table.ids[:-FEWER], train_index=table.train_index[:-FEWER])
        build(root, read_model(root / "model"), vocabulary, fewer, BuildConfig(dim=16, landmarks=512))
        build(root, model, vocabulary, table, BuildConfig(dim=16, landmarks=512))

    return made_once("nights", fill)
