"""Queries and a build beside other busy processes, with the threads that kgtrace takes by itself and with one thread.

    python -m benchmarks.neighbours                     # about 15 minutes on two cores
    python -m benchmarks.neighbours --index INDEX       # with an index of FB15k-237 that is there already

Quiet, and beside one busy loop for each core. In each case the same work is done in turns as it comes and with
``OMP_NUM_THREADS=1``. Reads models and data sets from the folder in KGTRACE_SHARED. Writes
``benchmarks/results/neighbours-cpu.json`` and the table in ``docs/operations.md``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fb15k237 import KGTRACE, RESULTS, SHARED, machine, post, serving
from benchmarks.pages import replace
from kgtrace_indexer import open_index, read_training_folder, read_triples

WARM_UP = 10
ROUNDS = 3
BUSY = "while True: pass"
THREADS: dict[str, dict[str, str]] = {"as it comes": {}, "one thread": {"OMP_NUM_THREADS": "1"}}
WORK = {"in process": "one query in process", "http": "one query over HTTP", "build": "build of CoDEx-S"}


def main() -> None:
    """Measure, and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="index root of FB15k-237; built if absent")
    parser.add_argument("--queries", type=int, default=40, help="a round")
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)  # what a process of its own does
    args = parser.parse_args()
    if args.ask:
        print(json.dumps(in_process(args.index, args.queries)))
        return
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        index = args.index or folder / "index"
        if args.index is None:
            build("conve-fb15k-237", index)
        found: dict[str, Any] = {"machine": machine(), "queries": args.queries, "rounds": ROUNDS, "seconds": {}}
        for neighbours, context in (("quiet", nullcontext()), ("busy", busy_loops())):
            with context:
                found["seconds"][neighbours] = measure(index, folder, args.queries)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "neighbours-cpu.json").write_text(json.dumps(found, indent=2) + "\n")
    replace(Path(__file__).parents[1] / "docs" / "operations.md", "neighbours", table(found["seconds"]))
    print(table(found["seconds"]))


def measure(index: Path, folder: Path, queries: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of each kind of work with each number of threads, measured in turns."""
    seconds: dict[str, dict[str, list[float]]] = {work: {threads: [] for threads in THREADS} for work in WORK}
    for _ in range(ROUNDS):
        for threads, variables in THREADS.items():
            with environment(variables):
                command = [sys.executable, "-m", "benchmarks.neighbours", "--ask", "--index", index]
                printed = subprocess.check_output([*command, "--queries", str(queries)], text=True)
                seconds["in process"][threads] += json.loads(printed)
                with serving(index) as address:
                    for triple in triples(queries):
                        start = time.perf_counter()
                        post(address, triple)
                        seconds["http"][threads].append(time.perf_counter() - start)
                    del seconds["http"][threads][-queries - WARM_UP : -queries]
                start = time.perf_counter()
                build("conve-codex-s", folder / "built")
                seconds["build"][threads].append(time.perf_counter() - start)
    return {
        work: {threads: float(np.median(each)) for threads, each in found.items()} for work, found in seconds.items()
    }


def in_process(index: Path, queries: int) -> list[float]:
    """Return the seconds of queries, without those that warm up."""
    attributor = open_index(index, device="cpu")
    seconds = []
    for triple in triples(queries):
        start = time.perf_counter()
        attributor.query(triple[None])
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def triples(queries: int) -> np.ndarray:
    """Return test triples, (WARM_UP + queries, 3) int64."""
    vocabulary, _ = read_training_folder(SHARED / "models" / "conve-fb15k-237" / "training_triples")
    test = read_triples(SHARED / "data" / "FB15k-237" / "test.txt", vocabulary, skip_unknown=True).ids
    return np.random.default_rng(0).permutation(test)[: WARM_UP + queries].astype(np.int64)


def build(model: str, index: Path) -> None:
    """Build as a user does, in a process of its own."""
    command = [KGTRACE, "build", "--model", SHARED / "models" / model, "--index", index, "--device", "cpu", "--fresh"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def busy_loops() -> Iterator[None]:
    """Keep every core busy with a process that computes and never waits."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Let processes that are started have these variables, too."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def table(seconds: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table of the page."""
    lines = [
        "| | quiet: as it comes | one thread | ratio | beside busy loops: as it comes | one thread | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for work, name in WORK.items():
        cells = []
        for found in (seconds["quiet"][work], seconds["busy"][work]):
            comes, single = found["as it comes"], found["one thread"]
            cells += [spelled(comes), spelled(single), f"{comes / single:.2f} ×"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spelled(seconds: float) -> str:
    """Return milliseconds, or seconds of what takes some."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
