"""Do halves flatter a method? The share of what can be foretold when a random tenth of the training triples is missing.

    python -m benchmarks.truth.tenths --problems UMLS-ComplEx

As `share`, with nine tenths in the place of halves: training hardly changes, so chance is most of what happens, and more
seeds are needed. Writes ``benchmarks/results/tenths-PROBLEM-cpu.json``, the tables in ``docs/truth/tenths.md`` and what
happened to ``releases/retraining``.
"""

from typing import Any

import numpy as np

from benchmarks.truth.command import run
from benchmarks.truth.graphs import Graph
from benchmarks.truth.share import compared, shown


def measure(name: str, graph: Graph, *, parts: int, seeds: int, tests: int, models: int) -> dict[str, Any]:
    """Train without tenths of a graph, and correlate."""
    count = len(graph.train)
    kept = np.stack([np.random.default_rng([2, part]).permutation(count) >= count // 10 for part in range(parts)])
    return compared(name, graph, kept, f"{name}-tenths", seeds=seeds, tests=tests, models=models, every=False)


if __name__ == "__main__":
    run(
        __doc__, "tenths", measure, shown,
        page="truth/tenths.md", problems=("UMLS-ComplEx",), parts=50, seeds=8, tests=100, models=4,
    )  # fmt: skip
