"""Scans of the training triples by which configurations are judged.

Configurations with the same layers share a scan and, with the same kind of projection, a projection.
Influences lie in files, one row for each test triple, until the accuracies of their configurations are noted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from kgtrace_indexer.building.parts import Progress
from kgtrace_indexer.evaluation.configurations import Configuration
from kgtrace_indexer.evaluation.findings import Accuracy, Findings
from kgtrace_indexer.evaluation.measures import average_ranks, overlap, pearson, top
from kgtrace_indexer.evaluation.problem import Problem
from kgtrace_indexer.gradients.layers import Selection
from kgtrace_indexer.gradients.random_projection import RandomProjection, leading
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.names import Kind
from kgtrace_indexer.query.certify import value
from kgtrace_store import durable
from kgtrace_store.errors import NonFinite

_EXACT = "exact.npy"

Estimate = tuple[Kind, int] | None
"""How gradients are compared: by a projection to so many coordinates, or exactly."""


def estimate_of(configuration: Configuration) -> Estimate:
    """Return how a configuration compares gradients."""
    if configuration.projection is None or configuration.dim is None:
        return None
    return configuration.projection, configuration.dim


def judge(
    configurations: Sequence[Configuration], problem: Problem, folder: Path, findings: Findings, progress: Progress
) -> np.ndarray:
    """Enter the accuracy of all configurations in the findings; return the exact influences, (b, n) float32.

    The findings stand for the scans of an earlier attempt, and a file in `folder` for the exact influences.

    Raises `NonFinite` for influences that are not, naming the training triple, and `StorageFailed`.
    """
    path = folder / _EXACT
    exact: np.ndarray | None = np.load(path, mmap_mode="r") if path.exists() else None
    whole = problem.featurizer.selection
    by_layers: dict[Selection, list[Configuration]] = {whole: []}  # first, for all others are compared with it
    for configuration in configurations:
        if configuration not in findings.accuracy:
            by_layers.setdefault(problem.featurizer_of(configuration).selection, []).append(configuration)
    for selection, alike in by_layers.items():
        layers = alike[0].shown_layers if alike else "all"
        estimates = {estimate_of(configuration) for configuration in alike}
        if selection == whole:
            estimates = estimates | {None} if exact is None else estimates - {None}
        featurizer = replace(problem.featurizer, selection=selection)
        estimated = _scan(featurizer, problem, estimates, folder, f"influences, layers {layers}", progress)
        if selection == whole:
            if exact is None:
                exact = estimated[None]
                durable.sync_file(folder / _file(None))
                durable.rename(folder / _file(None), path)  # under this name it is whole
            estimated[None] = exact
        assert exact is not None
        for configuration, accuracy in _accuracies(alike, estimated, exact, problem).items():
            findings.add_accuracy(configuration, accuracy)
        for estimate in estimates:
            durable.remove_file(folder / _file(estimate))
    assert exact is not None
    return exact


def _file(estimate: Estimate) -> str:
    return "influences.npy" if estimate is None else f"influences-{estimate[0]}-{estimate[1]}.npy"


def _scan(
    featurizer: Featurizer,
    problem: Problem,
    estimates: Collection[Estimate],
    folder: Path,
    stage: str,
    progress: Progress,
) -> dict[Estimate, np.ndarray]:
    """Return the influences of all training triples on all test triples by each estimate, (b, n) float32 in files.

    A projection contains the projections to fewer coordinates, so one of each kind is enough.
    """
    shape = (len(problem.test), len(problem.ids))
    durable.require_space(folder / _EXACT, 4 * len(estimates) * shape[0] * shape[1])
    influences: dict[Estimate, np.ndarray] = {
        e: open_memmap(folder / _file(e), "w+", np.float32, shape) for e in estimates
    }
    if not influences:
        return influences
    dims: dict[Kind, int] = {}
    for estimate in estimates:
        if estimate is not None:
            dims[estimate[0]] = max(estimate[1], dims.get(estimate[0], 0))
    projections = {kind: RandomProjection(kind, dim, problem.seed) for kind, dim in dims.items()}
    with torch.inference_mode():
        test = featurizer.test_terms(problem.test, "tail")
        tests = {kind: projection.project(test) for kind, projection in projections.items()}
        for start in range(0, shape[1], problem.batch_size):
            part = slice(start, start + problem.batch_size)
            terms = featurizer.training_terms(problem.ids[part])
            projected = {kind: projection.project(terms) for kind, projection in projections.items()}
            for estimate, array in influences.items():
                if estimate is None:
                    block = inner(test, terms)
                else:
                    kind, dim = estimate
                    block = leading(tests[kind], dim) @ leading(projected[kind], dim).T  # (b, dim) @ (dim, m)
                array[:, part] = block.cpu().numpy()
                _check_finite(array[:, part], problem.train_index[part])
            progress(stage, min(part.stop, shape[1]), shape[1])
    return influences


def _check_finite(influences: np.ndarray, train_index: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(influences).all(0))
    if len(wrong):
        raise NonFinite(
            f"the influence of training triple {train_index[wrong[0]]} is not finite: check the model's parameters"
        )


def _accuracies(
    configurations: Sequence[Configuration],
    estimated: Mapping[Estimate, np.ndarray],
    exact: np.ndarray,
    problem: Problem,
) -> dict[Configuration, Accuracy]:
    """Compare estimated influences (b, n), over each configuration's sample, with exact ones (b, n)."""
    samples = {configuration: problem.rows(configuration) for configuration in configurations}
    sums = {configuration: np.zeros(3) for configuration in configurations}
    for i, truth in enumerate(exact if configurations else ()):
        ranks = average_ranks(truth)  # sorting takes most of the time
        for configuration, rows in samples.items():
            guess, true = estimated[estimate_of(configuration)][i][rows], truth[rows]
            named = rows[top(value(guess, problem.order), problem.top_k)]
            shared = overlap(named, truth, problem.top_k, problem.order)
            true_ranks = ranks if len(rows) == len(truth) else average_ranks(true)
            sums[configuration] += shared, pearson(guess, true), pearson(average_ranks(guess), true_ranks)
    return {configuration: Accuracy(*(total / len(exact)).tolist()) for configuration, total in sums.items()}
