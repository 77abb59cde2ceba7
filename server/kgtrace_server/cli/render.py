"""Answers as text for people and as files for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kgtrace_server import graphml, jsonld, tables
from kgtrace_server.printable import printable
from kgtrace_server.schema.answer import Table, to_json
from kgtrace_server.schema.answers import (
    Aggregate,
    Explanation,
    Influence,
    Influences,
    Named,
    NamedTriple,
    SelfInfluence,
    SelfInfluences,
)
from kgtrace_store.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np

    from kgtrace_indexer.names import Outcome, Score

FORMATS = (".json", ".csv", ".parquet")
"""Endings of output files, and so their formats."""

INFLUENCE_FORMATS = (*FORMATS, ".jsonl", ".jsonld", ".graphml")
"""The same of influences."""

_WIDEST = 40
"""Characters of a label in a table; files hold them whole."""


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows as lines of aligned columns, columns ``right`` to the right, fit for a terminal."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def influences(answer: Influences) -> str:
    """Return an answer as a page of text."""
    return "\n".join(_explanation(result, answer.score, answer.outcome) for result in answer.results)


def self_influences(answer: SelfInfluences) -> str:
    """Return an answer as a table."""
    scores = _scores(answer.score, answer.self_influences)
    rows = [("", *scores, "row", "head", "relation", "tail")]
    for position, member in enumerate(answer.self_influences, 1):
        values = (number(getattr(member, score)) for score in scores)
        rows.append((str(position), *values, str(member.train_index), *shown(member.triple)))
    return table(rows, right=range(2 + len(scores)))


def aggregate(answer: Aggregate) -> str:
    """Return an answer as a table below a line on all of it."""
    tests = f"{answer.test_triples:,} test triples" if answer.triple is None else "  ".join(shown(answer.triple))
    kind = "influence" if answer.score == "tracin" else f"{answer.score} influence"
    precise = "exact" if answer.exact else "each within its error"
    order = "order certified" if answer.certified else "order not certified: errors may change it"
    total = f"{answer.total.count:,} training triples, sum {number(answer.total.sum)}"
    text = f"{tests}\n  {kind} of {total}; {precise}; {order}\n"
    if answer.by == "triple":
        ranking = [("", "sum", "row", "head", "relation", "tail")]
        for position, member in enumerate(answer.groups, 1):
            assert isinstance(member.group, NamedTriple)
            ranking.append((str(position), number(member.sum), str(member.train_index), *shown(member.group)))
        return text + table(ranking, right=(0, 1, 2))
    rows = [["", "sum", "error", "for", "against", "triples", str(answer.by)]]
    for position, member in enumerate(answer.groups, 1):
        assert isinstance(member.group, Named)
        sums = map(number, (member.sum, member.error, member.positive, member.negative))
        rows.append([str(position), *sums, f"{member.count:,}", show(member.group)])
    return text + table(rows, right=(0, 1, 2, 3, 4, 5))


def write_rows(sink: BinaryIO, ending: str, answer: Table) -> None:
    """Write an answer. ``ending`` is one of `FORMATS`."""
    if ending == ".json":
        sink.write(to_json(answer, indent=2) + b"\n")
        return
    _write_table(sink, ending, answer.columns, [answer.rows()])


def write_influences(
    sink: BinaryIO,
    ending: str,
    answers: Iterable[Influences],
    test_indices: np.ndarray,
    *,
    skipped: int | None = None,
) -> int:
    """Write answers, one after another, as one; return how many influences they hold.

    ``ending`` is one of `INFLUENCE_FORMATS`; ``test_indices`` (n,) tells which test triple each result is about, for
    formats that say it. ``skipped`` lines of a file of test triples were left out, which JSON says unless it is None.
    """
    if ending == ".json":
        return _write_json(sink, answers, skipped)
    if ending == ".jsonl":
        return _write_lines(sink, answers, test_indices)
    if ending == ".jsonld":
        return jsonld.write(sink, answers)
    if ending == ".graphml":
        return graphml.write(sink, answers, test_indices.tolist())
    return _write_table(sink, ending, Influences.COLUMNS, _blocks(answers, test_indices))


def check_format(path: Path, formats: Sequence[str] = FORMATS) -> str:
    """Return an output file's ending, before hours of work go into its content.

    Raises `BadRequest` for one that is not among the formats and as `check_output`, and `MissingExtra`.
    """
    ending = path.suffix.lower()
    if ending not in formats:
        raise BadRequest(f"output {path} ends in {ending!r}, must end in {' or '.join(formats)}")
    check_output(path)
    if ending == ".parquet":
        tables.pyarrow()
    return ending


def check_output(path: Path) -> None:
    """Raise `BadRequest` for an output file that is a folder, or in a folder that is not there."""
    if path.is_dir():
        raise BadRequest(f"output {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise BadRequest(f"output {path}: there is no folder {path.parent}")


def json_text(content: object) -> str:
    """Return JSON for people and programs, of values that may hold answers; those alone are faster with `to_json`."""
    return json.dumps(content, default=asdict, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _scores(first: Score, members: Sequence[Influence] | Sequence[SelfInfluence]) -> list[Score]:
    """Return the score that ranks, and the other one where it is known."""
    other: Score = "tracin" if first == "preconditioned" else "preconditioned"
    return [first] if all(getattr(member, other) is None for member in members) else [first, other]


def _explanation(result: Explanation, score: Score, outcome: Outcome) -> str:
    """Return one test triple and its training triples, ranked by a score."""
    trained = "a training triple" if result.in_training else "not a training triple"
    if result.certified:
        proof = f"certified exact ({result.exact_terms} influences computed)"
    else:
        proof = f"not certified: what was not looked at may have {number(result.bound_gap)} more influence"
    facts = f"score {number(result.score)}, rank {result.rank}, loss {number(result.loss)}; {trained}; {proof}"
    lines = f"{'  '.join(shown(result.triple))}\n  {facts}\n"
    lines += "  explained: its log-probability among all completions\n" * (outcome == "probability")
    lines += "".join(f"  note: {note}\n" for note in result.notes)
    if not result.influences:
        return lines + "  no training triple may be named\n"
    scores = _scores(score, result.influences)
    rows = [("", *scores, "cosine", "row", "head", "relation", "tail", "reason")]
    for position, member in enumerate(result.influences, 1):
        values = (number(getattr(member, name)) for name in (*scores, "cosine"))
        rows.append(
            (str(position), *values, str(member.train_index), *shown(member.triple), member.reason or "unknown")
        )
    return lines + table(rows, right=range(3 + len(scores)))


def shown(triple: NamedTriple) -> tuple[str, str, str]:
    """Return a triple for a table."""
    return show(triple.head), show(triple.relation), show(triple.tail)


def show(named: Named) -> str:
    """Return a name for a table."""
    text = printable(str(named))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def number(value: float | None) -> str:
    """Return a number in four digits."""
    return "-" if value is None else f"{value:.4g}"


def _write_json(sink: BinaryIO, answers: Iterable[Influences], skipped: int | None) -> int:
    """Write the answers joined, as indented JSON; one at a time is in memory."""
    seconds: dict[str, float] = {}
    count, opening = 0, b""
    for answer in answers:
        if not opening:
            facts: dict[str, Any] = {"generation": answer.generation, "score": answer.score, "outcome": answer.outcome}
            if skipped is not None:
                facts["skipped_test_triples"] = skipped
            opening = json_text(facts).removesuffix("\n}\n").encode() + b',\n  "results": ['
        for result in answer.results:
            sink.write(opening + b"\n    " + to_json(result, indent=2).replace(b"\n", b"\n    "))
            opening = b","
            count += len(result.influences)
        for stage, spent in asdict(answer.seconds).items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    text = json.dumps(seconds, indent=2).replace("\n", "\n  ")
    sink.write(f'\n  ],\n  "seconds": {text}\n}}\n'.encode())
    return count


def _write_lines(sink: BinaryIO, answers: Iterable[Influences], test_indices: np.ndarray) -> int:
    """Write each result as an object in a line of JSON, with its origin and its row in the file of test triples."""
    rows = iter(test_indices.tolist())
    count = 0
    for answer in answers:
        for result in answer.results:
            facts = json.dumps({**answer.origin, "test_index": next(rows)})
            sink.write(facts.removesuffix("}").encode() + b", " + to_json(result).removeprefix(b"{") + b"\n")
            count += len(result.influences)
    return count


def _write_table(sink: BinaryIO, ending: str, columns: tables.Columns, blocks: Iterable[tables.Rows]) -> int:
    write = tables.write_csv if ending == ".csv" else tables.write_parquet
    return write(sink, columns, blocks)


def _blocks(answers: Iterable[Influences], test_indices: np.ndarray) -> Iterable[tables.Rows]:
    first = 0
    for answer in answers:
        yield answer.rows(test_indices[first : first + len(answer.results)].tolist())
        first += len(answer.results)
