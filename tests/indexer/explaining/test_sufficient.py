"""Facts that give a prediction to other entities, against moved rows and a search by hand."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import Attributor, TripleTable
from kgtrace_indexer.explaining import completions, sufficient
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.names import Direction
from kgtrace_store.errors import Abandoned, BadRequest
from tests.indexer.explaining.indexes import Data, alive, indexed
from tests.indexer.models.zoo import Save, nations as nations, save as save

ENTITIES = 4


@pytest.fixture(scope="module", params=[("ConvE", True), ("ComplEx", False)], ids=lambda case: case[0])
def attributor(
    request: pytest.FixtureRequest, save: Save, nations: Data, tmp_path_factory: pytest.TempPathFactory
) -> Attributor:
    """Of a model with inverse relations and one without, in two shards."""
    return indexed(tmp_path_factory.mktemp("index"), alive(save, *request.param), nations, shard_size=40)


class Told:
    """Facts that are told of an entity, (m, 3), and what they do with its row, with dense matrices."""

    def __init__(
        self, attributor: Attributor, triple: np.ndarray, facts: np.ndarray, given: int, direction: Direction
    ) -> None:
        """`triple` has the entity in the place of another, of which the `facts` are."""
        predictor = SetExplainer(attributor).predictor
        featurizer, lists = attributor.featurizer, predictor.preconditioner.rows
        column = 0 if direction == "tail" else 2
        told = facts.copy()
        told[:, [0, 2]] = np.where(facts[:, [0, 2]] == given, triple[column], facts[:, [0, 2]])
        completed = np.repeat(triple[None], len(attributor.vocabulary.entities), 0)
        completed[:, 2 - column] = np.arange(len(completed))
        self.scores = attributor.candidate_scores(triple[None], direction)[0].astype(np.float64)
        self.lacking = self._believed(attributor, facts) - self._believed(attributor, told)
        self.rivals = predictor.rivals(predictor.completions(triple, direction))
        self.target = triple[2 - column]
        (table,) = (name for name in lists.tables if "relation" not in name)
        with torch.inference_mode():
            self.slopes = -self._of_row(featurizer.training_terms(told), table, triple[column])
            self.gradients = self._of_row(featurizer.score_terms(completed, direction), table, triple[column])
        moment = lists.moment(table, triple[column]) / predictor.preconditioner.mean_squares[0]
        hessian = (moment + 3.0 * np.eye(len(moment))) * predictor.preconditioner.mean_squares[0] / 10
        self.steps = np.linalg.solve(hessian, self.slopes.T).T

    @staticmethod
    def _believed(attributor: Attributor, facts: np.ndarray) -> np.ndarray:
        """Return the scores of facts (m, 3), summed over the directions that are indexed."""
        sides: list[tuple[Direction, int]] = [("tail", 2), ("head", 0)]
        sides = sides if attributor.featurizer.directions == "both" else sides[:1]
        all_ = [attributor.candidate_scores(facts, d)[np.arange(len(facts)), facts[:, at]] for d, at in sides]
        return np.sum(all_, 0, dtype=np.float64)

    @staticmethod
    def _of_row(terms: Terms, table: str, row: int) -> np.ndarray:
        queries = RowQueries.of(terms)[table]
        found = np.zeros((len(terms), queries.grad.shape[1]))
        found[queries.query[queries.row == row]] = queries.grad[queries.row == row]
        return found

    def after(self, chosen: list[int]) -> np.ndarray:
        """Return the scores of all completions with some of the facts, one after another, (E,)."""
        move = np.zeros(self.steps.shape[1])
        for fact in chosen:
            lacking = self.lacking[fact] - self.slopes[fact] @ move
            move = move + max(lacking, 0) / (1 + self.slopes[fact] @ self.steps[fact]) * self.steps[fact]
        return self.scores + self.gradients @ move

    def rank(self, chosen: list[int]) -> float:
        """Return the rank of the target with some of the facts."""
        after = self.after(chosen)
        others, own = after[self.rivals], after[self.target]
        return float(1 + (others > own).sum() + (others == own).sum() / 2)

    def log_probability(self, chosen: list[int]) -> float:
        """Return that of the target with some of the facts."""
        after = self.after(chosen)
        return float(after[self.target] - np.logaddexp.reduce(np.append(after[self.rivals], after[self.target])))


@pytest.mark.parametrize(("tried", "kept"), [(64, 1 << 20), (64, 0), (3, 1 << 20)])
@pytest.mark.parametrize("direction", ["tail", "head"])
def test_facts_are_chosen_one_by_one(
    attributor: Attributor, direction: Direction, tried: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the one of the most promising after which the target is most probable, until the target ranks high."""
    monkeypatch.setattr(completions, "BLOCK", 6)
    monkeypatch.setattr(sufficient, "_TRIED", tried)
    monkeypatch.setattr(sufficient, "_KEPT", kept)
    training, explainer = attributor.training, SetExplainer(attributor)
    triple = np.asarray(training.triples[20], np.int64)
    given = 0 if direction == "tail" else 2
    found = explainer.sufficient(triple, max_facts=3, entities=ENTITIES, seed=3, direction=direction)
    mine = np.asarray(training.triples[(training.triples[:, [0, 2]] == triple[given]).any(1)], np.int64)
    mine = mine[(mine != triple).any(1)]
    assert found.candidates == len(mine)
    assert 0 < len(found.entities) <= ENTITIES
    others = []
    for entity in found.entities:
        other = triple.copy()
        other[given] = entity
        assert not (training.triples == other).all(1).any()
        others.append(Told(attributor, other, mine, int(triple[given]), direction))

    def believed(chosen: list[int]) -> float:
        return float(np.mean([other.log_probability(chosen) for other in others]))

    np.testing.assert_array_equal(found.ranks, [other.rank([]) for other in others])
    assert (found.ranks > 1).all()
    chosen: list[int] = []

    def promising() -> list[int]:
        left = [i for i in range(len(mine)) if i not in chosen]
        left.sort(key=lambda i: -sum(other.after([*chosen, i])[other.target] for other in others))
        return left[:tried]

    for fact in found.triples:
        assert np.mean([1 / other.rank(chosen) for other in others]) < 0.9
        best = max(believed([*chosen, i]) for i in promising())
        assert best - believed(chosen) > 0.1 * (best - believed([]))
        added = next(i for i in range(len(mine)) if (mine[i] == fact).all())
        assert added in promising()
        chosen.append(added)
        assert believed(chosen) == pytest.approx(best, abs=1e-5)
    ranks = [other.rank(chosen) for other in others]
    if len(chosen) < 3 and np.mean(1 / np.array(ranks)) < 0.9:
        more = max(believed([*chosen, i]) for i in promising())
        assert more - believed(chosen) <= 0.1 * max(more - believed([]), 0)
    np.testing.assert_array_equal(found.ranks_after, ranks)
    for score, other in zip(found.scores_after, others, strict=True):
        assert score == pytest.approx(other.after(chosen)[other.target], abs=1e-3)
    assert found.suffices == bool((found.ranks_after == 1).all())


