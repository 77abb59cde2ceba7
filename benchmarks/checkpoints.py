"""Builds that sum over more and more checkpoints: seconds, bytes and peak memory.

    python -m benchmarks.checkpoints                       # CoDEx-S; about four minutes on two cores
    python -m benchmarks.checkpoints --model conve-fb15k-237

Reads models from the folder in KGTRACE_SHARED; checkpoints are repeated where there are fewer. Writes
``benchmarks/results/NAME.json`` and prints a table.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.fb15k237 import KGTRACE, RESULTS, SHARED, TRACIN_OPTIONS, machine

COUNTS = (1, 2, 4, 8)


def main() -> None:
    """Build with each number of checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="conve-codex-s")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--name", default="checkpoints-cpu")
    args = parser.parse_args()
    folder = SHARED / "models" / args.model
    saved = sorted((folder / "checkpoints").iterdir())
    found: dict[str, Any] = {"machine": machine(), "model": args.model, "builds": {}}
    print("| checkpoints | seconds | MB on disk | MB of memory at most |\n|---|---|---|---|")
    for count in args.counts:
        build = found["builds"][count] = measure(folder, list(islice(cycle(saved), count)))
        print(
            f"| {count} | {build['seconds']:.0f} | {build['bytes_on_disk'] / 1e6:,.0f} "
            f"| {build['peak_resident_bytes'] / 1e6:,.0f} |",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")


def measure(folder: Path, checkpoints: list[Path]) -> dict[str, Any]:
    """Build as a user does, in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        build = subprocess.Popen(
            [KGTRACE, "build", "--model", folder, "--index", root, "--device", "cpu", "--json", *TRACIN_OPTIONS,
             "--checkpoints", *checkpoints, "--learning-rates", "0.001"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        report = json.loads(build.stdout.read()) if build.stdout else {}
        _, _, used = os.wait4(build.pid, 0)
    return {
        "seconds": time.perf_counter() - start,
        "bytes_on_disk": report["bytes"],
        "peak_resident_bytes": used.ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
