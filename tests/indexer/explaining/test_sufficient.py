"""Facts that give a prediction to other entities, against moved rows and a search by hand."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import Attributor, TripleTable
from kgtrace_indexer.explaining import completions
from kgtrace_indexer.explaining.explainer import SetExplainer
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


def changes(
    attributor: Attributor, triple: np.ndarray, facts: np.ndarray, given: int, direction: Direction
) -> np.ndarray:
    """Return what facts (m, 3) change in the scores of all completions of a triple by its given entity's row, (m, E).

    A derivative of each score by automatic differentiation, along the move that the inverse of F + σ² makes of the
    gradient of each fact's score.
    """
    predictor = SetExplainer(attributor).predictor
    featurizer, lists = attributor.featurizer, predictor.preconditioner.rows
    entities, sigma = len(attributor.vocabulary.entities), 3.0 * predictor.preconditioner.mean_squares[0]
    completed = np.repeat(triple[None], entities, 0)
    completed[:, 2 if direction == "tail" else 0] = np.arange(entities)
    found = np.zeros((len(facts), entities))
    with torch.inference_mode():
        told = RowQueries.of(featurizer.training_terms(facts))
        tests = RowQueries.of(featurizer.score_terms(completed, direction))
    for table, queries in told.items():
        if "relation" in table:
            continue
        moment = lists.moment(table, given) + sigma * np.eye(lists.width(table))
        for query, row, grad in zip(queries.query, queries.row, queries.grad, strict=True):
            if row == given:
                move = predictor.factor * np.linalg.solve(moment, -grad)
                mine = tests[table].row == given
                found[query] += np.bincount(tests[table].query[mine], tests[table].grad[mine] @ move, entities)
    return found


@pytest.mark.parametrize("direction", ["tail", "head"])
def test_facts_are_chosen_one_by_one(
    attributor: Attributor, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the one after which the mean reciprocal rank is highest; scores and ranks are those of moved rows."""
    monkeypatch.setattr(completions, "BLOCK", 6)
    training, explainer = attributor.training, SetExplainer(attributor)
    triple = np.asarray(training.triples[20], np.int64)
    given, column = (0, 2) if direction == "tail" else (2, 0)
    found = explainer.sufficient(triple, max_facts=3, entities=ENTITIES, seed=3, direction=direction)
    mine = np.asarray(training.triples[(training.triples[:, [0, 2]] == triple[given]).any(1)], np.int64)
    mine = mine[(mine != triple).any(1)]
    assert found.candidates == len(mine)
    assert 0 < len(found.entities) <= ENTITIES
    effects, scores, rivals = [], [], []
    for entity in found.entities:
        other, facts = triple.copy(), mine.copy()
        other[given] = entity
        facts[:, [0, 2]] = np.where(mine[:, [0, 2]] == triple[given], entity, mine[:, [0, 2]])
        assert not (training.triples == other).all(1).any()
        effects.append(changes(attributor, other, facts, int(entity), direction))
        scores.append(attributor.candidate_scores(other[None], direction)[0].astype(np.float64))
        rivals.append(explainer.predictor.rivals(explainer.predictor.completions(other, direction)))
    target = int(triple[column])

    def ranks(chosen: list[int]) -> np.ndarray:
        after = [s + e[chosen].sum(0) for s, e in zip(scores, effects, strict=True)]
        pairs = [(s[r], s[target]) for s, r in zip(after, rivals, strict=True)]
        return np.array([1 + (others > own).sum() + (others == own).sum() / 2 for others, own in pairs])

    np.testing.assert_array_equal(found.ranks, ranks([]))
    assert (found.ranks > 1).all()
    chosen: list[int] = []
    for fact in found.triples:
        quality = [0 if i in chosen else (1 / ranks([*chosen, i])).mean() for i in range(len(mine))]
        assert max(quality) > (1 / ranks(chosen)).mean()
        chosen.append(next(i for i in range(len(mine)) if (mine[i] == fact).all()))
        assert quality[chosen[-1]] == max(quality)
    np.testing.assert_array_equal(found.ranks_after, ranks(chosen))
    for score, before, effect in zip(found.scores_after, scores, effects, strict=True):
        assert score == pytest.approx(before[target] + effect[chosen, target].sum(), abs=1e-3)
    assert found.suffices == bool((found.ranks_after == 1).all())


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
