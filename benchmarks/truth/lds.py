"""Linear datamodelling score: do influences say what training on a random half of the triples will do to a prediction?

    python -m benchmarks.truth.lds                      # all problems; hours on two cores
    python -m benchmarks.truth.lds --problems UMLS --halves 50
    python -m benchmarks.truth.lds --write-only         # only tables and pictures again

A method's scores of the training triples in a half are summed, and compared over all halves with the logit, and the
log-probability among all tails, that the models trained on them give the test triple: Spearman's correlation, averaged
over test triples (Ilyas et al., 2022, https://arxiv.org/abs/2202.00622; Park et al., 2023,
https://arxiv.org/abs/2303.14186). Every half is trained with several seeds; their mean is what happened, and how well
models of one seed foretell those of another says how much of it could be foretold at all.

What was trained is kept in ``.bench/truth``, so that an interrupted run goes on. Writes
``benchmarks/results/lds-PROBLEM-cpu.json``, the tables in ``docs/truth.md`` and their picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import DOCS
from benchmarks.truth.command import run, tables, titles
from benchmarks.truth.graphs import Graph
from benchmarks.truth.retraining import OUTCOMES, Job, retrain
from benchmarks.truth.scores import same_pair, shared_entities, similar_embeddings
from benchmarks.truth.statistics import mean, spearman
from benchmarks.truth.whole import Explained, Whole
from kgtrace_indexer.models.conve_network import BIAS, ENTITY, RELATION

COMPARED = OUTCOMES[:2]
LOSSES = ("bce", "removal", "bce-1vsall", "bce-kvsall", "ce-1vsall")
TABLES = (ENTITY, BIAS, RELATION)
DAMPINGS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""σ² of the preconditioned score."""
DENSE_DAMPINGS = (0.3, 1.0, 3.0, 10.0)
"""σ² in units of the mean ‖g‖²."""
DENSE = 10_000
"""Training triples up to which the second moment is taken whole, whose cost is cubic, and TRAK with all `TRAK_DIMS`."""
RANKS = (64, 256)
TRAK_DIMS = (512, 2048)
COUNT = "same (h, r) or (r, t)"


def measure(name: str, graph: Graph, *, halves: int, seeds: int, tests: int) -> dict[str, Any]:
    """Train on halves of a graph, and correlate."""
    whole = Whole(name, graph)
    test = np.random.default_rng(0).permutation(graph.test)[:tests]
    masks = np.stack([half_of(graph, half) for half in range(halves)])  # (m, n)
    jobs = [
        Job(graph, whole.recipe, mask, seed, test, whole.folder / "halves") for seed in range(seeds) for mask in masks
    ]
    happened = np.stack(retrain(jobs)).reshape(seeds, halves, -1, len(test))
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
    compared = {
        title: {
            outcome: {**mean(each), "beyond_count": mean(each - count)}
            for outcome, each, count in zip(COMPARED, row, correlations[COUNT], strict=True)
        }
        for title, row in correlations.items()
    }
    return {"recipe": asdict(whole.recipe), "triples": len(graph.train), "mrr": whole.mrr(), "rows": compared}


def half_of(graph: Graph, half: int) -> np.ndarray:
    """Return which training triples are in a half, (n,) bool."""
    count = len(graph.train)
    return np.random.default_rng([1, half]).permutation(count) < count // 2


def methods(explained: Explained) -> dict[str, Callable[[], np.ndarray]]:
    """Return all methods by title."""
    whole, graph, test = explained.whole, explained.graph, explained.test
    asked: dict[str, dict[str, Any]] = {
        f"{loss}, {directions}": {"loss": loss, "directions": directions}
        for loss in whole.losses(LOSSES)
        for directions in ("forward", "both")
    }
    asked["removal, forward, test sides both"] = {"loss": "removal", "directions": "both", "sides": ("tail", "head")}
    if whole.recipe.model == "ConvE":
        layers = {"last:1": ("last:1",), "last:2": ("last:2",), "embedding rows": TABLES}
        asked |= {f"removal, forward, {title}": {"loss": "removal", "layers": which} for title, which in layers.items()}
    asked["removal, forward, 4 checkpoints"] = {"loss": "removal", "checkpoints": True}
    for damping in DAMPINGS:
        asked[f"preconditioned, removal, forward, σ² = {damping:g}"] = {"loss": "removal", "damping": damping}
    asked["preconditioned, bce, forward, σ² = 1"] = {"loss": "bce", "damping": 1.0}
    asked["preconditioned, bce, both, σ² = 1"] = {"loss": "bce", "damping": 1.0, "directions": "both"}
    asked["preconditioned, removal, both, σ² = 1"] = {"loss": "removal", "damping": 1.0, "directions": "both"}
    asked["preconditioned, removal, forward, 4 checkpoints, σ² = 1"] = {
        "loss": "removal", "damping": 1.0, "checkpoints": True,
    }  # fmt: skip
    found: dict[str, Callable[[], np.ndarray]] = {
        title: partial(_influence, explained, **{"directions": "forward", **how}) for title, how in asked.items()
    }
    found |= {f"{loss}, forward, cosine": partial(_cosine, explained, loss) for loss in ("bce", "removal")}
    if len(graph.train) <= DENSE:
        for rank in (None, *RANKS):
            title = "whole Fisher" if rank is None else f"{rank} directions of it"
            found |= {f"{title}, σ² = {d:g}": partial(_fisher, explained, d, rank) for d in DENSE_DAMPINGS}
    if whole.recipe.model == "ConvE":
        dims = TRAK_DIMS if len(graph.train) <= DENSE else TRAK_DIMS[:1]
        found |= {f"TRAK (traker), {dim}": partial(explained.trak, dim) for dim in dims}
    found["embeddings alike"] = partial(similar_embeddings, whole.model, graph, test)
    found["shared entities"] = partial(shared_entities, graph, test)
    found[COUNT] = partial(same_pair, graph, test)
    found["random"] = partial(np.random.default_rng(2).standard_normal, (len(graph.train), len(test)))
    return found


def _influence(explained: Explained, **how: Any) -> np.ndarray:
    return explained.influences(**how).of


def _cosine(explained: Explained, loss: str) -> np.ndarray:
    return explained.influences(loss).cosine()


def _fisher(explained: Explained, damping: float, rank: int | None) -> np.ndarray:
    return explained.fisher.scores(explained.influences("removal").of, damping, rank)


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the correlations with the logit, and return a table of all."""
    draw(found, DOCS / "images" / "lds.svg")
    return tables(found, COMPARED)


def draw(found: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw the correlations with the logit."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "kgtrace", "font.size": 8})
    names = titles(found)
    figure, axes = plt.subplots(1, len(found), sharey=True, squeeze=False, layout="constrained",
                                figsize=(2.2 * len(found) + 3, 0.2 * len(names) + 1))  # fmt: skip
    for axis, (name, each) in zip(axes[0], found.items(), strict=True):
        for place, title in enumerate(names):
            if (row := each["rows"].get(title)) is not None:
                value = row["logit"]
                error = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
                color = "C1" if title == COUNT else "C0"
                axis.errorbar(value["mean"], place, xerr=error, fmt="o", markersize=3, color=color)
        axis.axvline(each["rows"][COUNT]["logit"]["mean"], color="C1", linewidth=0.6)
        axis.set_title(name)
        axis.set_xlabel("Spearman, logit")
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    run(__doc__, "lds", measure, shown, page="truth/halves.md", halves=100, seeds=2, tests=100)
