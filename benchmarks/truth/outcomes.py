"""Score any method against published outcomes of retraining, without training anything.

    python -m benchmarks.truth.outcomes UMLS-ComplEx scores.npy

`scores.npy` holds what a method expects of each training triple for each test triple, (n, q) numbers, large where the
training triple speaks for the test triple, in the order that `Outcomes` says. Prints the
linear datamodelling score, Spearman's correlation of the sums over each half's triples with what the models trained on
the halves say, averaged over test triples, and its share of the ceiling: no method can agree better with the mean of k
models than the root of its reliability, k r / (1 + (k − 1) r) by Spearman and Brown, where models of two seeds agree by r.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.truth.statistics import mean, spearman

FOLDER = Path(__file__).parents[2] / "releases" / "retraining"
COMPARED = ("logit", "log-probability")


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What models that were trained on parts of a graph say of test triples."""

    triples: str
    """sha256 of the graph's training triples (n, 3) int64 by id, in their order: that of PyKEEN's ``mapped_triples``."""
    test: np.ndarray
    """(q,) int64: rows of the graph's test triples, in the same sense."""
    kept: np.ndarray
    """(m, n) bool: which training triples are in each part."""
    happened: np.ndarray
    """(seeds, m, 3, q) float32: logit, log-probability among all tails, and filtered rank."""
    recipe: str
    """How they were trained, as JSON; see `benchmarks.truth.training.Recipe`."""

    @classmethod
    def read(cls, name: str) -> "Outcomes":
        """Read what `write` published."""
        with np.load(FOLDER / f"{name}.npz") as arrays:
            kept = np.unpackbits(arrays["kept"], axis=1, count=int(arrays["count"])).astype(bool)
            texts = str(arrays["triples"]), str(arrays["recipe"])
            return cls(texts[0], arrays["test"], kept, arrays["happened"], texts[1])

    @classmethod
    def of_these(
        cls, name: str, triples: str, test: np.ndarray, kept: np.ndarray, recipe: str, seeds: int
    ) -> "Outcomes | None":
        """Return what is published under a name if it is of so many seeds and of all these, else None."""
        if not (FOLDER / f"{name}.npz").exists():
            return None
        found = cls.read(name)
        same = (found.triples, found.recipe, len(found.happened)) == (triples, recipe, seeds)
        return found if same and np.array_equal(found.test, test) and np.array_equal(found.kept, kept) else None

    def write(self, name: str) -> None:
        """Publish under the name of a problem."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        packed = {"kept": np.packbits(self.kept, axis=1), "count": self.kept.shape[1]}
        np.savez_compressed(FOLDER / f"{name}.npz", **{**asdict(self), **packed})

    def ceilings(self) -> list[float]:
        """Return the largest correlation that a method can have with the mean of the seeds, for each of `COMPARED`."""
        return [ceiling(self.happened[:, :, i]) for i in range(len(COMPARED))]

    def correlations(self, score: np.ndarray) -> list[np.ndarray]:
        """Return the correlation of each test triple, (q,), for each of `COMPARED`, of scores (n, q)."""
        expected, average = self.kept.astype(np.float64) @ score, self.happened.mean(0)
        return [spearman(expected, average[:, i]) for i in range(len(COMPARED))]


def ceiling(happened: np.ndarray) -> float:
    """Return the root of the reliability of the mean over seeds of outcomes (seeds, m, q); NaN for one seed."""
    seeds = len(happened)
    pairs = [(a, b) for a in range(seeds) for b in range(a)]
    agreement = np.mean([spearman(happened[a], happened[b]).mean() for a, b in pairs]) if pairs else np.nan
    return float(np.sqrt(np.maximum(seeds * agreement / (1 + (seeds - 1) * agreement), 0)))


def main() -> None:
    """Score a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=sorted(file.stem for file in FOLDER.glob("*.npz")))
    parser.add_argument("scores", type=Path)
    args = parser.parse_args()
    outcomes, score = Outcomes.read(args.problem), np.load(args.scores)
    if score.shape != (wanted := (outcomes.kept.shape[1], len(outcomes.test))):
        parser.error(f"{args.scores} has shape {score.shape}, must be {wanted}")
    found: dict[str, Any] = {}
    for name, each, most in zip(COMPARED, outcomes.correlations(score), outcomes.ceilings(), strict=True):
        found[name] = {**mean(each), "ceiling": most, "share": float(each.mean() / most)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
