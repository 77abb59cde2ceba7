"""An index in one place against the same index split into shards, and one that is larger than memory.

    python -m benchmarks.sharded                     # a quarter of an hour on two cores; needs 11 GB of disk under --folder
    python -m benchmarks.sharded --triples 1000000

The graph and model of `benchmarks.growth`, indexed whole and with ``--shard-size`` N / 8. Both answer the same queries one
at a time, on one thread: with all memory, and in a process whose memory, pages of mapped files included, a control group
limits to a quarter of the index; that needs the right to make one and an index of 4 GB, and is left out without. Files are
out of the page cache before each. Writes ``benchmarks/results/sharded-cpu.json`` and the table of ``docs/scale.md``.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fb15k237 import RESULTS, machine
from benchmarks.growth import QUERIES, WARM_UP, ask, build, write_input
from benchmarks.pages import DOCS, replace
from benchmarks.synthetic import TRIPLES_AN_ENTITY, Graph, draw, train

SHARDS = 8
_LEAST = 1_000_000_000
"""Bytes of memory: what a process needs besides files."""
_CONTROL = Path("/sys/fs/cgroup/memory/kgtrace-benchmark"), Path("/sys/fs/cgroup/kgtrace-benchmark")
_LIMIT = "memory.limit_in_bytes", "memory.max"
"""Of control groups of version 1 and 2."""


def main() -> None:
    """Build, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=8_000_000, metavar="N")
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
            built = build(folder, *options)
            found[kind] = {"build": built}
            ways = {"memory enough": None}
            if built["bytes_on_disk"] // 4 >= _LEAST:
                ways["little memory"] = built["bytes_on_disk"] // 4
            for title, limit in ways.items():
                forget(folder / "index")
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    found[kind][title] = process.apply(asked, (folder / "index", queries, limit))
                print(kind, title, json.dumps(found[kind][title]), flush=True)
            shutil.rmtree(folder / "index")
    return found


def asked(root: Path, queries: np.ndarray, memory: int | None) -> dict[str, Any] | None:
    """Ask in this process; None where its memory cannot be limited."""
    with limited(memory) as possible:
        return ask(root, queries, verify=False) | {"limit": memory} if possible else None


@contextmanager
def limited(memory: int | None) -> Iterator[bool]:
    """Limit the memory of this process, page cache included; yield whether that was possible."""
    groups = [(group, limit) for group, limit in zip(_CONTROL, _LIMIT, strict=True) if group.parent.is_dir()]
    if memory is None or not groups:
        yield memory is None
        return
    group, limit = groups[0]
    try:
        group.mkdir(exist_ok=True)
        (group / limit).write_text(str(memory))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield False
        return
    yield True
    (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()


def forget(folder: Path) -> None:
    """Take files out of the page cache."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
    for title in ("memory enough", "little memory"):
        if all(one.get(title) for one in each):
            limit = each[0][title]["limit"]
            shown = f"query, {_mega(limit)} of memory for everything" if limit else "query"
            row(shown, *(_query(one[title]) for one in each))
    return "\n".join(lines)


def _query(asked: dict[str, Any]) -> str:
    ms = asked["milliseconds"]
    return f"{ms['median']:.0f} ms (90 %: {ms['p90']:.0f} ms), {asked['certified']} of {asked['queries']} certified"


def _mega(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
