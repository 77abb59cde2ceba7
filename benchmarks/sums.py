"""Sums of influence by group: how far estimates and their bounds are from the exact sums.

    python -m benchmarks.sums --index INDEX --test test.txt

Computes the influence of every training triple on a few test triples once, and prints a line for each kind of group.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from kgtrace_indexer import Attributor, Group, open_index, read_triples

TOP_K = 5
BLOCK = 2048
KINDS: tuple[Group, ...] = ("relation", "head", "tail")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=20)
    args = parser.parse_args()
    attributor = open_index(args.index, device="cpu")
    test = read_triples(args.test, attributor.vocabulary, skip_unknown=True).ids
    queries = test[np.random.default_rng(0).choice(len(test), args.queries, replace=False)].astype(np.int64)
    begun = time.perf_counter()
    blocks = np.array_split(np.arange(len(attributor)), -(-len(attributor) // BLOCK))
    influences = np.concatenate([attributor.exact_influences(queries, rows, score="tracin") for rows in blocks]).astype(
        np.float64
    )
    print(f"one scan for {args.queries} test triples: {time.perf_counter() - begun:.1f} s")
    print(f"\n| by | estimate | same top {TOP_K} | certified | distance / sum | error / sum | beyond the error |")
    print("|---|---|---|---|---|---|---|")
    for by in KINDS:
        print(line(attributor, queries, influences, by))


def line(attributor: Attributor, queries: np.ndarray, influences: np.ndarray, by: Group) -> str:
    """Compare the first groups of each test triple with the exact ones."""
    column = np.asarray(attributor.training.triples[:, ("head", "relation", "tail").index(by)])
    seconds, overlap, certified, distances, errors = [], [], 0, [], []
    for triple, influence in zip(queries, influences.T, strict=True):
        begun = time.perf_counter()
        found = attributor.aggregate(triple, by, top_k=TOP_K, score="tracin")
        seconds.append(time.perf_counter() - begun)
        sums = np.bincount(column, influence)
        best = np.argsort(-np.where(np.bincount(column) > 0, sums, -np.inf))[:TOP_K]
        overlap.append(len(np.intersect1d(best, found.groups)) / TOP_K)
        certified += found.certified
        distances.append(np.abs(found.sums.sums - sums[found.groups]) / np.abs(sums[found.groups]))
        errors.append(found.sums.errors / np.abs(sums[found.groups]))
    distance, error = np.concatenate(distances), np.concatenate(errors)
    return (
        f"| {by} | {1000 * np.median(seconds):.0f} ms | {np.mean(overlap):.0%} | {certified} of {len(queries)} "
        f"| median {np.median(distance):.1%}, 90 % {np.quantile(distance, 0.9):.1%} "
        f"| median {np.median(error):.0%} | {(distance > error).sum()} of {len(distance)} |"
    )


if __name__ == "__main__":
    main()
