"""The tables of docs/scale.md that benchmarks write."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from benchmarks.fb15k237 import RESULTS
from benchmarks.pages import DOCS

from benchmarks import costs, sharded, wikidata


@pytest.mark.parametrize(
    ("marker", "table", "results"),
    [
        ("costs", costs.table, ("fb15k237", "growth")),
        ("sharded", sharded.table, ("sharded",)),
        ("wikidata", wikidata.table, ("wikidata",)),
    ],
)
def test_tables_are_those_of_the_results(marker: str, table: Callable[..., str], results: tuple[str, ...]) -> None:
    """Where results were measured anew, ``python -m benchmarks.costs`` and its like were run after it."""
    found: list[dict[str, Any]] = [json.loads((RESULTS / f"{name}-cpu.json").read_text()) for name in results]
    line = f"<!-- {marker} -->\n"
    assert f"{line}{table(*found)}\n{line}" in (DOCS / "scale.md").read_text()
