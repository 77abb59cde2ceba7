"""The frameworks' models, unpacked."""

import lzma
from pathlib import Path

import pytest

from tests.indexer.inputs.frameworks.checks import FIXTURES


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files that the frameworks wrote. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    for packed in FIXTURES.glob("*.xz"):
        (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder
