"""Linear datamodelling score: do influences say what training on a random half of the triples will do to a prediction?

    python -m benchmarks.truth.lds                      # UMLS, Kinships and CoDEx-S; hours on two cores
    python -m benchmarks.truth.lds --graphs UMLS --halves 50
    python -m benchmarks.truth.lds --write-only         # only tables and pictures again

A method's scores of the training triples in a half are summed, and compared over all halves with the logit, and the
log-probability among all tails, that the models trained on them give the test triple: Spearman's correlation, averaged
over test triples (Ilyas et al., 2022, https://arxiv.org/abs/2202.00622; Park et al., 2023,
https://arxiv.org/abs/2303.14186). Every half is trained with several seeds; their mean is what happened, and how well
models of one seed foretell those of another says how much of it could be foretold at all.

What was trained is kept in ``.bench/truth``, so that an interrupted run goes on. Writes
``benchmarks/results/lds-GRAPH-cpu.json``, the table in ``docs/truth.md`` and its picture.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fb15k237 import RESULTS, machine
from benchmarks.pages import DOCS, replace
from benchmarks.truth.graphs import GRAPHS, Graph, read_graph
from benchmarks.truth.retraining import OUTCOMES, Job, retrain
from benchmarks.truth.scores import same_pair, shared_entities, similar_embeddings
from benchmarks.truth.statistics import mean, spearman
from benchmarks.truth.whole import Explained, Whole

COMPARED = OUTCOMES[:2]
LOSSES = ("bce", "removal", "bce-1vsall", "bce-kvsall", "ce-1vsall")
DAMPINGS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""σ² in units of the mean ‖g‖²."""
RANKS = (64, 256)
TRAK_DIMS = (512, 2048)
COUNT = "same (h, r) or (r, t)"


def main() -> None:
    """Train what is missing, score, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--halves", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--write-only", action="store_true")
    args = parser.parse_args()
    for name in args.graphs if not args.write_only else ():
        found = measure(name, args.halves, args.seeds, args.tests)
        result(name).write_text(json.dumps(found, indent=2) + "\n")
    all_found = {name: json.loads(result(name).read_text()) for name in GRAPHS if result(name).exists()}
    print(table(all_found))
    replace(DOCS / "truth.md", "lds", table(all_found))
    draw(all_found, DOCS / "images" / "lds.svg")


def result(name: str) -> Path:
    """Return where a graph's figures are."""
    return RESULTS / f"lds-{name.lower()}-cpu.json"


def measure(name: str, halves: int, seeds: int, tests: int) -> dict[str, Any]:
    """Train on halves of a graph, and correlate."""
    graph = read_graph(name)
    whole = Whole(name, graph)
    test = np.random.default_rng(0).permutation(graph.test)[:tests]
    masks = np.stack([half_of(graph, half) for half in range(halves)])  # (m, n)
    start = time.perf_counter()
    jobs = [
        Job(graph, whole.recipe, mask, seed, test, whole.folder / f"half-{half}-seed-{seed}.npy")
        for seed in range(seeds)
        for half, mask in enumerate(masks)
    ]
    happened = np.stack(retrain(jobs)).reshape(seeds, halves, -1, len(test))
    found: dict[str, Any] = {
        "machine": machine(), "recipe": asdict(whole.recipe), "triples": len(graph.train), "halves": halves,
        "seeds": seeds, "tests": len(test), "mrr": whole.mrr(), "training_seconds": time.perf_counter() - start,
    }  # fmt: skip
    average = happened.mean(0)  # (m, 3, q)
    correlations = {
        title: [spearman(masks.astype(np.float64) @ score(), average[:, i]) for i in range(len(COMPARED))]
        for title, score in methods(Explained(whole, test)).items()
    }
    if seeds > 1:
        others = (happened.sum(0) - happened) / (seeds - 1)
        correlations["other seeds, same halves"] = [
            np.mean([spearman(a[:, i], b[:, i]) for a, b in zip(happened, others, strict=True)], 0)
            for i in range(len(COMPARED))
        ]
    found["rows"] = {
        title: {
            outcome: {**asdict(mean(each)), "beyond_count": asdict(mean(each - count))}
            for outcome, each, count in zip(COMPARED, row, correlations[COUNT], strict=True)
        }
        for title, row in correlations.items()
    }
    return found


