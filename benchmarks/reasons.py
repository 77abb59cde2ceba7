"""How many of the training triples that answers name get a reason, and what it costs to find it.

    python -m benchmarks.reasons --index INDEX --test test.txt

Test triples are drawn from the file, and answered by the index's own score. A fact is explained unless its reason is
``same-relation`` or ``none``. Prints a table.
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from kgtrace_indexer import open_index, read_triples
from kgtrace_indexer.names import ReasonName

UNEXPLAINED = ("same-relation", "none")


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="lines of head⇥relation⇥tail")
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    attributor = open_index(args.index, device="cpu", verify=False)
    test = read_triples(args.test, attributor.vocabulary, skip_unknown=True).ids.astype(np.int64)
    queries = test[np.random.default_rng(0).choice(len(test), args.queries, replace=False)]
    attributor.reasons.prepare()
    milliseconds: dict[str, list[float]] = {"query": [], "reasons": []}  # of the processor
    kinds: Counter[str] = Counter()
    for query in queries:
        start = time.thread_time()
        (attribution,) = attributor.query(query[None]).attributions
        answered = time.thread_time()
        reasons = [attributor.reasons.of(attribution.triple, (h, r, t)) for h, r, t in attribution.triples.tolist()]
        milliseconds["query"].append(1000 * (answered - start))
        milliseconds["reasons"].append(1000 * (time.thread_time() - answered))
        kinds.update(f"path of {len(reason.path)}" if reason.path else reason.name for reason in reasons)
    explained = 1 - sum(kinds[name] for name in UNEXPLAINED) / kinds.total()
    print("| | |\n|---|---|")
    print(f"| explained, of {kinds.total():,} facts | {explained:.1%} |")
    for name in [*get_args(ReasonName), "path of 2", "path of 3"]:
        if kinds[name]:
            print(f"| {name} | {kinds[name] / kinds.total():.1%} |")
    for name, spent in milliseconds.items():
        median, tail, most = np.median(spent), np.quantile(spent, 0.95), max(spent)
        print(f"| ms of CPU, {name} of a test triple: median, 95 %, max | {median:.2f}, {tail:.2f}, {most:.2f} |")


if __name__ == "__main__":
    main()
