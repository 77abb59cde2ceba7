"""What searches: the same queries answered by FAISS in this process and by Milvus, one after the other.

    milvus-lite server --data-dir milvus --host 127.0.0.1
    python -m benchmarks.engines --index INDEX --test test.txt --milvus-uri http://127.0.0.1:19530

Test triples are drawn from the file, and asked about by either score, as they are, and for the training triples of their
relation alone, which Milvus filters by itself.
"""

import argparse
import time
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from kgtrace_indexer import Restriction, open_index, read_triples
from kgtrace_indexer.answers import Attribution
from kgtrace_indexer.names import Score
from kgtrace_store.milvus import Milvus

WARM_UP = 5


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help="lines of head⇥relation⇥tail")
    parser.add_argument("--milvus-uri", required=True)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--score", choices=get_args(Score), nargs="+", default=get_args(Score), help="(default: both)")
    args = parser.parse_args()
    faiss = open_index(args.index, device="cpu")
    start = time.perf_counter()
    milvus = open_index(args.index, device="cpu", verify=False, milvus=Milvus(args.milvus_uri))
    print(f"{len(faiss):,} training triples, opened with Milvus in {time.perf_counter() - start:.1f} s\n")
    table = read_triples(args.test, faiss.vocabulary, skip_unknown=True)
    chosen = np.random.default_rng(0).permutation(len(table.ids))[: WARM_UP + args.queries]
    print("| engine | score | training triples | ms: median, 90 % | certified | answers as FAISS's |")
    print("|---|---|---|---|---|---|")
    for score, which in product(args.score, ("all", "of its relation")):
        found: dict[str, list[tuple[float, Attribution]]] = {"FAISS": [], "Milvus": []}
        for query in table.ids[chosen].astype(np.int64):
            restriction = Restriction() if which == "all" else Restriction(must={"relation": {int(query[1])}})
            for attributor, rows in zip((faiss, milvus), found.values(), strict=True):
                start = time.perf_counter()
                (answer,) = attributor.query(query[None], restriction=restriction, score=score).attributions
                rows.append((1000 * (time.perf_counter() - start), answer))
        for engine, rows in found.items():
            ms = [each for each, _ in rows[WARM_UP:]]
            same = sum(
                np.array_equal(a.train_index, b.train_index)
                for (_, a), (_, b) in zip(rows[WARM_UP:], found["FAISS"][WARM_UP:], strict=True)
            )
            certified = sum(answer.certified for _, answer in rows[WARM_UP:])
            print(
                f"| {engine} | {score} | {which} | {np.median(ms):.1f}, {np.quantile(ms, 0.9):.1f} "
                f"| {certified} of {len(ms)} | {same} of {len(ms)} |"
            )


if __name__ == "__main__":
    main()
