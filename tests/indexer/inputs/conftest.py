"""Files to read: of text, and models that PyKEEN saved."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs.model_file import write_model
from kgtrace_indexer.inputs.model_reader import read_model
from tests.indexer.inputs.pykeen_models import make_model
from tests.indexer.inputs.text import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write text or bytes into a new file and give its path."""
    count = 0

    def write(content: str | bytes, name: str = "file.tsv") -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"{count}-{name}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def quiet() -> Iterator[None]:
    """PyKEEN and its dependencies warn about themselves."""
    logging.getLogger("pykeen").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def conve() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_model()


@pytest.fixture
def saved(conve: Any, tmp_path: Path) -> Path:
    """The ConvE as PyKEEN saves it."""
    torch.save(conve, tmp_path / "trained_model.pkl")
    return tmp_path


@pytest.fixture
def converted(tmp_path: Path, saved: Path) -> Path:
    write_model(read_model(saved), tmp_path / "converted")
    return tmp_path / "converted"