def test_a_set_suffices_where_the_target_ranks_first(attributor: Attributor) -> None:
    """With all entities; some sets do, some do not, and none of a ConvE that has learnt little."""
    explainer, asked = SetExplainer(attributor), np.asarray(attributor.training.triples[:40:3], np.int64)
    found = [explainer.sufficient(triple, max_facts=8, entities=1) for triple in asked]
    little = attributor.manifest.provenance["interaction"] == "ConvE"
    assert {each.suffices for each in found} == ({False} if little else {True, False})
    for each in found:
        assert each.suffices == bool((each.ranks_after == 1).all())


def test_without_rows_of_entities_nothing_moves(save: Save, nations: Data, tmp_path: Path) -> None:
    """An index of relation rows alone names no facts."""
    model = alive(save, "ComplEx", True)
    layers = ("relation_representations.0._embeddings.weight",)
    attributor = indexed(tmp_path, model, nations, layers=layers)
    found = SetExplainer(attributor).sufficient(np.asarray(attributor.training.triples[20], np.int64), entities=2)
    assert (len(found.triples), found.suffices) == (0, False)
    np.testing.assert_array_equal(found.ranks_after, found.ranks)
    np.testing.assert_array_equal(found.scores_after, found.scores)


def test_entities_may_be_named(attributor: Attributor) -> None:
    """Those among them that lack the prediction are looked at; the rest, and the head itself, have nothing to learn."""
    explainer, triple = SetExplainer(attributor), np.asarray(attributor.training.triples[20], np.int64)
    drawn = explainer.sufficient(triple, max_facts=2, entities=np.int64(3))  # type: ignore[arg-type]
    assert len(drawn.entities) == 3
    named = explainer.sufficient(triple, max_facts=2, entities=[*drawn.entities, int(triple[0])])
    assert named.entities.tolist() == sorted(drawn.entities)
    assert named.train_index.tolist() == drawn.train_index.tolist()
    with pytest.raises(BadRequest, match="no other entity that a set could convince"):
        explainer.sufficient(triple, entities=[int(triple[0])])


