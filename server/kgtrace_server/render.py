"""Answers as text for people and as files for programs."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kgtrace_server.wire import Explanation, Influences, Named, NamedTriple
from kgtrace_store import durable
from kgtrace_store.errors import BadRequest, MissingExtra

FORMATS = (".json", ".csv", ".parquet")
"""Endings of output files, and so their formats."""

_WIDEST = 40
"""Characters of a label in a table; files hold them whole."""

COLUMNS = (
    "test_index",
    *(f"test_{f}{suffix}" for f in ("head", "relation", "tail") for suffix in ("", "_label", "_name")),
    "certified",
    "position",
    "train_index",
    *(f"train_{f}{suffix}" for f in ("head", "relation", "tail") for suffix in ("", "_label", "_name")),
    "influence",
    "cosine",
)
"""Of tabular output, one row per influence: ids, ``_label`` and ``_name``; ``position`` counts from 1."""


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows as lines of aligned columns, those at positions ``right`` to the right."""
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
    return "\n".join(_explanation(result) for result in answer["results"])


def write_influences(path: Path, answer: Influences, test_indices: Sequence[int]) -> None:
    """Write an answer to a file, whole or not at all, in the format that its ending names.

    ``test_indices``: which test triple each result is about, for tabular output.

    Raises `BadRequest` for another ending, `MissingExtra` for parquet without pyarrow, and `StorageFailed`.
    """
    match check_format(path):
        case ".json":
            data = json_text(answer).encode()
        case ".csv":
            data = _csv(answer, test_indices)
        case _:
            data = _parquet(answer, test_indices)
    durable.replace_file(path, data)


def check_format(path: Path) -> str:
    """Return an output file's ending, before hours of work go into its content.

    Raises `BadRequest` for one that stands for no format or a folder that is not there, and `MissingExtra`.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise BadRequest(f"output {path} ends in {ending!r}: choose one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise BadRequest(f"output {path}: there is no folder {path.parent}")
    if ending == ".parquet":
        _pyarrow()
    return ending


def json_text(content: Mapping[str, Any]) -> str:
    """Return JSON for people and programs."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _explanation(result: Explanation) -> str:
    triple = result["triple"]
    score, loss = _number(result["score"]), _number(result["loss"])
    trained = "a training triple" if result["in_training"] else "not a training triple"
    if result["certified"]:
        proof = f"certified exact ({result['exact_terms']} influences computed)"
    else:
        proof = f"not certified: what was not looked at may have {_number(result['bound_gap'])} more influence"
    lines = f"{'  '.join(_shown(triple))}\n  score {score}, rank {result['rank']}, loss {loss}; {trained}; {proof}\n"
    if not result["influences"]:
        return lines + "  no training triple may be named\n"
    rows = [("", "influence", "cosine", "row", "head", "relation", "tail")]
    for position, found in enumerate(result["influences"], 1):
        numbers = (_number(found["influence"]), _number(found["cosine"]), str(found["train_index"]))
        rows.append((str(position), *numbers, *_shown(found["triple"])))
    return lines + table(rows, right=(0, 1, 2, 3))


def _shown(triple: NamedTriple) -> tuple[str, str, str]:
    return _show(triple["head"]), _show(triple["relation"]), _show(triple["tail"])


def _show(named: Named) -> str:
    text = named["name"] or named["label"]
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _rows(answer: Influences, test_indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    for test_index, result in zip(test_indices, answer["results"], strict=True):
        test = {"test_index": test_index, **_columns("test", result["triple"]), "certified": result["certified"]}
        for position, found in enumerate(result["influences"], 1):
            yield {
                **test,
                "position": position,
                "train_index": found["train_index"],
                **_columns("train", found["triple"]),
                "influence": found["influence"],
                "cosine": found["cosine"],
            }


def _columns(prefix: str, triple: NamedTriple) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, named in (("head", triple["head"]), ("relation", triple["relation"]), ("tail", triple["tail"])):
        columns[f"{prefix}_{name}"] = named["id"]
        columns[f"{prefix}_{name}_label"] = named["label"]
        columns[f"{prefix}_{name}_name"] = named["name"]
    return columns


def _csv(answer: Influences, test_indices: Sequence[int]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(answer, test_indices))
    return text.getvalue().encode()


def _parquet(answer: Influences, test_indices: Sequence[int]) -> bytes:
    pa = _pyarrow()
    # Types by name, so that an answer without influences, or without names, has the same columns.
    kinds = {"certified": pa.bool_(), "influence": pa.float64(), "cosine": pa.float64()}
    text = ("_label", "_name")
    schema = pa.schema(
        [(name, kinds.get(name, pa.string() if name.endswith(text) else pa.int64())) for name in COLUMNS]
    )
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(_rows(answer, test_indices)), schema), buffer)
    return buffer.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtra("parquet needs pyarrow: pip install 'kgtrace[parquet]', or write .csv") from e
    return pyarrow
