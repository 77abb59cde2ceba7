"""Influences without an index: equal to autograd's, and to what the guide's options promise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import (
    BuildConfig,
    ModelFile,
    TracInAnalyzer,
    TripleTable,
    build,
    open_index,
    read_model,
)
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.inputs.sampling import sample_rows
from kgtrace_store.errors import BadRequest, IdOutOfRange, NonFinite, UnsupportedModel
from tests.indexer.oracle import gradient, pykeen_model


@pytest.fixture(scope="module")
def few(umls: tuple) -> np.ndarray:
    return umls[2].ids[:60]


@pytest.fixture(scope="module")
def analyzer(umls: tuple) -> TracInAnalyzer:
    return TracInAnalyzer(umls[0], device="cpu")


def test_influences_are_those_of_autograd(umls_folder: Path, umls: tuple, few: np.ndarray) -> None:
    """All layers, forward: the learning rate times the inner product of full gradients, by descending magnitude."""
    analyzer = TracInAnalyzer(umls_folder, device="cpu", directions="forward", batch_size=7)
    test = umls[2].ids[100]
    found = analyzer.compute_influences_for_test_triple(test, few, learning_rate=0.01)
    oracle = pykeen_model(umls_folder)
    wanted = (
        0.01 * torch.stack([gradient(oracle, triple, ["tail"]) for triple in few]) @ gradient(oracle, test, ["tail"])
    )
    assert sorted(row["train_index"] for row in found) == list(range(len(few)))
    by_row = torch.tensor([wanted[row["train_index"]] for row in found])
    torch.testing.assert_close(torch.tensor([row["influence"] for row in found]), by_row, rtol=1e-4, atol=1e-7)
    magnitudes = [abs(row["influence"]) for row in found]
    assert magnitudes == sorted(magnitudes, reverse=True)
    for row in found:
        assert [row["train_head"], row["train_relation"], row["train_tail"]] == few[row["train_index"]].tolist()
    assert json.loads(json.dumps(found)) == found


def test_the_first_of_all_are_those_of_an_exact_query(analyzer: TracInAnalyzer, umls: tuple, tmp_path: Path) -> None:
    """As many as asked for, over the whole training set, as the exact scan of an index with nothing in it has them."""
    test = umls[2].ids[7]
    found = analyzer.compute_influences_for_test_triple(test, umls[2], top_k=10)
    build(tmp_path, *umls, BuildConfig(loss="bce", projection="none"))
    answer = open_index(tmp_path, device="cpu").query(test[None], order="absolute", exact=True).attributions[0]
    np.testing.assert_allclose([row["influence"] for row in found], answer.influence, rtol=1e-4)
    assert {row["train_index"] for row in found} == set(answer.train_index.tolist())


def test_the_test_gradient_is_computed_once(umls: tuple, few: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept for further calls about the same triple, until the cache is cleared."""
    analyzer = TracInAnalyzer(umls[0], device="cpu")
    asked: list[list[int]] = []
    compute = type(analyzer._featurizer).test_terms

    def counted(self, triples, direction):
        asked.extend(triples.tolist())
        return compute(self, triples, direction)

    monkeypatch.setattr(type(analyzer._featurizer), "test_terms", counted)
    first = analyzer.compute_influences_for_test_triple((3, 1, 7), few)
    assert analyzer.compute_influences_sampled(torch.tensor([3, 1, 7]), few, sample_rate=1.0) == first
    assert asked == [[3, 1, 7]]
    analyzer.clear_cache()
    assert analyzer.compute_influences_for_test_triple((3, 1, 7), few) == first
    assert asked == [[3, 1, 7]] * 2
    for tail in range(100):
        analyzer.compute_influences_for_test_triple((0, 0, tail), few[:1])
    assert len(analyzer._cache) <= 64


