"""Every kind of loss on one trained model: what it costs to index, and how much of the index a certified answer looks at.

    python -m benchmarks.losses              # a sample of FB15k-237's training triples; about 10 minutes on two cores
    python -m benchmarks.losses --triples 0  # all of them
    python -m benchmarks.losses --dataset CoDEx-S --model conve-codex-s --losses bce ce-1vsall

Reads models and data sets from the folder in KGTRACE_SHARED. Writes ``benchmarks/results/NAME.json`` and prints a table.
Seconds are of processor time, over all cores, which other work on the machine stretches less than the clock's.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fb15k237 import RESULTS, SHARED, machine
from kgtrace_indexer import (
    BuildConfig,
    ModelFile,
    TripleTable,
    build,
    open_index,
    read_model,
    read_training_folder,
)
from kgtrace_indexer.gradients.losses import ONE_TO_ALL
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store import Vocabulary

TOP_K = 10
LABEL_SMOOTHING = 0.1
"""What the models were trained with."""
_BATCH = 256
"""Triples encoded together."""


def main() -> None:
    """Build and ask an index for each loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="FB15k-237")
    parser.add_argument("--model", default="conve-fb15k-237")
    parser.add_argument("--losses", nargs="+", default=["bce", *ONE_TO_ALL])
    parser.add_argument(
        "--triples", type=int, default=8000, help="training triples drawn; 0: all (default: %(default)s)"
    )
    parser.add_argument("--landmarks", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument(
        "--checked", type=int, default=4, help="queries compared with the full scan (default: %(default)s)"
    )
    parser.add_argument("--name", default="losses-cpu")
    args = parser.parse_args()
    folder = SHARED / "models" / args.model
    vocabulary, table = read_training_folder(folder / "training_triples")
    if args.triples:
        rows = np.sort(np.random.default_rng(0).choice(len(table.ids), args.triples, replace=False))
        table = TripleTable(table.ids[rows], np.arange(len(rows)), 0)
    test = read_triples(SHARED / "data" / args.dataset / "test.txt", vocabulary, skip_unknown=True).ids
    queries = test[np.random.default_rng(0).choice(len(test), args.queries, replace=False)].astype(np.int64)
    found = {
        "machine": machine(), "dataset": args.dataset, "model": args.model, "triples": len(table.ids),
        "landmarks": args.landmarks, "top_k": TOP_K, "losses": {},
    }  # fmt: skip
    for loss in args.losses:
        config = BuildConfig(
            batch_size=_BATCH,
            loss=loss,
            precondition="none",
            label_smoothing=LABEL_SMOOTHING if loss in ONE_TO_ALL else 0.0,
            landmarks=args.landmarks,
        )
        found["losses"][loss] = measure(read_model(folder), vocabulary, table, config, queries, args.checked)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(row(loss, found["losses"][loss]), flush=True)


def measure(
    model: ModelFile, vocabulary: Vocabulary, table: TripleTable, config: BuildConfig, queries: np.ndarray, checked: int
) -> dict[str, Any]:
    """Build an index, ask it, and compare some answers with the full scan."""
    laps: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as root:
        report = build(
            Path(root), model, vocabulary, table, config,
            progress=lambda stage, done, total: laps.append((stage, time.process_time())),
        )  # fmt: skip
        attributor = open_index(Path(root), device="cpu")
        answers, seconds = [], []
        for query in queries:
            start = time.process_time()
            answers += attributor.query(query[None], top_k=TOP_K).attributions
            seconds.append(time.process_time() - start)
        exact = attributor.query(queries[:checked], top_k=TOP_K, exact=True).attributions
    equal = [
        np.allclose(a.influence, b.influence, rtol=1e-4, atol=1e-6 * abs(b.influence).max())
        for a, b in zip(answers, exact, strict=False)
    ]
    batches = [at for stage, at in laps if stage == "gradients"]
    after_first = report.triples - _BATCH  # what the first lap cannot time
    return {
        "bytes_on_disk": report.bytes,
        "build_wall_seconds": report.seconds,
        "triples_per_cpu_second": after_first / (batches[-1] - batches[0]) if len(batches) > 1 else None,
        "certified": float(np.mean([a.certified for a in answers])),
        "equal_to_exact": f"{sum(equal)} of {len(equal)}",
        "candidates": quantiles([a.candidates for a in answers]),
        "exact_terms": quantiles([a.exact_terms for a in answers]),
        "query_cpu_milliseconds": quantiles([1e3 * s for s in seconds]),
    }


def quantiles(values: list[Any]) -> dict[str, float]:
    """Return median, 90 % quantile and maximum."""
    return {"median": float(np.median(values)), "90%": float(np.quantile(values, 0.9)), "max": float(max(values))}


def row(loss: str, found: dict[str, Any]) -> str:
    """Return a row of the table in the documentation."""

    def shown(name: str) -> str:
        return f"{found[name]['median']:,.0f} / {found[name]['90%']:,.0f}"

    speed = found["triples_per_cpu_second"]
    return (
        f"| {loss} | {'?' if speed is None else format(speed, ',.0f')} | {found['bytes_on_disk'] / 1e6:,.0f} MB "
        f"| {found['certified']:.0%} | {shown('candidates')} | {shown('exact_terms')} "
        f"| {shown('query_cpu_milliseconds')} | {found['equal_to_exact']} |"
    )


if __name__ == "__main__":
    main()
