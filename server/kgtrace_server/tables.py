"""Rows of named columns in files: CSV and parquet, written block by block."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Literal

from kgtrace_store.errors import MissingExtra

Kind = Literal["integer", "number", "truth", "text"]
Columns = Mapping[str, Kind]
"""What a column holds, by its name; the order counts."""
Rows = Iterable[Mapping[str, Any]]

_ROW_GROUP = 65_536
"""Rows of a parquet file that are in memory at once: readers skip and load it in such groups."""


def triple_columns(prefix: str = "") -> dict[str, Kind]:
    """Return the columns of a triple: ids, ``_label`` and ``_name``."""
    return {
        f"{prefix}{field}{suffix}": kind
        for field in ("head", "relation", "tail")
        for suffix, kind in named_columns().items()
    }


def named_columns() -> dict[str, Kind]:
    """Return the endings of the columns of an entity or relation."""
    return {"": "integer", "_label": "text", "_name": "text"}


def write_csv(sink: BinaryIO, columns: Columns, blocks: Iterable[Rows]) -> int:
    """Write a header and a line for each row; return how many rows there were."""
    count = 0
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for rows in blocks:
        for row in rows:
            writer.writerow(row)
            count += 1
        sink.write(text.getvalue().encode())
        text.seek(0)
        text.truncate()
    sink.write(text.getvalue().encode())
    return count


def write_parquet(sink: BinaryIO, columns: Columns, blocks: Iterable[Rows]) -> int:
    """Write row groups; return how many rows there were. Raises `MissingExtra` without pyarrow."""
    pa = pyarrow()
    kinds = {"integer": pa.int64(), "number": pa.float64(), "truth": pa.bool_(), "text": pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    count, waiting = 0, schema.empty_table()
    with pa.parquet.ParquetWriter(sink, schema) as writer:
        for rows in blocks:
            waiting = pa.concat_tables([waiting, pa.Table.from_pylist(list(rows), schema)])
            while len(waiting) >= _ROW_GROUP:
                writer.write_table(waiting[:_ROW_GROUP])
                count, waiting = count + _ROW_GROUP, waiting[_ROW_GROUP:]
        if len(waiting):
            writer.write_table(waiting)
    return count + len(waiting)


def pyarrow() -> Any:
    """Return the library that writes parquet. Raises `MissingExtra`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtra("parquet needs pyarrow: pip install 'kgtrace[parquet]', or write .csv") from e
    return pyarrow