def test_a_sample_names_sampled_triples_alone(analyzer: TracInAnalyzer, umls: tuple) -> None:
    """Their influences are those of the whole, and rows keep their numbers."""
    table = umls[2]
    everything = {row["train_index"]: row for row in analyzer.compute_influences_for_test_triple((3, 1, 7), table)}
    found = analyzer.compute_influences_sampled(
        (3, 1, 7), table, sample_rate=0.05, stratify_by="relation", top_k=None, seed=3
    )
    assert sorted(row["train_index"] for row in found) == sample_rows(table.ids, 0.05, "relation", 3).tolist()
    for row in found:
        assert row["influence"] == pytest.approx(everything[row["train_index"]]["influence"], rel=1e-3, abs=1e-6)


def test_several_test_triples_share_a_pass(analyzer: TracInAnalyzer, umls: tuple, few: np.ndarray) -> None:
    """Each is answered as if asked alone."""
    tests = umls[2].ids[200:204]
    together = analyzer.compute_influences_for_test_triples(tests, few, top_k=5)
    for triple, found in zip(tests, together, strict=True):
        alone = analyzer.compute_influences_for_test_triple(triple, few, top_k=5)
        np.testing.assert_allclose([r["influence"] for r in found], [r["influence"] for r in alone], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"num_last_layers": 1}, ["last:1"]),
        ({"num_last_layers": 2}, ["last:2"]),
        ({"last_layer_names": ["interaction.hr1d.0"]}, ["interaction.hr1d.0.*"]),
    ],
)
def test_last_layers_are_modules(umls: tuple, few: np.ndarray, options: dict, layers: list[str]) -> None:
    """Counted from the score backwards, or by name; without ``use_last_layers_only`` neither counts."""
    model, test = umls[0], (3, 1, 7)
    last = TracInAnalyzer(model, use_last_layers_only=True, device="cpu", **options)
    assert last._featurizer.selection == last._featurizer.model.select(layers)
    everything = TracInAnalyzer(model, device="cpu", **options)
    assert everything._featurizer.selection == everything._featurizer.model.select(["all"])
    found = last.compute_influences_for_test_triple(test, few)
    assert found != everything.compute_influences_for_test_triple(test, few)
    terms = last._featurizer.training_terms(few), last._featurizer.test_terms(np.array([test]), "tail")
    wanted = inner(*terms)[[row["train_index"] for row in found], 0]
    torch.testing.assert_close(torch.tensor([row["influence"] for row in found]), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_projected_influences_are_those_of_the_projection(umls: tuple, few: np.ndarray, kind: str) -> None:
    """With many dimensions they approach the exact ones; the seed fixes them."""
    projected = TracInAnalyzer(
        umls[0], use_projection=True, projection_dim=4096, projection_type=kind, device="cpu", seed=5, batch_size=17
    )
    found = projected.compute_influences_for_test_triple(few[0], few)
    projection = RandomProjection(kind, 4096, 5)
    training = projected._featurizer.training_terms(few)
    wanted = projection.project(training) @ projection.project(projected._featurizer.test_terms(few[:1], "tail")).T
    rows = [row["train_index"] for row in found]
    values = torch.tensor([row["influence"] for row in found])
    torch.testing.assert_close(values, wanted[rows, 0], rtol=1e-3, atol=1e-4)
    assert found[0]["train_index"] == 0
    exact = TracInAnalyzer(umls[0], device="cpu").compute_influences_for_test_triple(few[0], few, top_k=1)
    assert found[0]["influence"] == pytest.approx(exact[0]["influence"], rel=0.2)


def test_self_influence_is_the_squared_norm(umls_folder: Path, analyzer: TracInAnalyzer, few: np.ndarray) -> None:
    """Of the gradient of both directions, times the learning rate, largest first."""
    found = analyzer.compute_self_influence(few, learning_rate=0.5)
    oracle = pykeen_model(umls_folder)
    wanted = torch.stack([0.5 * gradient(oracle, triple, ["tail", "head"]).square().sum() for triple in few])
    torch.testing.assert_close(
        torch.tensor([row["self_influence"] for row in found]), wanted.sort(descending=True).values, rtol=1e-4, atol=0
    )
    assert [[row["head"], row["relation"], row["tail"]] for row in found] == [
        few[row["train_index"]].tolist() for row in found
    ]
    assert analyzer.compute_self_influence(few, learning_rate=0.5, top_k=3) == found[:3]


def test_models_and_triples_come_in_any_form(umls_folder: Path, umls: tuple, few: np.ndarray) -> None:
    """A folder, a model file or a live model; a table, an array, a tensor, lists or a triples factory."""
    from pykeen.triples import CoreTriplesFactory

    model, _, table = umls
    wanted = TracInAnalyzer(model, device="cpu").compute_influences_for_test_triple((3, 1, 7), few)
    live = pykeen_model(umls_folder)
    for given in (umls_folder, str(umls_folder / "trained_model.pkl"), live):
        analyzer = TracInAnalyzer(given, device="cpu")
        assert analyzer.compute_influences_for_test_triple([3, 1, 7], few) == wanted
    assert live.state_dict().keys() == read_model(umls_folder).tensors.keys()
    factory = CoreTriplesFactory(torch.as_tensor(few.astype(np.int64)), 135, 46, create_inverse_triples=True)
    for triples in (TripleTable(few, table.train_index[:60], 0), torch.as_tensor(few), few.tolist(), factory):
        assert analyzer.compute_influences_for_test_triple((3, 1, 7), triples) == wanted
    assert analyzer.compute_influences_for_test_triple((3, 1, 7), few[:0]) == []


def test_a_model_that_cannot_be_saved_is_named() -> None:
    """A live model must be one that could have been saved."""
    module = torch.nn.Linear(1, 1)
    module.activation = lambda x: x
    with pytest.raises(UnsupportedModel, match=r"this Linear cannot be saved .*: pass a saved model's path"):
        TracInAnalyzer(module)


def test_wrong_calls_are_named(analyzer: TracInAnalyzer, umls: tuple, few: np.ndarray) -> None:
    """Ids, shapes and numbers out of range are refused with what was found."""
    with pytest.raises(IdOutOfRange, match="triple 0: tail id 135 is out of range: the model has 135"):
        analyzer.compute_influences_for_test_triple((0, 0, 135), few)
    with pytest.raises(IdOutOfRange, match="triple 1: relation id 46"):
        analyzer.compute_influences_for_test_triple((0, 0, 1), [[0, 0, 1], [0, 46, 1]])
    with pytest.raises(BadRequest, match=r"triples have shape \(2, 2\)"):
        analyzer.compute_self_influence([[0, 1], [0, 1]])
    with pytest.raises(BadRequest, match="top_k is 0"):
        analyzer.compute_influences_for_test_triple((0, 0, 1), few, top_k=0)
    with pytest.raises(BadRequest, match="top_k is -1"):
        analyzer.compute_self_influence(few, top_k=-1)
    with pytest.raises(BadRequest, match="learning rate nan is not a finite number"):
        analyzer.compute_influences_for_test_triple((0, 0, 1), few, learning_rate=float("nan"))
    with pytest.raises(BadRequest, match="type float64, need"):
        analyzer.compute_influences_for_test_triple((0.7, 0.2, 1.9), few)
    with pytest.raises(BadRequest, match=r"triples have shape \(1, 2\)"):
        analyzer.compute_influences_for_test_triple((0, 0), few)
    with pytest.raises(BadRequest, match="batch_size is 0"):
        TracInAnalyzer(umls[0], batch_size=0)
    with pytest.raises(BadRequest, match="sample rate is 0"):
        analyzer.compute_influences_sampled((0, 0, 1), few, sample_rate=0)


def test_infinite_influences_are_named(umls: tuple, few: np.ndarray) -> None:
    """Finite parameters may give infinite gradients: the triple is named, and nothing is returned."""
    model: ModelFile = umls[0]
    name = "interaction.hr1d.0.weight"
    wild = replace(model, tensors={**model.tensors, name: model.tensors[name] * 1e30})
    analyzer = TracInAnalyzer(wild, device="cpu")
    with pytest.raises(NonFinite, match=r"influence of training triple \d+ .* is not finite"):
        analyzer.compute_influences_for_test_triple(few[0], few)
