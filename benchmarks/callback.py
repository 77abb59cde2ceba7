"""What `IndexCallback` costs a training with PyKEEN that keeps checkpoints, and how long the index then takes.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.callback  # about a minute and a half on two cores

Reads CoDEx-S from the folder in KGTRACE_SHARED. Writes ``benchmarks/results/callback-cpu.json`` and prints a table.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

from pykeen.models import model_resolver
from pykeen.training import training_loop_resolver
from pykeen.triples import TriplesFactory

from benchmarks.fb15k237 import RESULTS, SHARED, machine
from kgtrace import IndexCallback

TRAININGS = {"ComplEx": "lcwa", "TransE": "slcwa"}
"""Training loop by model."""

DIMENSIONS = 200
BATCH = 256


def main() -> None:
    """Train each model, with a checkpoint every few epochs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--name", default="callback-cpu")
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "epochs": args.epochs, "every": args.every, "trainings": {}}
    print("| training | seconds | with its checkpoints | overhead | build |\n|---|---|---|---|---|")
    for model in args.models:
        row = found["trainings"][model] = measure(model, args.epochs, args.every)
        kept = row["training_seconds"] + row["callback_seconds"]
        print(
            f"| {model}, {args.epochs} epochs | {row['training_seconds']:.1f} | {kept:.1f} | {row['overhead']:.1%} "
            f"| {row['build_seconds']:.1f} s |",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")


def measure(name: str, epochs: int, every: int) -> dict[str, float]:
    """Train a model; the callback's seconds are those spent in its methods."""
    triples = TriplesFactory.from_path(SHARED / "data" / "CoDEx-S" / "train.txt", create_inverse_triples=True)
    model = model_resolver.make(name, triples_factory=triples, embedding_dim=DIMENSIONS, random_seed=0)
    loop = training_loop_resolver.make(TRAININGS[name], model=model, triples_factory=triples, optimizer="adam")
    with tempfile.TemporaryDirectory() as root:
        callback = IndexCallback(root, triples, every=every)
        spent = {method: timed(callback, method) for method in ("register_training_loop", "post_epoch", "post_train")}
        start = time.perf_counter()
        loop.train(triples, num_epochs=epochs, batch_size=BATCH, callbacks=callback, use_tqdm=False)
        total = time.perf_counter() - start
    build = sum(spent["post_train"])
    kept = sum(spent["register_training_loop"]) + sum(spent["post_epoch"])
    training = total - kept - build
    return {
        "training_seconds": training,
        "callback_seconds": kept,
        "overhead": kept / training,
        "build_seconds": build,
    }


def timed(callback: IndexCallback, name: str) -> list[float]:
    """Note the seconds of each call of a method, in the list returned."""
    method: Callable[..., None] = getattr(callback, name)
    seconds: list[float] = []

    def call(*arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        method(*arguments, **options)
        seconds.append(time.perf_counter() - start)

    setattr(callback, name, call)
    return seconds


if __name__ == "__main__":
    main()
