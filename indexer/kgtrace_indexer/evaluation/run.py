"""The whole evaluation: accuracy, index, speed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kgtrace_indexer.building.build import BuildConfig, build, check_input
from kgtrace_indexer.building.parts import Progress
from kgtrace_indexer.evaluation.accuracy import judge
from kgtrace_indexer.evaluation.configurations import Configuration, configurations
from kgtrace_indexer.evaluation.findings import Accuracy, Built, open_findings
from kgtrace_indexer.evaluation.measures import overlap
from kgtrace_indexer.evaluation.plain_loop import PlainLoop
from kgtrace_indexer.evaluation.problem import Problem
from kgtrace_indexer.evaluation.speed import query_seconds
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.names import Order
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_indexer.query.opening import open_index
from kgtrace_store import durable
from kgtrace_store.errors import BadRequest, UnsupportedModel
from kgtrace_store.vocabulary import Vocabulary

_INDEX = "index"
"""Root of the index in the evaluation's folder."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration."""

    configuration: Configuration
    training_triples: int
    """Looked at for each test triple: all, or the sample."""
    accuracy: Accuracy
    seconds_a_query: float
    """For one test triple and all `training_triples`; extrapolated."""


@dataclass(frozen=True, slots=True)
class MeasuredIndex:
    """kgtrace's index in its default configuration."""

    overlap: float
    """As in `Accuracy`."""
    certified: int
    """How many test triples' answers are proved."""
    build_seconds: float
    bytes: int
    """On disk."""
    seconds_a_query: float
    """Median over the test triples, queried one by one."""
    slowest_seconds: float
    """The largest of them."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured."""

    training_triples: int
    test_triples: int
    directions: str
    """Of the training side."""
    loop_seconds_a_query: float | None
    """The plain loop's, extrapolated; None where PyKEEN cannot compute the model."""
    configurations: list[Measured]
    index: MeasuredIndex

    def times_faster(self, seconds_a_query: float) -> float | None:
        """Return how many times faster than the plain loop a query of so many seconds is."""
        return None if self.loop_seconds_a_query is None else self.loop_seconds_a_query / seconds_a_query


def evaluate(
    folder: Path,
    model: ModelFile,
    vocabulary: Vocabulary,
    table: TripleTable,
    test: np.ndarray,
    config: BuildConfig,
    *,
    top_k: int = 10,
    order: Order = "proponents",
    fresh: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Measure all configurations, and kgtrace's index; results of an interrupted evaluation in `folder` are used.

    Parameters
    ----------
    folder
        Made if need be, and left to the caller to remove. It holds the index, and 4 bytes for each pair of a training
        and a test triple and each configuration of the same layers.
    test
        (b, 3) ids: test triples, whose tails are explained.
    config
        The index that is measured, of all layers. Its loss, directions and seed are those of the exact answer, too.
    top_k, order
        Which training triples of a test triple should be named.
    fresh
        Discard the content of `folder`.

    Raises
    ------
    VocabularyMismatch, IdOutOfRange, UnsupportedModel, BadRequest
        The input does not fit together.
    NonFinite
        An influence that is NaN or infinite, naming the training triple.
    ResumeRefused
        In `folder` an evaluation of something else was interrupted.
    BuilderRunning, GateFailed, StorageFailed, MissingExtra
        See `kgtrace_store.errors`. The plain loop needs PyKEEN.
    """
    if not len(test):
        raise BadRequest("there is no test triple to evaluate on")
    if top_k < 1:
        raise BadRequest(f"top_k is {top_k}, must be at least 1")
    if config.layers != ("all",):
        raise BadRequest(f"layers are {', '.join(config.layers)}: what configurations are compared with has all")
    check_input(model, vocabulary, table)
    problem = Problem.of(model, table, test, config, top_k, order)
    loop = _plain_loop(model, problem)
    compared = configurations(problem.featurizer.model, list(model.tensors))
    with open_findings(folder, problem.fingerprint(model, config, compared), fresh=fresh) as findings:
        exact = judge(compared, problem, folder, findings, progress)
        if findings.built is None:
            durable.remove_tree(folder / _INDEX)  # a build that goes on would seem quicker than it is
            report = build(folder / _INDEX, model, vocabulary, table, config, progress=progress)
            findings.add_built(Built(sum(report.seconds.values()), report.bytes))
        assert findings.built is not None
        attributor = open_index(folder / _INDEX, device=config.device)
        seconds = query_seconds(compared, problem, attributor, loop, progress)
        shared, certified = _index_accuracy(attributor, problem, exact)
        return Evaluation(
            training_triples=len(problem.ids),
            test_triples=len(test),
            directions=problem.featurizer.directions,
            loop_seconds_a_query=seconds.loop,
            configurations=[
                Measured(c, len(problem.rows(c)), findings.accuracy[c], seconds.configurations[c]) for c in compared
            ],
            index=MeasuredIndex(
                overlap=shared,
                certified=certified,
                build_seconds=findings.built.seconds,
                bytes=findings.built.bytes,
                seconds_a_query=float(np.median(seconds.index)),
                slowest_seconds=max(seconds.index),
            ),
        )


def _plain_loop(model: ModelFile, problem: Problem) -> PlainLoop | None:
    """Return the plain loop; None for a model of the user's own making, which PyKEEN does not know."""
    try:
        return PlainLoop(model, problem.featurizer.model.device)
    except UnsupportedModel:
        return None


def _index_accuracy(attributor: Attributor, problem: Problem, exact: np.ndarray) -> tuple[float, int]:
    """Return the mean overlap of the index's answers with the exact ones, and how many of them are certified."""
    answer = attributor.query(problem.test, top_k=problem.top_k, order=problem.order, score="tracin")
    sorter = np.argsort(problem.train_index)
    shares = []
    for attribution, truth in zip(answer.attributions, exact, strict=True):
        named = sorter[np.searchsorted(problem.train_index, attribution.train_index, sorter=sorter)]
        shares.append(overlap(named, truth, problem.top_k, problem.order))
    return float(np.mean(shares)), sum(attribution.certified for attribution in answer.attributions)
