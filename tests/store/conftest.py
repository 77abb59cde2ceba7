"""An index root."""

from pathlib import Path

import pytest

from kgtrace_store.generations import IndexRoot


@pytest.fixture
def root(tmp_path: Path) -> IndexRoot:
    return IndexRoot(tmp_path / "index")
