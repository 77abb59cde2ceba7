"""How long a query takes by each configuration, by the index and by the plain loop.

A configuration does all that it does for one test triple on a slice of the training triples that it looks at, and the
plain loop on a few of them; both are extrapolated to all. The index answers every test triple.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from kgtrace_indexer.building.parts import Progress
from kgtrace_indexer.evaluation.accuracy import Estimate, estimate_of
from kgtrace_indexer.evaluation.configurations import Configuration
from kgtrace_indexer.evaluation.plain_loop import PlainLoop
from kgtrace_indexer.evaluation.problem import Problem
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.query.attributor import Attributor

SLICE = 1024
"""Training triples that a configuration is timed on, at most."""
LOOP_SLICE = 32
"""Training triples that the plain loop is timed on, at most."""

_ROUNDS = 3
"""Other work on the machine comes in bursts; a task that is met by one three times is rare."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one query."""

    configurations: Mapping[Configuration, float]
    index: Sequence[float]
    """Of each test triple."""
    loop: float | None
    """None where there is no loop."""


def query_seconds(
    configurations: Sequence[Configuration],
    problem: Problem,
    attributor: Attributor,
    loop: PlainLoop | None,
    progress: Progress,
) -> Seconds:
    """Time everything in turn."""
    tasks: dict[Hashable, Callable[[], object]] = {}
    scale: dict[Hashable, float] = {}
    projections: dict[Estimate, RandomProjection] = {}
    for configuration in configurations:
        estimate, rows = estimate_of(configuration), problem.rows(configuration)
        if estimate is not None and estimate not in projections:
            projections[estimate] = RandomProjection(*estimate, problem.seed)
        timed = _middle(rows, SLICE)
        tasks[configuration] = _task(configuration, problem, timed, projections.get(estimate))
        scale[configuration] = len(rows) / len(timed)
    for i, triple in enumerate(problem.test):
        tasks[i] = partial(attributor.query, triple[None], top_k=problem.top_k, order=problem.order, score="tracin")
    if loop is not None:
        timed = _middle(np.arange(len(problem.ids)), LOOP_SLICE)
        tasks[loop] = partial(loop.influences, problem.ids[timed], problem.test[0])
        scale[loop] = len(problem.ids) / len(timed)
    least = least_seconds(tasks, report=partial(progress, "speed"))
    return Seconds(
        {configuration: least[configuration] * scale[configuration] for configuration in configurations},
        [least[i] for i in range(len(problem.test))],
        None if loop is None else least[loop] * scale[loop],
    )


def least_seconds(
    tasks: Mapping[Hashable, Callable[[], object]],
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Hashable, float]:
    """Return the least time that each task took.

    Every task is run once to warm up, and then in rounds, one task after the other, so that a slow phase of the machine
    falls on all of them alike. `report` is called with the number of runs that are done, and of all.
    """
    least: dict[Hashable, float] = {}
    for turn in range(1 + _ROUNDS):
        for place, (key, task) in enumerate(tasks.items(), 1):
            start = clock()
            task()
            seconds = clock() - start
            if turn:
                least[key] = min(least.get(key, seconds), seconds)
            report(turn * len(tasks) + place, (1 + _ROUNDS) * len(tasks))
    return least


def _middle(rows: np.ndarray, size: int) -> np.ndarray:
    """Return up to `size` neighbouring ones of rows (m,)."""
    start = max(0, (len(rows) - size) // 2)
    return rows[start : start + size]


def _task(
    configuration: Configuration, problem: Problem, rows: np.ndarray, projection: RandomProjection | None
) -> Callable[[], None]:
    """Return a function that computes influences of training triples `rows` (m,) on the first test triple."""
    featurizer = problem.featurizer_of(configuration)

    def run() -> None:
        with torch.inference_mode():
            test = featurizer.test_terms(problem.test[:1], "tail")
            for start in range(0, len(rows), problem.batch_size):
                terms = featurizer.training_terms(problem.ids[rows[start : start + problem.batch_size]])
                if projection is None:
                    influences = inner(test, terms)
                else:
                    influences = projection.project(test) @ projection.project(terms).T
                influences.cpu()  # waits for the device

    return run
