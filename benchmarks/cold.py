"""A service that may use a quarter of the memory that its index takes on disk, asked while nothing of that is in memory.

    python -m benchmarks.cold                          # 10⁷ triples: half an hour on two cores, 14 GB of disk; as root
    python -m benchmarks.cold --folder FOLDER          # keeps graph and index there, or takes those that it finds

Graph, model and build are those of `benchmarks.growth`. The service runs in a control group of its own, which only root can
make, and is asked 50 questions, one after the other, by the default score. Writes
``benchmarks/results/cold-cpu.json``.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fb15k237 import KGTRACE, RESULTS, machine, post, spread, status, wait_until
from benchmarks.growth import QUERIES, WARM_UP, build, resident, write_input
from benchmarks.synthetic import TRIPLES_AN_ENTITY, Graph, draw, train
from kgtrace_store import IndexRoot

SHARE = 4
"""Times the memory that is allowed, the index is large."""


def main() -> None:
    """Build, and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        queries = prepare(folder, args.triples)
        root = folder / "index"
        with IndexRoot(root).open(verify=False) as generation:
            files = [generation.path / name for name in generation.manifest.files]
        size = sum(file.stat().st_size for file in files)
        found: dict[str, Any] = {"machine": machine(), "triples": args.triples, "bytes": size, "limit": size // SHARE}
        forget(files)
        with control_group(size // SHARE) as group, serving(root, group) as (address, process):
            milliseconds, certified = [], 0
            for triple in queries[-QUERIES:]:
                start = time.perf_counter()
                certified += post(address, triple)["certified"]
                milliseconds.append(1e3 * (time.perf_counter() - start))
            found |= {"milliseconds": spread(milliseconds), "certified": certified, "memory": resident(process)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cold-cpu.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def prepare(folder: Path, count: int) -> np.ndarray:
    """Build the index unless it is there; return test triples."""
    graph = draw(count + WARM_UP + QUERIES, count // TRIPLES_AN_ENTITY, seed=0)
    if not (folder / "index" / "CURRENT").exists():
        training = Graph(graph.triples[:count], graph.entities, graph.relations)
        torch.save(train(training, seed=0), folder / "model.pt")
        write_input(folder, training)
        print(json.dumps(build(folder)), flush=True)
    return graph.triples[count:].astype(np.int64)


def forget(files: list[Path]) -> None:
    """Take files out of the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """Make a control group whose processes, and the pages of files that they read, have so many bytes of memory."""
    base = Path("/sys/fs/cgroup")
    unified = (base / "cgroup.controllers").exists()
    group = (base if unified else base / "memory") / f"kgtrace-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def within(group: Path, command: list[str | Path]) -> list[str | Path]:
    """Return a command that runs another one in a control group, from its first page of memory on."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', group / "cgroup.procs", *command]


@contextmanager
def serving(root: Path, group: Path) -> Iterator[tuple[str, int]]:
    """Serve an index from within a control group; yield address and process."""
    command = [KGTRACE, "serve", "--index", root, "--port", "0", "--device", "cpu"]
    service = subprocess.Popen(within(group, command), stdout=subprocess.PIPE, text=True)
    try:
        line = service.stdout.readline() if service.stdout else ""
        address = line.split(" at ")[1].split()[0]
        wait_until(lambda: status(f"{address}/readyz") == 200, seconds=600)
        yield address, service.pid
    finally:
        service.terminate()
        service.wait(60)


if __name__ == "__main__":
    main()
