"""How fast triples are read from Parquet and Arrow files, beside the same triples as tab-separated text.

::

    python -m benchmarks.columnar ../shared/data/FB15k-237/train.txt
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from kgtrace import read_triples
from kgtrace_store import Vocabulary

NAMES = ("head", "relation", "tail")
RUNS = 5


def main() -> None:
    """Write the triples of a file in each format, and print the fastest of some readings, by the time of the processor."""
    parser = argparse.ArgumentParser(description="How fast triples are read from Parquet and Arrow files.")
    parser.add_argument("triples", type=Path, metavar="FILE", help="lines of head⇥relation⇥tail")
    text = parser.parse_args().triples.read_text()
    triples = [line.split("\t") for line in text.splitlines()]
    vocabulary = Vocabulary(
        sorted({label for head, _, tail in triples for label in (head, tail)}),
        sorted({relation for _, relation, _ in triples}),
    )
    labels = pa.table(dict(zip(NAMES, map(list, zip(*triples, strict=True)), strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        path.write_text(text)
        ids = pa.table(dict(zip(NAMES, read_triples(path, vocabulary).ids.T, strict=True)))
        writers: dict[str, Callable[[str], object]] = {
            "train.txt": lambda _: None,
            "train.parquet": lambda path: pa.parquet.write_table(labels, path),
            "train.feather": lambda path: pa.feather.write_feather(labels, path),
            "ids.parquet": lambda path: pa.parquet.write_table(ids, path),
        }
        for name, write in writers.items():
            write(str(Path(folder) / name))
            seconds = min(_seconds(Path(folder) / name, vocabulary) for _ in range(RUNS))
            print(f"{name:<14} {len(triples) / seconds:>10,.0f} triples/s")


def _seconds(path: Path, vocabulary: Vocabulary) -> float:
    start = process_time()
    read_triples(path, vocabulary)
    return process_time() - start


if __name__ == "__main__":
    main()
