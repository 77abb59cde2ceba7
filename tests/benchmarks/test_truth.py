"""The parts of the retraining benchmark that can be wrong without anybody noticing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.truth import deletion, errors, groups, whole
from benchmarks.truth.fisher import Fisher
from benchmarks.truth.graphs import Graph
from benchmarks.truth.scores import influences, preconditioned_self_influences, same_pair, shared_entities
from benchmarks.truth.statistics import correlation, mean, ratio, spearman
from benchmarks.truth.training import KnownTails, Recipe, Sampled, tail_scores, train
from pykeen.models import ERModel
from scipy.stats import spearmanr

from kgtrace_indexer import ModelFile, read_model
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING
from kgtrace_store import Vocabulary

RECIPE = Recipe(height=3, width=4, channels=3, epochs=40, batch=16, rate=0.02)
SAMPLED = Sampled(softmax=True, height=3, width=4, channels=3, epochs=40, batch=16, rate=0.1, random=4, spread=0.1)
ENTITIES, RELATIONS = 12, 3


@pytest.fixture(scope="module")
def graph() -> Graph:
    rng = np.random.default_rng(0)
    keys = rng.choice(ENTITIES * RELATIONS * ENTITIES, 80, replace=False)
    triples = np.stack(np.unravel_index(keys, (ENTITIES, RELATIONS, ENTITIES)), 1)
    vocabulary = Vocabulary([f"e{i}" for i in range(ENTITIES)], [f"r{i}" for i in range(RELATIONS)])
    return Graph(triples[:60], triples[60:], vocabulary)


@pytest.fixture(scope="module")
def trained(graph: Graph) -> ERModel:
    """A model by the recipe, with seed 0. Not to be changed."""
    return train(graph, graph.train, RECIPE, seed=0).model


@pytest.fixture(scope="module")
def model(trained: ERModel, tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    file = tmp_path_factory.mktemp("truth") / "model.pkl"
    torch.save(trained, file)
    return read_model(file)


def test_spearman_is_scipys_column_by_column() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (40, 6)), rng.standard_normal((40, 6))  # x has ties
    wanted = [spearmanr(x[:, i], y[:, i]).statistic for i in range(6)]
    np.testing.assert_allclose(spearman(x, y), wanted, atol=1e-12)


def test_a_method_that_makes_no_difference_has_no_correlation() -> None:
    np.testing.assert_array_equal(spearman(np.ones((5, 2)), np.random.default_rng(0).random((5, 2))), 0)


def test_the_interval_of_a_mean_holds_it() -> None:
    found = mean(np.random.default_rng(0).standard_normal(200))
    assert found["low"] < found["mean"] < found["high"]


def test_intervals_of_two_outcomes_hold_what_they_are_of() -> None:
    x, noise = np.random.default_rng(0).random((2, 100))
    assert ratio(3 * x, x) == pytest.approx({"mean": 3, "low": 3, "high": 3})
    found = correlation(x, x + noise)
    assert found["mean"] == pytest.approx(spearmanr(x, x + noise).statistic)
    assert 0 < found["low"] < found["mean"] < found["high"] < 1


def test_training_learns_the_triples_and_the_same_seed_learns_the_same(graph: Graph, trained: ERModel) -> None:
    same = train(graph, graph.train, RECIPE, seed=0).model
    head, relation, tail = torch.from_numpy(graph.train).T
    with torch.inference_mode():
        scores = tail_scores(trained, head, 2 * relation)
        again = tail_scores(same, head, 2 * relation)
    assert scores.gather(1, tail[:, None]).mean() > scores.mean() + 0.5
    torch.testing.assert_close(scores, again, rtol=0, atol=0)


def test_scores_are_pykeens(graph: Graph, trained: ERModel) -> None:
    head, relation, _ = torch.from_numpy(graph.test).T
    with torch.inference_mode():
        wanted = trained.score_t(torch.stack([head, 2 * relation], 1))
        torch.testing.assert_close(tail_scores(trained, head, 2 * relation), wanted)


@pytest.mark.parametrize("recipe", [replace(RECIPE, model="ComplEx"), replace(RECIPE, model="TransE", softmax=True)])
def test_other_models_learn_and_score_as_pykeen(graph: Graph, recipe: Recipe) -> None:
    trained = train(graph, graph.train, recipe, seed=0).model
    head, relation, tail = torch.from_numpy(graph.train).T
    with torch.inference_mode():
        wanted = trained.score_t(torch.stack([head, 2 * relation], 1))
        torch.testing.assert_close(tail_scores(trained, head, 2 * relation), wanted)
    assert wanted.gather(1, tail[:, None]).mean() > wanted.mean() + 0.5


@pytest.mark.parametrize("model", ["ConvE", "ComplEx", "TransE"])
def test_a_model_whose_tails_were_sampled_learns_and_scores_as_pykeen(graph: Graph, model: str) -> None:
    trained = train(graph, graph.train, replace(SAMPLED, model=model), seed=0).model
    head, relation, tail = torch.from_numpy(graph.train).T
    some = torch.tensor([5, 2, 7])
    with torch.inference_mode():
        wanted = trained.score_t(torch.stack([head, 2 * relation], 1))
        torch.testing.assert_close(tail_scores(trained, head, 2 * relation), wanted, rtol=1e-4, atol=1e-4)
        found = tail_scores(trained, head, 2 * relation, some)
        torch.testing.assert_close(found, wanted[:, some], rtol=1e-4, atol=1e-4)
    assert wanted.gather(1, tail[:, None]).mean() > wanted.mean() + 0.5


def test_sampled_tails_are_the_known_ones_and_some_more() -> None:
    torch.manual_seed(0)
    found = replace(SAMPLED, random=3).candidates(torch.tensor([7, 2, 7]), 100).tolist()
    assert {2, 7} < set(found)
    assert found == sorted(set(found))
    assert len(found) <= 5


def test_what_was_trained_before_is_found_again() -> None:
    """Outcomes are kept by the recipe's text: another field of `Recipe` would make hours of training undone."""
    assert str(Recipe()) == (
        "Recipe(model='ConvE', softmax=False, height=8, width=8, channels=32, epochs=100, batch=128, rate=0.003, "
        "smoothing=0.1, checkpoints=())"
    )


