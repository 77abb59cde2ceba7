"""Fixtures shared by all tests: a small trained model, an index of it, and real data where it is at hand."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, read_model, read_training_folder
from kgtrace_server.demo import train_umls
from kgtrace_store import Vocabulary

REPOSITORY = Path(__file__).parents[1]

settings.register_profile("any-speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep runs comparable between machines of many cores and of few, and quick where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and models; tests that need it are skipped where it is absent."""
    folder = (REPOSITORY / os.environ.get("KGTRACE_SHARED", "../shared")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"no data sets and models at {folder}; set KGTRACE_SHARED")
    return folder


@pytest.fixture(scope="session")
def umls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ConvE, trained on UMLS for a few epochs and saved as PyKEEN saves."""
    folder = tmp_path_factory.mktemp("umls") / "model"
    train_umls(folder, epochs=4, embedding_dim=32)
    return folder


@pytest.fixture(scope="session")
def umls(umls_folder: Path) -> tuple[ModelFile, Vocabulary, TripleTable]:
    """What `build` needs of it."""
    return read_model(umls_folder), *read_training_folder(umls_folder / "training_triples")


@pytest.fixture(scope="session")
def umls_index(umls: tuple[ModelFile, Vocabulary, TripleTable], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index root with one live generation of all UMLS training triples, which answers with plain influence."""
    root = tmp_path_factory.mktemp("umls-index")
    build(root, *umls, BuildConfig(dim=16, landmarks=512, precondition="none"))
    return root
