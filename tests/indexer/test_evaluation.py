"""Accuracies are what their definitions say, and an interrupted evaluation ends like any other."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable
from kgtrace_indexer.evaluation import Evaluation, Measured, evaluate
from kgtrace_indexer.evaluation.configurations import configurations
from kgtrace_indexer.evaluation.measures import average_ranks, overlap, pearson, top
from kgtrace_indexer.evaluation.plain_loop import PlainLoop
from kgtrace_indexer.evaluation.speed import least_seconds
from kgtrace_indexer.gradients.layers import select_layers
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.inputs.sampling import sample_rows
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest, BuilderRunning, NonFinite, ResumeRefused
from kgtrace_store.locks import builder
from tests.indexer import oracle

Umls = tuple[ModelFile, Vocabulary, TripleTable]
CONFIG = BuildConfig(loss="bce", dim=8, landmarks=64, seed=3, device="cpu")
FEW, ASKED, TOP_K = 150, 3, 5

VECTORS = arrays(np.float32, st.integers(2, 40), elements=st.integers(-4, 4).map(float))


@pytest.fixture(scope="module", autouse=True)
def _short_sweeps() -> Iterator[None]:
    """Fewer configurations: what is true of these is true of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kgtrace_indexer.evaluation.configurations.DIMENSIONS", (16, 64))
        patch.setattr("kgtrace_indexer.evaluation.configurations.RATES", (0.05, 0.5, 1.0))
        yield


@pytest.fixture(scope="module")
def few(umls: Umls) -> Umls:
    """Some training triples, in another order than that of their rows."""
    model, vocabulary, table = umls
    chosen = np.random.default_rng(0).choice(len(table.ids), FEW, replace=False)
    return model, vocabulary, TripleTable(table.ids[np.sort(chosen)], np.arange(0, 2 * FEW, 2), 0)


@pytest.fixture(scope="module")
def asked(umls: Umls) -> np.ndarray:
    """Test triples."""
    return umls[2].ids[[5, 2500, 5000]]


@pytest.fixture(scope="module")
def found(few: Umls, asked: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation in one go."""
    return evaluate(tmp_path_factory.mktemp("evaluation") / "work", *few, asked, CONFIG, top_k=TOP_K)


@pytest.fixture(scope="module")
def exact(few: Umls, asked: np.ndarray, umls_folder: Path) -> Callable[..., np.ndarray]:
    """Influences (ASKED, FEW) of the parameters named, or of all where none is, by autograd on the original module."""
    model = oracle.pykeen_model(umls_folder)

    @cache
    def influences(*names: str) -> np.ndarray:
        tests = torch.stack([oracle.gradient(model, triple, ["tail"], names or None) for triple in asked])
        trains = torch.stack([oracle.gradient(model, triple, ["tail", "head"], names or None) for triple in few[2].ids])
        return (tests @ trains.T).numpy()

    return influences


def by_name(found: Evaluation, group: str, name: str) -> Measured:
    [measured] = [c for c in found.configurations if (c.configuration.group, c.configuration.name) == (group, name)]
    return measured


def brute_overlap(estimate: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Of vectors without ties."""
    return len(set(np.argsort(-estimate)[:k]) & set(np.argsort(-exact)[:k])) / k


def brute_ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def brute_measures(estimate: np.ndarray, exact: np.ndarray, rows: np.ndarray) -> list[float]:
    """Means of overlap, Pearson and Spearman over the test triples."""
    named = np.full_like(exact, -np.inf)
    named[:, rows] = estimate[:, rows]
    return np.mean(
        [
            (
                brute_overlap(n, x, TOP_K),
                np.corrcoef(e[rows], x[rows])[0, 1],
                np.corrcoef(brute_ranks(e[rows]), brute_ranks(x[rows]))[0, 1],
            )
            for n, e, x in zip(named, estimate, exact, strict=True)
        ],
        axis=0,
    ).tolist()


def assert_measured(measured: Measured, wanted: list[float]) -> None:
    accuracy = measured.accuracy
    np.testing.assert_allclose([accuracy.overlap, accuracy.pearson, accuracy.spearman], wanted, atol=2e-3)


# Measures.


@given(VECTORS)
def test_ranks_of_equal_values_are_averaged(values: np.ndarray) -> None:
    """Each value's rank is how many are smaller, and half of the others that are equal."""
    np.testing.assert_array_equal(average_ranks(values), brute_ranks(values))


@given(st.data())
def test_correlation_is_that_of_the_textbook(data: st.DataObject) -> None:
    """And 0 where one vector is constant."""
    x = data.draw(VECTORS)
    y = data.draw(arrays(np.float32, len(x), elements=st.integers(-4, 4).map(float)))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert pearson(x, y) == 0
    else:
        assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])


