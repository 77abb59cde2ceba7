"""An environment without settings, and an index without a model."""

import os
from typing import Any

import pytest


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KGTRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def fake(attributor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
