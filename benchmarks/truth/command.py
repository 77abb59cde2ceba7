"""What the commands have in common: arguments, a file of results for each problem, a table in the docs."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fb15k237 import RESULTS, machine
from benchmarks.pages import DOCS, replace
from benchmarks.truth.graphs import read_graph
from benchmarks.truth.whole import PROBLEMS

Measure = Callable[..., dict[str, Any]]
"""Takes the name of a problem, its graph and the command's numbers."""
Shown = Callable[[Mapping[str, Mapping[str, Any]]], str]
"""Makes tables of all problems' results."""


def run(
    doc: str | None,
    kind: str,
    measure: Measure,
    shown: Shown,
    *,
    page: str = "truth.md",
    problems: Sequence[str] = tuple(PROBLEMS),
    files: Sequence[str] = (),
    **numbers: int,
) -> None:
    """Measure the problems asked for, and write the results, and tables of all that there are to a page of the docs.

    `problems` are asked for by default; `files` are further options that name one, `numbers` such with their defaults.
    """
    args = arguments(doc, files, numbers).parse_args()
    asked = {option: getattr(args, option) for option in (*files, *numbers)}
    measured(kind, measure, shown, asked, page, () if args.write_only else args.problems or problems)


def arguments(doc: str | None, files: Sequence[str], numbers: Mapping[str, int]) -> argparse.ArgumentParser:
    """Return a parser of problems, and of options as `run` has them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, metavar="NAME", help=", ".join(PROBLEMS))
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    for option in files:
        parser.add_argument(f"--{option}", metavar="FILE")
    parser.add_argument("--write-only", action="store_true", help="only tables and pictures again")
    return parser


def measured(
    kind: str, measure: Measure, shown: Shown, asked: Mapping[str, Any], page: str, problems: Sequence[str]
) -> None:
    """Measure problems with what is asked, and write their results, and tables of all that there are."""
    for name in problems:
        graph, _ = PROBLEMS[name]
        found = {"machine": machine(), **asked, **measure(name, read_graph(graph), **asked)}
        _file(kind, name).write_text(json.dumps(found, indent=2) + "\n")
    text = shown(results(kind))
    print(text)
    replace(DOCS / page, kind, text)


def results(kind: str) -> dict[str, Any]:
    """Return the results of a kind that there are, by problem."""
    files = {name: _file(kind, name) for name in PROBLEMS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def _file(kind: str, name: str) -> Path:
    return RESULTS / f"{kind}-{name.lower()}-cpu.json"


def tables(found: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """Return a table for each kind of model: titles of ``rows`` down, and across some columns of each problem."""
    models = dict.fromkeys(PROBLEMS[name][1].model for name in found)
    groups = [{name: each for name, each in found.items() if PROBLEMS[name][1].model == model} for model in models]
    return "\n\n".join(f"**{model}**\n\n{_table(group, columns)}" for model, group in zip(models, groups, strict=True))


def _table(found: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    head = [f"{name}, {column}" for name in found for column in columns]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for title in titles(found):
        cells = [cell(each["rows"].get(title, {}).get(column)) for each in found.values() for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def titles(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the titles of all problems' rows, once each."""
    return list(dict.fromkeys(title for each in found.values() for title in each["rows"]))


def cell(value: Mapping[str, float] | None, sign: str = "") -> str:
    """Return a mean with its interval; `sign` is ``+`` for changes."""
    if value is None:
        return ""
    return f"{value['mean']:{sign}.2f} ({value['low']:{sign}.2f}…{value['high']:{sign}.2f})"