def half_of(graph: Graph, half: int) -> np.ndarray:
    """Return which training triples are in a half, (n,) bool."""
    count = len(graph.train)
    return np.random.default_rng([1, half]).permutation(count) < count // 2


def methods(explained: Explained) -> dict[str, Callable[[], np.ndarray]]:
    """Return all methods by title."""
    found: dict[str, Callable[[], np.ndarray]] = {}
    for loss in LOSSES:
        for directions in ("forward", "both"):
            found[f"{loss}, {directions}"] = lambda loss=loss, directions=directions: (
                explained.influences(loss, directions=directions).of
            )
    found["removal, forward, test sides both"] = lambda: (
        explained.influences("removal", directions="both", sides=("tail", "head")).of
    )
    for loss in ("bce", "removal"):
        found[f"{loss}, forward, cosine"] = lambda loss=loss: explained.influences(loss).cosine()
    for layers in ("last:1", "last:2"):
        found[f"removal, forward, {layers}"] = lambda layers=layers: (
            explained.influences("removal", layers=(layers,)).of
        )
    found["removal, forward, 4 checkpoints"] = lambda: explained.influences("removal", explained.whole.checkpoints).of
    for damping in DAMPINGS:
        found[f"Fisher, σ² = {damping:g}"] = lambda damping=damping: explained.fisher.scores(
            explained.removal.of, damping
        )
    for rank in RANKS:
        for damping in DAMPINGS:
            found[f"Fisher, {rank} directions, σ² = {damping:g}"] = lambda rank=rank, damping=damping: (
                explained.fisher.scores(explained.removal.of, damping, rank)
            )
    for dense, title in ((True, "Fisher by blocks"), (False, "Fisher of embedding rows alone")):
        for damping in DAMPINGS:
            found[f"{title}, σ² = {damping:g}"] = lambda damping=damping, dense=dense: explained.blocks.scores(
                damping, dense=dense
            )
    for dim in TRAK_DIMS:
        found[f"TRAK (traker), {dim}"] = lambda dim=dim: explained.trak(dim)
    found["embeddings alike"] = lambda: similar_embeddings(explained.whole.model, explained.graph, explained.test)
    found["shared entities"] = lambda: shared_entities(explained.graph, explained.test)
    found[COUNT] = lambda: same_pair(explained.graph, explained.test)
    found["random"] = lambda: np.random.default_rng(2).standard_normal(
        (len(explained.graph.train), len(explained.test))
    )
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row for each method, a column for each graph and outcome."""
    titles = list(dict.fromkeys(title for each in found.values() for title in each["rows"]))
    head = [f"{name}, {outcome}" for name in found for outcome in COMPARED]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for title in titles:
        cells = [cell(each["rows"].get(title, {}).get(outcome)) for each in found.values() for outcome in COMPARED]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(found: Mapping[str, float] | None) -> str:
    """Return a mean with its interval."""
    return "" if found is None else f"{found['mean']:.2f} ({found['low']:.2f}…{found['high']:.2f})"


def draw(found: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw the correlations with the logit."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "kgtrace", "font.size": 8})
    titles = list(dict.fromkeys(title for each in found.values() for title in each["rows"]))
    figure, axes = plt.subplots(1, len(found), sharey=True, squeeze=False, layout="constrained",
                                figsize=(3.4 * len(found) + 2, 0.2 * len(titles) + 1))  # fmt: skip
    for axis, (name, each) in zip(axes[0], found.items(), strict=True):
        for place, title in enumerate(titles):
            if (row := each["rows"].get(title)) is not None:
                value = row["logit"]
                error = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
                color = "C1" if title == COUNT else "C0"
                axis.errorbar(value["mean"], place, xerr=error, fmt="o", markersize=3, color=color)
        axis.axvline(each["rows"][COUNT]["logit"]["mean"], color="C1", linewidth=0.6)
        axis.set_title(name)
        axis.set_xlabel("Spearman, logit")
    axes[0][0].set_yticks(range(len(titles)), titles)
    axes[0][0].invert_yaxis()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
