"""What indexes of 10⁸ to 10¹⁰ training triples would cost: arithmetic with what other benchmarks measured.

    python -m benchmarks.costs

Reads ``benchmarks/results/fb15k237-cpu.json`` and ``growth-cpu.json``. Writes the table of ``docs/scale.md``.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from benchmarks.fb15k237 import RESULTS
from benchmarks.growth import MEASURES, exponent, series
from benchmarks.pages import DOCS, replace

SIZES = (10**8, 10**9, 10**10)
GPU_TERMS, GPU_ENCODE, GPU_BUILD = 1.28e6, 0.15e6, 0.018e6
"""Training triples of FB15k-237 (ConvE of 200 dimensions, both directions) a second on an H200, of an earlier version."""
DISK, MEMORY = 7.68e12, 256e9
"""Bytes of a machine."""

FB15K, GROWTH, H200 = "[FB15k-237](../README.md#figures)", "[growth](growth.md)", "an H200, below"


def main() -> None:
    """Compute the table."""
    text = table(*(json.loads((RESULTS / f"{name}-cpu.json").read_text()) for name in ("fb15k237", "growth")))
    print(text)
    replace(DOCS / "scale.md", "costs", text)


def table(real: dict[str, Any], growth: dict[str, Any]) -> str:
    """Return the costs as Markdown, from results of `benchmarks.fb15k237` and `benchmarks.growth`."""
    lines = ["| | constant | measured on | 10⁸ triples | 10⁹ | 10¹⁰ |", "|---|---|---|---|---|---|"]

    def row(title: str, constant: str, where: str, cost: Callable[[int], str]) -> None:
        lines.append(f"| {title} | {constant} | {where} | {' | '.join(map(cost, SIZES))} |")

    def rate(title: str, where: str, per_second: float, unit: str, each: int = 1, on: str = "") -> None:
        hours = each / per_second / 3600
        row(title, f"{_digits(per_second)}/s{on}", where, lambda n: f"{_digits(hours * n)} {unit}")

    def time(title: str, measure: str) -> None:
        """Extrapolate from the largest size by the larger of the two exponents of docs/growth.md."""
        sizes, values = series(growth, MEASURES[measure])
        power = max(exponent(sizes, values), exponent(sizes[-2:], values[-2:]))
        constant = f"{values[-1]:,.1f} ms at {sizes[-1]:,.0f}, N^{power:.2f}"
        row(title, constant, GROWTH, lambda n: _time(values[-1] * (n / sizes[-1]) ** power))

    built, cores = real["build"], real["machine"]["cores"]
    disk = built["bytes_on_disk"] / built["triples"]
    row("disk of the index, and of its build", f"{disk:,.0f} B", FB15K, lambda n: _bytes(disk * n))
    row(
        "machines whose disks hold it",
        f"{_bytes(DISK)} each",
        "the row above",
        lambda n: str(math.ceil(disk * n / DISK)),
    )
    on = f" on {cores} cores"
    gradients = built["triples"] / built["stages"]["gradients"]
    rate("gradients and codes, by workers", FB15K, gradients, "core-hours", cores, on)
    rest = sum(seconds for name, seconds in built["stages"].items() if name != "gradients")
    rate("all else of the build, by the builder alone", FB15K, built["triples"] / rest, "hours", on=on)
    rate("gradients as terms, on a GPU", H200, GPU_TERMS, "GPU-hours")
    rate("... and codes", H200, GPU_ENCODE, "GPU-hours")
    rate("the whole build, with a GPU", H200, GPU_BUILD, "GPU-hours")
    sizes, own = series(growth, MEASURES["own memory of the build, bytes"])
    memory = (own[-1] - own[-2]) / (sizes[-1] - sizes[-2])
    row("the builder's own memory", f"{memory:,.0f} B, entities included", GROWTH, lambda n: _bytes(memory * n))
    time("one query, default score: median", "default score, median ms")
    time("... 90 %", "default score, 90 % ms")
    _, codes = series(growth, MEASURES["search codes, bytes"])
    search = codes[-1] / sizes[-1]
    row("codes that a query by TracIn reads", f"{search:,.0f} B", GROWTH, lambda n: _bytes(search * n))
    row("machines in whose memory they fit", f"{_bytes(MEMORY)} each", "the row above",
        lambda n: str(math.ceil(search * n / MEMORY)))  # fmt: skip
    time("one query, TracIn: median", "TracIn, median ms")
    time("... 90 %", "TracIn, 90 % ms")
    return "\n".join(lines)


def _digits(value: float) -> str:
    """Two digits of a number, or all before the point."""
    return f"{value:.2g}" if value < 100 else f"{float(f'{value:.3g}'):,.0f}"


def _bytes(size: float) -> str:
    return f"{_digits(size / 1e12)} TB" if size >= 1e12 else f"{_digits(size / 1e9)} GB"


def _time(milliseconds: float) -> str:
    return f"{_digits(milliseconds / 1e3)} s" if milliseconds >= 1e3 else f"{_digits(milliseconds)} ms"


if __name__ == "__main__":
    main()