@given(VECTORS, st.integers(1, 50))
def test_the_top_are_the_largest_and_of_equal_ones_the_first(values: np.ndarray, k: int) -> None:
    """As a stable sort has them."""
    assert set(top(values, k)) == set(np.argsort(-values, kind="stable")[:k])


def test_overlap_counts_by_order_and_forgives_ties() -> None:
    """What ties with the k-th best to float32's rounding is as good; fewer than k triples are all wanted."""
    exact = np.array([5, -9, 4, 4 * (1 - 1e-6), 1, -2], np.float32)
    assert overlap(np.array([0, 3]), exact, 2, "proponents") == 1
    assert overlap(np.array([0, 4]), exact, 2, "proponents") == 0.5
    assert overlap(np.array([1, 5]), exact, 2, "opponents") == 1
    assert overlap(np.array([0, 1]), exact, 2, "absolute") == 1
    assert overlap(np.array([0, 1, 2]), exact, 10, "proponents") == 0.5


def test_speed_is_the_best_of_several_rounds_after_a_warm_up() -> None:
    """The first, slow run of a task does not count, nor a run that was held up; tasks take turns."""
    durations: dict[Hashable, list[float]] = {"a": [9, 3, 2, 4], "b": [9, 1, 7, 1]}
    taken: list[Hashable] = []
    now = 0.0

    def task(key: Hashable) -> Callable[[], None]:
        def run() -> None:
            nonlocal now
            now += durations[key][taken.count(key)]
            taken.append(key)

        return run

    reports: list[tuple[int, int]] = []
    least = least_seconds(
        {key: task(key) for key in durations}, report=lambda *done: reports.append(done), clock=lambda: now
    )
    assert least == {"a": 2, "b": 1}
    assert taken == ["a", "b"] * 4
    assert reports == [(i, 8) for i in range(1, 9)]


def test_the_plain_loop_computes_the_same_influences(umls: Umls, umls_folder: Path) -> None:
    """Of all parameters, in the forward direction."""
    model, _, table = umls
    training, test = table.ids[:20], table.ids[3000]
    original = oracle.pykeen_model(umls_folder)
    target = oracle.gradient(original, test, ["tail"])
    wanted = [float(oracle.gradient(original, triple, ["tail"]) @ target) for triple in training]
    found = PlainLoop(model, torch.device("cpu")).influences(training, test)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


# Configurations.


def test_layers_and_presets_are_those_that_the_model_has() -> None:
    """A model of two modules has no last:3; presets that need more modules than it has are left out."""

    class Two:
        def select(self, layers: Any) -> Any:
            return select_layers(layers, [["tails"], ["heads"]])

    class One(Two):
        def select(self, layers: Any) -> Any:
            return select_layers(layers, [["tails", "heads"]])

    def names(model: Any, group: str) -> list[str]:
        return [c.name for c in configurations(model, ["heads", "buffer", "tails"]) if c.group == group]

    assert names(Two(), "layers") == ["last 2 parameters", "last:1", "all"]
    assert names(One(), "layers") == ["last 2 parameters", "all"]
    assert "fast" in names(Two(), "preset")
    assert names(One(), "preset") == ["baseline", "extreme"]


# Evaluations.


def test_what_is_exact_is_found_exact(found: Evaluation) -> None:
    """The baseline is the exact answer itself, and the index names its top k with a certificate."""
    for group, name in (("preset", "baseline"), ("layers", "all"), ("sample rate", "100 %")):
        accuracy = by_name(found, group, name).accuracy
        assert (accuracy.overlap, accuracy.pearson, accuracy.spearman) == pytest.approx((1, 1, 1))
    assert found.index.overlap == 1
    assert found.index.certified == ASKED
    assert found.index.bytes > 0
    assert (found.training_triples, found.test_triples, found.directions) == (FEW, ASKED, "both")


def test_layers_are_measured_against_all_parameters(
    found: Evaluation, exact: Callable[..., np.ndarray], few: Umls
) -> None:
    """The last two parameters' influences, by autograd, against all parameters' influences, by autograd."""
    trained = [name for name in few[0].tensors if few[0].tensors[name].is_floating_point() and "running" not in name]
    measured = by_name(found, "layers", "last 2 parameters")
    assert measured.configuration.layers == tuple(trained[-2:])
    assert_measured(measured, brute_measures(exact(*trained[-2:]), exact(), np.arange(FEW)))


def test_an_index_of_some_layers_is_no_measure(few: Umls, tmp_path: Path) -> None:
    """All configurations are compared with the influence of all parameters."""
    with pytest.raises(BadRequest, match=r"layers are last:1: what configurations are compared with has all"):
        evaluate(tmp_path, *few, few[2].ids[:1], replace(CONFIG, layers=("last:1",)))


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_samples_name_their_own_triples_only(
    found: Evaluation, exact: Callable[..., np.ndarray], few: Umls, rate: float
) -> None:
    """Overlap is with the top k of all triples, correlation over the sampled ones."""
    ids = few[2].ids
    by_relation = np.lexsort(ids.T[[2, 0, 1]])
    rows = by_relation[sample_rows(ids[by_relation], rate, "relation", CONFIG.seed)]
    measured = by_name(found, "sample rate", f"{100 * rate:g} %")
    assert measured.training_triples == len(rows)
    assert_measured(measured, brute_measures(exact(), exact(), rows))


