"""What the preconditioned score costs: the same queries with it and without, one after the other.

    python -m benchmarks.preconditioned --index INDEX --test test.txt

Test triples are drawn from the file. Every answer is checked against a full scan of as many as ``--checked`` says.
"""

import argparse
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np

from kgtrace_indexer import Attributor, open_index, read_triples
from kgtrace_indexer.answers import Attribution
from kgtrace_indexer.names import Score

WARM_UP = 5


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="lines of head⇥relation⇥tail")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--checked", type=int, default=5)
    args = parser.parse_args()
    attributor = open_index(args.index, device="cpu")
    table = read_triples(args.test, attributor.vocabulary, skip_unknown=True)
    chosen = np.random.default_rng(0).permutation(len(table.ids))[: WARM_UP + args.queries]
    queries = table.ids[chosen].astype(np.int64)
    found: dict[str, list[tuple[float, Attribution]]] = {score: [] for score in get_args(Score)}
    for query in queries:
        for score, rows in found.items():
            start = time.perf_counter()
            (attribution,) = attributor.query(query[None], score=score).attributions
            rows.append((1000 * (time.perf_counter() - start), attribution))
    print("| score | ms: median, 90 %, max | candidates, median | exact influences, median | certified | wrong |")
    print("|---|---|---|---|---|---|")
    for score, rows in found.items():
        print(row(attributor, score, rows[WARM_UP:], args.checked))


def row(attributor: Attributor, score: Any, found: list[tuple[float, Attribution]], checked: int) -> str:
    """Return a line of the table."""
    milliseconds = [each for each, _ in found]
    attributions = [attribution for _, attribution in found]
    queries = np.array([attribution.triple for attribution in attributions[:checked]])
    wanted = attributor.query(queries, score=score, exact=True).attributions
    wrong = sum(
        not np.allclose(a.influence, b.influence, rtol=1e-4) for a, b in zip(attributions, wanted, strict=False)
    )
    return (
        f"| {score} | {np.median(milliseconds):.1f}, {np.quantile(milliseconds, 0.9):.1f}, {max(milliseconds):.0f} "
        f"| {np.median([a.candidates for a in attributions]):,.0f} | {np.median([a.exact_terms for a in attributions]):.0f} "
        f"| {sum(a.certified for a in attributions)} of {len(found)} | {wrong} of {len(wanted)} |"
    )


if __name__ == "__main__":
    main()