def test_a_seed_draws_entities(attributor: Attributor) -> None:
    """Equal seeds the same, others others."""
    explainer, triple = SetExplainer(attributor), np.asarray(attributor.training.triples[20], np.int64)
    first, again, other = (explainer.sufficient(triple, entities=3, seed=seed).entities for seed in (0, 0, 5))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()


def test_an_entity_without_facts_convinces_nobody(save: Save, nations: Data, tmp_path: Path) -> None:
    """Nor does its prediction rest on any: both sets are empty."""
    vocabulary, table = nations
    last = len(vocabulary.entities) - 1
    apart = (table.ids[:, [0, 2]] != last).all(1)
    few = TripleTable(table.ids[apart], table.train_index[apart], 0)
    explainer = SetExplainer(attributor := indexed(tmp_path, save("ComplEx", False).model, (vocabulary, few)))
    asked = np.stack([np.full(9, last), np.arange(9), np.zeros(9, np.int64)], 1)
    first = next(one.triples[0] for one in attributor.complete(asked, top_k=1, filtered=True) if one.ranks[0] == 1)
    told, needed = explainer.sufficient(first), explainer.necessary(first)
    assert (told.candidates, len(told.triples), told.suffices) == (0, 0, False)
    np.testing.assert_array_equal(told.ranks_after, told.ranks)
    assert last not in told.entities
    assert (needed.candidates, len(needed.what_if.triples), needed.suffices, needed.rival) == (0, 0, False, None)
    assert needed.what_if.score_after == needed.what_if.score


def test_wrong_questions_are_refused(attributor: Attributor) -> None:
    """Numbers below what they can be."""
    explainer, triple = SetExplainer(attributor), np.array([0, 0, 1])
    for wrong, words in (
        ({"entities": 0}, "entities is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_facts": 0}, "max_facts"),
    ):
        with pytest.raises(BadRequest, match=words):
            explainer.sufficient(triple, **wrong)  # type: ignore[arg-type]


def test_an_explanation_that_nobody_waits_for_ends(attributor: Attributor) -> None:
    """At the next look, of each kind."""
    explainer, triple = SetExplainer(attributor), np.asarray(attributor.training.triples[20], np.int64)
    looks = count()
    with pytest.raises(Abandoned):
        explainer.sufficient(triple, wanted=lambda: next(looks) < 3)
    assert next(looks) == 4
    asked = np.asarray(attributor.training.triples[::9], np.int64)
    first = next(one for one in attributor.complete(asked, top_k=1, filtered=True) if one.ranks[0] == 1)
    with pytest.raises(Abandoned):
        explainer.necessary(first.triples[0], wanted=lambda: False)
    with pytest.raises(Abandoned):
        explainer.what_if(triple, attributor.training.train_index[:1], wanted=lambda: False)
