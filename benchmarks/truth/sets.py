"""Sets: do models that are trained again without a set of facts say what was predicted?

    python -m benchmarks.truth.sets              # 48 trainings and 3 controls of each problem: half an hour on one core

Of each prediction that a model ranks first, sets of one to four facts are left out: half of the predictions lose the facts of
their head or tail with the largest predicted effect, the others random ones of these. Fifteen predictions lose theirs in one
training, and what is predicted for each is the effect of everything left out there. It is compared with the change of the logit
between two trainings of one seed, without these facts and with all.

A factor, fitted by least squares, turns influence over σ² into a change of the logit; the half width of an interval is

    floor + slope · |predicted change|,

the narrowest on average that holds nine in ten changes (split conformal prediction, Vovk et al., 2005). Coverage is measured with predictions that the fit did not see: half of the problem's own, and other problems.

Rows of the tables may also be *moved* by the predicted step, and scores computed anew, instead of summed up to first order.

What was trained is kept in ``.bench/truth``. Writes ``benchmarks/results/sets-PROBLEM-cpu.json`` and the tables in
``docs/sets.md``; the constants in ``indexer/kgtrace_indexer/explaining/calibration.py`` are the fits of ``UMLS`` and
``UMLS-ComplEx``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.truth.command import cell, run
from benchmarks.truth.deletion import ranked_first, without
from benchmarks.truth.graphs import Graph
from benchmarks.truth.outcomes import ceiling
from benchmarks.truth.retraining import retrain
from benchmarks.truth.scores import indexed
from benchmarks.truth.statistics import correlation, mean
from benchmarks.truth.training import tail_scores
from benchmarks.truth.whole import Explained, Whole
from kgtrace_indexer import BuildConfig
from kgtrace_indexer.explaining.predictor import Predictor
from kgtrace_indexer.explaining.what_if import what_if
from kgtrace_indexer.models.conve_network import BIAS, ENTITY

SIZES = (1, 2, 3, 4)
"""Facts of a set."""
TOGETHER = 15
"""Predictions that lose their sets in one training."""
COVERAGE = 0.9
"""Share of changes that an interval is to hold."""
SLOPES = tuple(np.arange(0, 1.55, 0.05).round(2).tolist())
"""Slopes of the half width that are tried."""


def measure(name: str, graph: Graph, *, seeds: int, predictions: int) -> dict[str, Any]:
    """Leave sets out, train again, and compare with what was predicted."""
    explained = ranked_first(Whole(name, graph), predictions)
    with indexed(explained.whole.model, graph, BuildConfig(device="cpu")) as attributor:
        predictor = Predictor(attributor)
        place = np.argsort(attributor.training.train_index)  # among the indexed triples, of each row as read
        plans = list(plan(explained, predictor, place))
        jobs = [np.empty(0, np.int64), *(np.unique(np.concatenate(sets)) for _, sets in plans)]
        outcomes = np.stack(retrain([job for facts in jobs for job in without(explained, facts, seeds)]))
        control, *happened = outcomes.reshape(len(jobs), seeds, *outcomes.shape[1:])
        parts = [
            compared(explained, predictor, place[facts], members, sets, found, control)
            for (members, sets), facts, found in zip(plans, jobs[1:], happened, strict=True)
        ]
        left = {title: np.concatenate([part[title] for part in parts]) for title in parts[0]}
        fitted = fit(left["predicted"], left["changes"])
        left["moved"] = np.concatenate(
            [
                moved_changes(explained, predictor, place[facts], fitted["factor"], members)
                for (members, _), facts in zip(plans, jobs[1:], strict=True)
            ]
        )
    seen = left["prediction"] < len(explained.test) / 2
    half = fit(left["predicted"][seen], left["changes"][seen])
    return {
        "triples": len(graph.train),
        "predictions": len(explained.test),
        "fit": fitted,
        "held_out": coverage(half, left["predicted"][~seen], left["changes"][~seen]),
        "lost_by_itself": float((control[:, 2] > 1).mean()),
        "rows": rows(left, fitted["factor"]),
        "predicted": left["predicted"].round(5).tolist(),
        "changes": left["changes"].astype(float).round(4).tolist(),
    }


def compared(
    explained: Explained,
    predictor: Predictor,
    positions: np.ndarray,
    members: np.ndarray,
    sets: list[np.ndarray],
    found: np.ndarray,
    control: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return, for each prediction (m,) that lost a set in a training, what was predicted and what happened.

    `found` and `control` are outcomes (seeds, 3, q).
    """
    said = [what_if(predictor, predictor.completions(explained.test[i], "tail"), positions, 1) for i in members]
    return {
        "prediction": members,
        "facts": np.array([len(own) for own in sets]),
        "predicted": np.array([each.score_after - each.score for each in said]) / predictor.factor,
        "falls": np.array([each.rank_after > 1 for each in said]),
        "changes": (found[:, 0] - control[:, 0])[:, members].T,
        "lost": (found[:, 2] > 1)[:, members].mean(0),
        "lost_before": (control[:, 2] > 1)[:, members].mean(0),
    }


def fit(predicted: np.ndarray, changes: np.ndarray) -> dict[str, float]:
    """Return the factor and the interval, for changes predicted with a factor of 1 (m,) and what happened (m, seeds)."""
    factor = float((predicted * changes.mean(1)).sum() / (predicted**2).sum())
    size = np.abs(factor * predicted)[:, None]
    missed = np.abs(changes - factor * predicted[:, None])
    level = min(1.0, COVERAGE * (1 + 1 / missed.size))
    floors = {slope: float(np.quantile(missed - slope * size, level, method="higher")) for slope in SLOPES}
    slope = min(SLOPES, key=lambda slope: floors[slope] + slope * size.mean())
    return {"factor": factor, "floor": floors[slope], "slope": slope}


