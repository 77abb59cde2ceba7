"""The smallest set without which a prediction falls, against all subsets of its candidates."""

from itertools import combinations

import numpy as np
import pytest

from kgtrace_indexer import Attributor
from kgtrace_indexer.answers import NecessarySet
from kgtrace_indexer.explaining import completions
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_indexer.names import Direction, SetCandidates
from kgtrace_store.errors import BadRequest
from tests.indexer.explaining.indexes import Data, alive, changes, indexed
from tests.indexer.models.zoo import Save, nations as nations, save as save

MOST = 3


@pytest.fixture(scope="module", params=["ConvE", "ComplEx", "TransE"])
def attributor(
    request: pytest.FixtureRequest, save: Save, nations: Data, tmp_path_factory: pytest.TempPathFactory
) -> Attributor:
    """Of models with inverse relations."""
    return indexed(tmp_path_factory.mktemp("index"), alive(save, request.param, True), nations)


def first(attributor: Attributor, direction: Direction) -> list[np.ndarray]:
    """Return some triples that the model ranks first: one for each of a few sources and relations."""
    asked = np.asarray(attributor.training.triples[::9], np.int64)
    found = attributor.complete(asked, top_k=1, direction=direction, filtered=True)
    return [one.triples[0] for one in found if one.ranks[0] == 1]


def joined(triples: np.ndarray, head: int, tail: int) -> bool:
    """Return whether triples (k, 3) and two entities make one connected graph."""
    reached = {head}
    for _ in triples:
        for one, other in [*triples[:, [0, 2]].tolist(), *triples[:, [2, 0]].tolist()]:
            if one in reached:
                reached.add(other)
    return {tail, *triples[:, [0, 2]].ravel().tolist()} <= reached


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("candidates", ["head", "tail", "both"])
@pytest.mark.parametrize("direction", ["tail", "head"])
def test_it_is_the_smallest_of_all_subsets(
    attributor: Attributor,
    direction: Direction,
    candidates: SetCandidates,
    connected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of those of one size it has the largest margin; so has one where none suffices."""
    monkeypatch.setattr(completions, "BLOCK", 6)
    training, explainer = attributor.training, SetExplainer(attributor)
    for triple in first(attributor, direction)[:3]:
        found = explainer.necessary(
            triple, max_facts=MOST, candidates=candidates, connected=connected, direction=direction
        )
        head, _, tail = triple.tolist()
        sides = {"head": [head], "tail": [tail], "both": [head, tail]}[candidates]
        positions = np.flatnonzero(np.isin(training.triples[:, [0, 2]], sides).any(1))
        assert found.candidates == len(positions)
        effects = changes(attributor, triple, positions, direction)
        scores = attributor.candidate_scores(triple[None], direction)[0].astype(np.float64)
        target = int(triple[2 if direction == "tail" else 0])
        rivals = explainer.predictor.rivals(explainer.predictor.completions(triple, direction))
        gaps, effects = scores[target] - scores[rivals], effects[:, rivals] - effects[:, [target]]
        margins = {
            chosen: float((effects[list(chosen)].sum(0) - gaps).max())
            for size in range(1, MOST + 1)
            for chosen in combinations(range(len(positions)), size)
            if not connected or joined(np.asarray(training.triples[positions[list(chosen)]]), head, tail)
        }
        check(found, margins, 1e-3 * abs(effects).max())


def check(found: NecessarySet, margins: dict[tuple[int, ...], float], close: float) -> None:
    """Compare with the margin of every set."""
    if not margins:
        assert (found.suffices, found.rival, len(found.what_if.triples)) == (False, None, 0)
        return
    passing = [len(chosen) for chosen, margin in margins.items() if margin > 0]
    assert found.suffices == bool(passing)
    if passing:
        assert len(found.what_if.triples) == min(passing)
        margins = {chosen: margin for chosen, margin in margins.items() if len(chosen) == min(passing)}
        assert found.what_if.rank_after > 1
    assert found.margin == pytest.approx(max(margins.values()), abs=close)


def test_no_row_moves_further_than_its_bound(attributor: Attributor) -> None:
    """Else rivals that were not looked at might have had a smaller set."""
    predictor = SetExplainer(attributor).predictor
    gradients = predictor.gradients(np.arange(len(attributor)))
    for table, moved in predictor.moves(gradients).items():
        bounds, norms = predictor.longest(table, gradients[table].grad), np.linalg.norm(moved.grad, axis=1)
        assert (norms <= bounds * (1 + 1e-9)).all()
        assert norms.max() > 0.5 * bounds.max()


def test_a_prediction_of_another_rank_has_none(attributor: Attributor) -> None:
    """The error says which rank it has."""
    asked = np.asarray(attributor.training.triples[:1], np.int64)
    (found,) = attributor.complete(asked, top_k=5, filtered=True)
    with pytest.raises(BadRequest, match=f"ranks this tail {found.ranks[4]:g}, and a necessary set"):
        SetExplainer(attributor).necessary(found.triples[4])
    with pytest.raises(BadRequest, match="max_facts is 0"):
        SetExplainer(attributor).necessary(found.triples[0], max_facts=0)