@pytest.mark.parametrize(("kind", "dim"), [("gaussian", 16), ("sparse", 64)])
def test_projections_are_measured_as_if_each_were_alone(
    found: Evaluation, exact: Callable[..., np.ndarray], few: Umls, asked: np.ndarray, kind: Any, dim: int
) -> None:
    """Though one scan serves all dimensions."""
    model, _, table = few
    projection = RandomProjection(kind, dim, CONFIG.seed)
    featurizer = featurizer_for(model, {"loss": "bce", "directions": None, "layers": ["all"]}, torch.device("cpu"))
    with torch.inference_mode():
        tests = projection.project(featurizer.test_terms(asked, "tail"))
        trains = projection.project(featurizer.training_terms(table.ids))
    measured = by_name(found, "dimension", f"{kind} {dim}")
    assert_measured(measured, brute_measures((tests @ trains.T).numpy(), exact(), np.arange(FEW)))


def test_speeds_are_extrapolated_to_what_is_looked_at(found: Evaluation) -> None:
    """Every one is a positive time, and set against the plain loop's."""
    assert found.loop_seconds_a_query is not None
    assert all(measured.seconds_a_query > 0 for measured in found.configurations)
    assert found.times_faster(found.loop_seconds_a_query / 4) == pytest.approx(4)
    assert replace(found, loop_seconds_a_query=None).times_faster(1.0) is None


@pytest.mark.parametrize("stage", ["influences, layers last:1", "speed"])
def test_an_interrupted_evaluation_ends_like_any_other(
    found: Evaluation, few: Umls, asked: np.ndarray, tmp_path: Path, stage: str
) -> None:
    """Wherever it is interrupted, what was scanned is not scanned again, and accuracies are the same."""
    stages: list[str] = []

    def interrupt(at: str, done: int, total: int) -> None:
        stages.append(at)
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "work", *few, asked, CONFIG, top_k=TOP_K, progress=interrupt)
    finished = set(stages) - {stage}
    with (tmp_path / "work" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"configuration": {"na')  # torn by a power cut
    stages.clear()
    again = evaluate(
        tmp_path / "work", *few, asked, CONFIG, top_k=TOP_K, progress=lambda at, done, total: stages.append(at)
    )
    assert not finished & set(stages)
    assert stage in stages
    for a, b in zip(again.configurations, found.configurations, strict=True):
        assert (a.configuration, a.training_triples, a.accuracy) == (b.configuration, b.training_triples, b.accuracy)
    assert (again.index.overlap, again.index.certified) == (found.index.overlap, found.index.certified)


def test_the_beginning_of_another_evaluation_is_refused(few: Umls, asked: np.ndarray, tmp_path: Path) -> None:
    """And a damaged one, unless it is to be discarded; and nobody works where somebody else does."""
    folder = tmp_path / "work"
    steps = count()

    def stop(at: str, done: int, total: int) -> None:
        if next(steps) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, *few, asked, CONFIG, top_k=TOP_K, progress=stop)
    with pytest.raises(ResumeRefused, match="--fresh"):
        evaluate(folder, *few, asked, CONFIG, top_k=TOP_K + 1)
    journal = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(journal + b"\0\n")
    with pytest.raises(ResumeRefused, match="cannot be read"):
        evaluate(folder, *few, asked, CONFIG, top_k=TOP_K)
    with builder(folder / "lock"), pytest.raises(BuilderRunning):
        evaluate(folder, *few, asked, CONFIG, top_k=TOP_K)
    steps = count()
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, *few, asked, CONFIG, top_k=TOP_K + 1, fresh=True, progress=stop)


def test_what_cannot_be_evaluated_is_named(few: Umls, asked: np.ndarray, tmp_path: Path) -> None:
    """No test triple, no top, no finite influence."""
    model, vocabulary, table = few
    with pytest.raises(BadRequest, match="no test triple"):
        evaluate(tmp_path, *few, asked[:0], CONFIG)
    with pytest.raises(BadRequest, match="top_k is 0"):
        evaluate(tmp_path, *few, asked, CONFIG, top_k=0)
    huge = {name: t * 1e30 if t.is_floating_point() else t for name, t in model.tensors.items()}
    with pytest.raises(NonFinite, match="training triple"):
        evaluate(tmp_path / "work", replace(model, tensors=huge), vocabulary, table, asked, CONFIG)