def test_known_tails_hold_each_triple_in_both_directions() -> None:
    known = KnownTails.of(np.array([[0, 1, 2], [0, 1, 3], [2, 0, 0]]))
    rows = torch.tensor([4, 0, 2, 1, 3])
    place, tail = known.of_pairs(rows)
    found = {tuple(pair): set(tail[place == i].tolist()) for i, pair in enumerate(known.pairs[rows].tolist())}
    assert found == {(0, 2): {2, 3}, (2, 3): {0}, (3, 3): {0}, (2, 0): {0}, (0, 1): {2}}
    assert len(tail) == 6


def test_influences_are_by_row_of_the_training_triples(graph: Graph, model: ModelFile) -> None:
    found = influences(model, graph, graph.train)
    np.testing.assert_allclose(found.of.diagonal(), found.self_influence, rtol=1e-4)
    np.testing.assert_allclose(found.of, found.of.T, rtol=1e-3, atol=1e-5 * abs(found.of).max())


def test_preconditioned_self_influences_are_what_triples_have_on_themselves(graph: Graph, model: ModelFile) -> None:
    one = influences(
        model, graph, graph.train, loss="bce", directions="both", sides=("tail", "head"), damping=AUTO_DAMPING
    )
    found = preconditioned_self_influences(model, graph, "bce")
    np.testing.assert_allclose(found, one.of.diagonal(), rtol=5e-3)
    assert (found < one.self_influence).all()


@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_fisher_is_the_dense_formula(damping: float) -> None:
    gradients, tests = np.random.default_rng(0).standard_normal((2, 20, 30))
    fisher = Fisher.of(gradients @ gradients.T)
    sigma = damping * (gradients**2).sum(1).mean()
    inverse = np.linalg.inv(gradients.T @ gradients + sigma * np.eye(30))
    found = fisher.scores(gradients @ tests.T, damping)
    np.testing.assert_allclose(found, sigma * gradients @ inverse @ tests.T, atol=1e-8)