def coverage(fitted: Mapping[str, float], predicted: np.ndarray, changes: np.ndarray) -> float:
    """Return the share of changes (m, seeds) inside the interval around what was predicted (m,)."""
    expected = fitted["factor"] * predicted[:, None]
    inside = np.abs(changes - expected) <= fitted["floor"] + fitted["slope"] * np.abs(expected)
    return float(inside.mean())


def rows(left: Mapping[str, np.ndarray], factor: float) -> dict[str, dict[str, Any]]:
    """Return what happened to sets of each kind and size."""
    best, happened = left["prediction"] % 2 == 0, left["changes"].mean(1, dtype=np.float64)
    kinds = {f"largest effects, {size}": best & (left["facts"] == size) for size in SIZES}
    kinds |= {"largest effects": best, "random": ~best, "all": np.ones_like(best)}
    return {
        title: {
            "sets": int(chosen.sum()),
            "predicted": float(factor * left["predicted"][chosen].mean()),
            "change": mean(happened[chosen]),
            "agreement": correlation(left["predicted"][chosen], happened[chosen]),
            "moved": correlation(left["moved"][chosen], happened[chosen]),
            "falls": int((falls := chosen & left["falls"]).sum()),
            "lost": shares(left, falls),
            "lost otherwise": shares(left, chosen & ~left["falls"]),
        }
        for title, chosen in kinds.items()
    }


def shares(left: Mapping[str, np.ndarray], chosen: np.ndarray) -> list[float] | None:
    """Return how often predictions are not ranked first, in control trainings and without the sets; None for no sets."""
    return [float(left[title][chosen].mean()) for title in ("lost_before", "lost")] if chosen.any() else None


def plan(
    explained: Explained, predictor: Predictor, place: np.ndarray
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield, for each training, the predictions that lose facts, and rows of the training triples for each of them."""
    train, rng = explained.graph.train, np.random.default_rng(0)
    for size in SIZES:
        for members in np.split(order := rng.permutation(len(explained.test)), range(TOGETHER, len(order), TOGETHER)):
            sets = []
            for i in members.tolist():
                head, _, tail = explained.test[i]
                near = np.flatnonzero(np.isin(train[:, [0, 2]], (head, tail)).any(1))
                effects = predictor.own_changes(predictor.completions(explained.test[i], "tail"), place[near])
                near = near[np.argsort(effects, kind="stable") if i % 2 == 0 else rng.permutation(len(near))]
                sets.append(near[:size])
            yield members, sets


def moved_changes(
    explained: Explained, predictor: Predictor, positions: np.ndarray, factor: float, members: np.ndarray
) -> list[float]:
    """Return the changes of predictions' logits if the rows of the tables are moved, training triples being left out."""
    head, relation, tail = torch.from_numpy(explained.test[members]).T
    module, own = explained.whole.module, torch.arange(len(members))
    with torch.inference_mode():
        before = tail_scores(module, head, 2 * relation)[own, tail]
        with moved(explained, predictor, positions, factor):
            return (tail_scores(module, head, 2 * relation)[own, tail] - before).tolist()


@contextmanager
def moved(explained: Explained, predictor: Predictor, positions: np.ndarray, factor: float) -> Iterator[None]:
    """Move the rows of the model's tables for as long as the block runs."""
    gradients = {table: each.summed() for table, each in predictor.gradients(positions).items()}
    parameters = dict(explained.whole.module.named_parameters())
    kept = {name: parameter.clone() for name, parameter in parameters.items()}
    for table, move in predictor.moves(gradients).items():
        step = torch.from_numpy(move.grad * factor / predictor.factor).float()
        width = parameters[table].shape[1]
        parameters[table][move.row] += step[:, :width]
        if table == ENTITY and BIAS in parameters:
            parameters[BIAS][move.row] += step[:, width:]
    yield
    for name, parameter in parameters.items():
        parameter.copy_(kept[name])


def shown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for each problem, and one of the fits."""
    fits = [
        "| fit of | factor | half width of the interval | covers of its other half | "
        + " | ".join(f"of {name}" for name in found)
        + " |",
        f"|---|---|---|---|{'---|' * len(found)}",
    ]
    for name, each in found.items():
        fitted = each["fit"]
        others = [
            f"{coverage(fitted, np.array(other['predicted']), np.array(other['changes'])):.0%}"
            for other in found.values()
        ]
        width = f"{fitted['floor']:.3f} + {fitted['slope']:.3f} · change"
        fits.append(f"| {name} | {fitted['factor']:.3f} | {width} | {each['held_out']:.0%} | {' | '.join(others)} |")
    return "\n\n".join([*(table(name, each) for name, each in found.items()), "\n".join(fits)])


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return what happened in one problem."""
    lines = [
        f"**{name}**: {found['predictions']} predictions, {found['seeds']} seeds; {found['lost_by_itself']:.0%} of them are "
        "not first in control trainings. The seeds agree so far that nothing can agree better than "
        f"{ceiling(np.array(found['changes']).T[:, :, None]):.2f} with the mean of all changes.",
        "",
        "| facts | sets | predicted | change | agreement | moved | predicted to fall | not first: of these | of others |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, row in found["rows"].items():
        shares = [" → ".join(f"{share:.0%}" for share in row[key] or ()) for key in ("lost", "lost otherwise")]
        cells = [
            title, str(row["sets"]), f"{row['predicted']:+.2f}", cell(row["change"], "+"), cell(row["agreement"]),
            cell(row["moved"]), str(row["falls"]), *shares,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(
        __doc__, "sets", measure, shown, page="sets.md", problems=("UMLS", "UMLS-ComplEx", "Kinships-ComplEx"),
        seeds=3, predictions=60,
    )  # fmt: skip
