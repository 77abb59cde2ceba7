"""Models other than ConvE, trained and indexed: what it costs, and how much of the index a certified answer looks at.

    python -m benchmarks.models                            # five models on CoDEx-S; about half an hour on two cores
    python -m benchmarks.models --models TransE --epochs 2

Trains with PyKEEN on the data set in the folder in KGTRACE_SHARED, with each model's own default loss, and explains with
`bce`. Writes ``benchmarks/results/NAME.json`` and prints a table.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fb15k237 import RESULTS, SHARED, TOP_K, machine
from benchmarks.losses import measure
from kgtrace_indexer import BuildConfig, read_model, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples

MODELS: dict[str, dict[str, Any]] = {
    "TransE": {"embedding_dim": 200},
    "RotatE": {"embedding_dim": 200},
    "DistMult": {"embedding_dim": 200},
    "ComplEx": {"embedding_dim": 200},
    "TuckER": {"embedding_dim": 64, "relation_dim": 32},
}
"""By PyKEEN's class names, with their sizes."""


def main() -> None:
    """Train, build and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="CoDEx-S")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--checked", type=int, default=20, help="compared with the full scan (default: %(default)s)")
    parser.add_argument("--name", default="models-cpu")
    args = parser.parse_args()
    found = {
        "machine": machine(), "dataset": args.dataset, "epochs": args.epochs, "queries": args.queries, "top_k": TOP_K,
        "models": {},
    }  # fmt: skip
    for name in args.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            mrr = train(name, SHARED / "data" / args.dataset, folder, args.epochs)
            vocabulary, table = read_training_folder(folder / "training_triples")
            test = read_triples(SHARED / "data" / args.dataset / "test.txt", vocabulary, skip_unknown=True).ids
            queries = test[np.random.default_rng(0).choice(len(test), args.queries, replace=False)].astype(np.int64)
            measured = measure(
                read_model(folder),
                vocabulary,
                table,
                BuildConfig(loss="bce", precondition="none"),
                queries,
                args.checked,
            )
        found["models"][name] = {**MODELS[name], "mrr": mrr, "triples": len(table.ids), **measured}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(row(name, found["models"][name]), flush=True)


def train(name: str, data: Path, folder: Path, epochs: int) -> float:
    """Train a model, without inverse triples, save it as PyKEEN does, and return its filtered MRR on the test triples."""
    from pykeen.pipeline import pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyKEEN's own options
        result = pipeline(
            training=str(data / "train.txt"), testing=str(data / "test.txt"), model=name, model_kwargs=MODELS[name],
            training_loop="slcwa", optimizer="adam", optimizer_kwargs={"lr": 0.003}, random_seed=0, device="cpu",
            training_kwargs={"num_epochs": epochs, "batch_size": 512, "use_tqdm": False},
            evaluation_kwargs={"use_tqdm": False},
        )  # fmt: skip
    result.save_to_directory(str(folder))
    return float(result.get_metric("mrr"))


def row(name: str, found: dict[str, Any]) -> str:
    """Return a row of the table in the documentation."""

    def shown(measure: str) -> str:
        return f"{found[measure]['median']:,.0f} / {found[measure]['90%']:,.0f}"

    return (
        f"| {name} | {found['mrr']:.2f} | {found['triples_per_cpu_second']:,.0f} | {found['bytes_on_disk'] / 1e6:,.0f} MB "
        f"| {found['certified']:.0%} | {shown('candidates')} | {shown('exact_terms')} "
        f"| {shown('query_cpu_milliseconds')} | {found['equal_to_exact']} |"
    )


if __name__ == "__main__":
    main()
