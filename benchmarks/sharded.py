"""An index in one place against the same index split into shards.

    python -m benchmarks.sharded                     # ten minutes on two cores; needs 5 GB of disk under --folder
    python -m benchmarks.sharded --triples 1000000

The graph and model of `benchmarks.growth`, indexed whole and with ``--shard-size`` N / 8. Both answer the same queries, one
at a time, on one thread. Writes ``benchmarks/results/sharded-cpu.json`` and the table of ``docs/scale.md``.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fb15k237 import RESULTS, SCORES, machine
from benchmarks.growth import QUERIES, WARM_UP, ask, build, write_input
from benchmarks.pages import DOCS, replace
from benchmarks.synthetic import TRIPLES_AN_ENTITY, Graph, draw, train

SHARDS = 8


def main() -> None:
    """Build, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=4_000_000, metavar="N")
    parser.add_argument("--folder", type=Path, help="where indexes are built (default: the temporary folder)")
    parser.add_argument("--write-only", action="store_true", help="only the table again")
    args = parser.parse_args()
    path = RESULTS / "sharded-cpu.json"
    if not args.write_only:
        path.write_text(json.dumps(compare(args.triples, args.folder), indent=2) + "\n")
    text = table(json.loads(path.read_text()))
    print(text)
    replace(DOCS / "scale.md", "sharded", text)


def compare(count: int, scratch: Path | None) -> dict[str, Any]:
    """Measure an index of `count` training triples whole, and split."""
    found: dict[str, Any] = {"machine": machine(), "triples": count, "shards": SHARDS}
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        graph = draw(count + WARM_UP + QUERIES, count // TRIPLES_AN_ENTITY, seed=0)
        training = Graph(graph.triples[:count], graph.entities, graph.relations)
        queries = graph.triples[count:].astype(np.int64)
        torch.save(train(training, seed=0), folder / "model.pt")
        write_input(folder, training)
        del graph, training
        for kind, options in {"whole": [], "split": ["--shard-size", str(-(-count // SHARDS))]}.items():
            found[kind] = {"build": build(folder, *options)}
            with multiprocessing.get_context("spawn").Pool(1) as process:
                found[kind]["query"] = process.apply(ask, (folder / "index", queries))
            print(kind, json.dumps(found[kind]), flush=True)
            shutil.rmtree(folder / "index")
    return found


def table(found: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    lines = ["| | whole | in shards |", "|---|---|---|"]

    def row(title: str, *cells: str) -> None:
        lines.append(f"| {title} | {' | '.join(cells)} |")

    each = [found["whole"], found["split"]]
    row("files that are searched", "3", f"3 × {found['shards']}")
    row("build", *(f"{one['build']['seconds']:,.0f} s" for one in each))
    row("own memory of the build", *(_mega(one["build"]["peak_own_bytes"]) for one in each))
    row(
        "disk (at its peak)",
        *(f"{_mega(b['bytes_on_disk'])} ({_mega(b['peak_bytes_on_disk'])})" for b in (o["build"] for o in each)),
    )
    for score, name in zip(SCORES, ("the default score", "TracIn"), strict=True):
        row(f"query by {name}, on one thread", *(_query(one["query"][score]) for one in each))
    return "\n".join(lines)


def _query(asked: dict[str, Any]) -> str:
    ms = asked["milliseconds"]
    return f"{ms['median']:.0f} ms (90 %: {ms['p90']:.0f} ms), {asked['certified']} of {asked['queries']} certified"


def _mega(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