def test_fisher_of_some_directions_is_the_dense_formula_of_what_they_hold() -> None:
    gradients, tests = np.random.default_rng(0).standard_normal((2, 20, 30))
    values, vectors = np.linalg.eigh(gradients.T @ gradients)
    leading = (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T
    sigma = (gradients**2).sum(1).mean()
    wanted = sigma * gradients @ np.linalg.inv(leading + sigma * np.eye(30)) @ tests.T
    found = Fisher.of(gradients @ gradients.T).scores(gradients @ tests.T, 1.0, rank=4)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_rules_count_what_is_shared(graph: Graph) -> None:
    small = Graph(np.array([[0, 0, 1], [0, 0, 2], [3, 0, 1], [1, 1, 0], [4, 0, 4]]), graph.test, graph.vocabulary)
    test = np.array([[0, 0, 1]])
    assert same_pair(small, test)[:, 0].tolist() == [2, 1, 1, 0, 0]
    assert shared_entities(small, test)[:, 0].tolist() == [2, 1, 1, 2, 0]


def test_errors_are_made_up_and_few(graph: Graph) -> None:
    found, wrong = errors.corrupted(graph, seed=0)
    true = {tuple(triple) for part in (graph.train, graph.test) for triple in part.tolist()}
    assert wrong.sum() == round(errors.SHARE * len(graph.train))
    assert all((tuple(triple) not in true) == bad for triple, bad in zip(found.train.tolist(), wrong, strict=True))


def test_whoever_suspects_the_errors_alone_is_right() -> None:
    wrong = np.array([True, False, False, True])
    assert set(errors.judged(wrong, wrong.astype(float)).values()) == {1.0}
    assert errors.judged(wrong, -wrong.astype(float))["AUC"] == 0


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A name for the graph, with a recipe, whose files go away."""
    monkeypatch.setitem(whole.PROBLEMS, "toy", ("toy", RECIPE))
    monkeypatch.setattr(whole, "FOLDER", tmp_path)
    return "toy"


def test_errors_are_ranked_by_every_method(graph: Graph, toy: str) -> None:
    found = errors.ranked(toy, graph, seed=0)
    assert all(0 <= value <= 1 for row in found.values() for value in row.values())


@pytest.mark.slow
def test_deletion_compares_with_models_that_were_trained_on_everything(graph: Graph, toy: str) -> None:
    graph = replace(graph, test=graph.train[:20])  # of which some are ranked first
    found = deletion.measure(toy, graph, seeds=2, predictions=3)
    assert found["detectable"] > 0
    for row in found["rows"]:
        assert row["deleted"] <= row["k"] * found["predictions"]
        assert row["logit"]["low"] <= row["logit"]["mean"] <= row["logit"]["high"]
    again = deletion.measure(toy, graph, seeds=2, predictions=3)  # nothing is trained again
    for row, same in zip(found["rows"], again["rows"], strict=True):
        assert row | {"seconds": 0} == same | {"seconds": 0}


def test_reverses_say_the_same_from_the_other_end() -> None:
    train = np.array([[0, 1, 2], [2, 1, 0], [2, 0, 0], [3, 1, 3]])
    found = deletion.reverses(train, np.array([[0, 1, 2], [3, 1, 3], [0, 0, 1]]))
    assert np.argwhere(found).tolist() == [[1, 0], [3, 1]]


def test_large_graphs_are_asked_methods_that_there_are() -> None:
    assert set(deletion.FEWER) < set(deletion.FEW) < set(deletion.methods())


def test_who_deletes_the_same_as_a_method_before_has_no_row() -> None:
    def row(method: str, restricted: bool, k: int, change: float) -> dict[str, object]:
        value = {"mean": change, "low": change, "high": change}
        return {"method": method, "restricted": restricted, "k": k} | dict.fromkeys(deletion.MEASURES.values(), value)

    rows = [row("a", False, 1, -1), row("a", False, 4, -2), row("a", True, 1, -1), row("a", True, 4, -2)]
    rows += [row("b", False, 1, -1), row("b", False, 4, -3)]
    found = {"predictions": 9, "seeds": 2, "detectable": 0.1, "control": {"mrr": 0.5, "hits@1": 0.4}, "rows": rows}
    lines = deletion.table("toy", found).splitlines()
    assert [line.split(" | ")[:2] for line in lines[4:]] == [["| a", "all"], ["| b", "all"]]
    assert lines[2].startswith("| | candidates | 1: logit | 1: MRR | 1: Hits@1 | 4: logit |")
    assert "-3.00 (-3.00…-3.00)" in lines[5]


def test_nothing_deleted_has_no_effect() -> None:
    control = np.random.default_rng(0).random((3, 3, 10)) + 1
    found = deletion.effect(control, control)
    assert {value for each in found.values() for value in each.values()} == {0.0}


def test_a_method_whose_sums_are_the_losses_foretells_them() -> None:
    score = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    deleted = np.array([1, 4])
    found = groups.foretold(score, deleted, -score[deleted].sum(0))
    assert found == pytest.approx({"mean": 1, "low": 1, "high": 1})


def test_facts_are_chosen_one_after_another_from_what_is_left(graph: Graph, toy: str) -> None:
    explained = whole.Explained(whole.Whole(toy, graph), graph.test[:3])
    seen = []

    def last(e: whole.Explained) -> np.ndarray:
        """Say that what stands last of what is left matters most, if anything."""
        seen.append(len(e.graph.train))
        return np.arange(len(e.graph.train))[:, None] * np.array([1, 1, 0])

    found = groups.one_after_another(explained, last, np.array([7, 7, 59]))
    assert found.tolist() == [[7, 7, 59], [58, 58, 0], [57, 57, 1], [56, 56, 2]]
    assert seen == [58, 56, 54]


@pytest.mark.slow
def test_groups_compare_with_models_that_were_trained_on_everything(graph: Graph, toy: str) -> None:
    graph = replace(graph, test=graph.train[:20])
    found = groups.measure(toy, graph, seeds=2, predictions=3)
    for row in found["rows"].values():
        assert row["deleted"]["0"] <= 3
        assert row["deleted"]["together"] <= 12
        assert row["ratio"]["mean"] == pytest.approx(row["together"]["mean"] / row["four alone, added"]["mean"])
    assert "one after another" in groups.shown({toy: found | {"seeds": 2}})
