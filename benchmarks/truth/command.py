"""What the commands have in common: arguments, a file of results for each graph, a table in the docs."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.fb15k237 import RESULTS, machine
from benchmarks.pages import DOCS, replace
from benchmarks.truth.graphs import GRAPHS, read_graph

Measure = Callable[..., dict[str, Any]]
"""Takes the name of a graph, the graph and the command's numbers."""
Shown = Callable[[Mapping[str, Mapping[str, Any]]], str]
"""Makes a table of all graphs' results."""


def run(doc: str | None, kind: str, measure: Measure, shown: Shown, **numbers: int) -> None:
    """Measure on the graphs asked for, and write the results, and the table of all that there are.

    `numbers` are further options with their defaults.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--write-only", action="store_true", help="only tables and pictures again")
    args = parser.parse_args()
    for name in args.graphs if not args.write_only else ():
        asked = {option: getattr(args, option) for option in numbers}
        found = {"machine": machine(), **asked, **measure(name, read_graph(name), **asked)}
        _file(kind, name).write_text(json.dumps(found, indent=2) + "\n")
    files = {name: _file(kind, name) for name in GRAPHS}
    text = shown({name: json.loads(file.read_text()) for name, file in files.items() if file.exists()})
    print(text)
    replace(DOCS / "truth.md", kind, text)


def _file(kind: str, name: str) -> Path:
    return RESULTS / f"{kind}-{name.lower()}-cpu.json"


def rows(found: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """Return a row for each title of any graph's ``rows``, and for each graph a cell for each of some columns."""
    head = [f"{name}, {column}" for name in found for column in columns]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for title in titles(found):
        cells = [cell(each["rows"].get(title, {}).get(column)) for each in found.values() for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def titles(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the titles of all graphs' rows, once each."""
    return list(dict.fromkeys(title for each in found.values() for title in each["rows"]))


def cell(value: Mapping[str, float] | None, sign: str = "") -> str:
    """Return a mean with its interval; `sign` is ``+`` for changes."""
    if value is None:
        return ""
    return f"{value['mean']:{sign}.2f} ({value['low']:{sign}.2f}…{value['high']:{sign}.2f})"
