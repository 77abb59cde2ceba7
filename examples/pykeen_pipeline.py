"""Train a model with PyKEEN, index it with ``kgtrace build``, and explain predictions with ``kgtrace query``.

    python examples/pykeen_pipeline.py --folder nations --epochs 20

Nations is a small knowledge graph of relations between countries; it is in PyKEEN's wheel. Put your own data set in its
place: everything after the training stays as it is. Needs the extra ``pykeen``.
"""

import argparse
import subprocess
from pathlib import Path

from pykeen.datasets import Nations
from pykeen.pipeline import pipeline


def train(folder: Path, epochs: int) -> None:
    """Train a ConvE, and save it with its training triples."""
    result = pipeline(
        dataset=Nations(create_inverse_triples=True),
        model="ConvE",
        model_kwargs={"embedding_dim": 32, "output_channels": 8},
        training_loop="lcwa",
        training_kwargs={"num_epochs": epochs, "batch_size": 128},
        optimizer_kwargs={"lr": 0.01},
        evaluation_kwargs={"batch_size": 64},
        device="cpu",
        random_seed=0,
    )
    result.save_to_directory(folder)
    rank = result.metric_results.get_metric("both.realistic.inverse_harmonic_mean_rank")
    print(f"trained for {epochs} epochs: mean reciprocal rank of the test triples {rank:.2f}")


def main() -> None:
    """Train, index, ask."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("nations"), help="for model and index (default: nations)")
    parser.add_argument("--epochs", type=int, default=20, help="of training (default: 20)")
    args = parser.parse_args()
    model, index = args.folder / "model", args.folder / "index"

    train(model, args.epochs)
    subprocess.run(["kgtrace", "build", "--model", model, "--index", index], check=True)
    question = ["--triple", "egypt", "embassy", "uk", "--top-k", "5"]
    subprocess.run(["kgtrace", "query", "--index", index, *question], check=True)


if __name__ == "__main__":
    main()
