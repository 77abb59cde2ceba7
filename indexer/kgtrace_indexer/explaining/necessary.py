"""The smallest set of training triples without which a prediction falls."""

from collections.abc import Sequence

import numpy as np

from kgtrace_indexer.answers import NecessarySet
from kgtrace_indexer.explaining.completions import Completions, Moves
from kgtrace_indexer.explaining.predictor import Predictor
from kgtrace_indexer.explaining.smallest import SmallestSet
from kgtrace_indexer.explaining.what_if import what_if
from kgtrace_indexer.names import SetCandidates
from kgtrace_store.errors import BadRequest


def necessary(
    predictor: Predictor,
    completions: Completions,
    *,
    max_facts: int,
    candidates: SetCandidates,
    connected: bool,
    top_k: int,
) -> NecessarySet:
    """Find the smallest set that takes the target from the first rank.

    Raises `BadRequest` for a target that the model does not rank first, and the errors of `Predictor`.
    """
    rank = predictor.rank(completions, completions.scores)
    if rank != 1:
        raise BadRequest(
            f"the model ranks this {completions.direction} {rank:g}, and a necessary set takes one from rank 1; "
            "what-if predicts what any set does"
        )
    head, _, tail = completions.triple.tolist()
    positions = predictor.touching({"head": {head}, "tail": {tail}, "both": {head, tail}}[candidates])
    triples = predictor.training.triples[positions]
    search = SmallestSet(max_facts, _bridges(triples, head, tail) if connected else None)
    if len(positions):
        _look(search, predictor, completions, positions)
    best = search.answer
    chosen = positions[:0] if best is None else positions[best.facts]
    return NecessarySet(
        what_if=what_if(predictor, completions, chosen, top_k),
        suffices=best is not None and best.margin > 0,
        rival=None if best is None else best.rival,
        margin=0.0 if best is None else best.margin,
        candidates=len(positions),
    )


def _look(search: SmallestSet, predictor: Predictor, completions: Completions, positions: np.ndarray) -> None:
    """Look at all rivals, given the places of the candidates (c,).

    Candidates move the rows that the target reads, and with these the scores of all completions. They also move the row
    of the entity at their other end, which only the completion with that entity reads: P, which is costly, is applied
    there only if a bound, with the identity in its place, leaves that completion within reach.
    """
    scores, count = completions.scores.astype(np.float64), len(positions)
    gradients, target_rows = predictor.gradients(positions), completions.target_rows
    near = {table: np.isin(each.row, target_rows[table]) for table, each in gradients.items()}
    shared = predictor.moves({table: each.only(near[table]) for table, each in gradients.items()})
    of_target = completions.changes(shared, count, np.array([completions.target])).numpy()
    far = {table: gradients[table].only(~near[table]) for table in completions.entity_tables}
    linked = np.isin(np.arange(len(scores)), np.concatenate([each.row for each in far.values()]))
    rivals = predictor.rivals(completions)
    for entities in completions.blocks(count, rivals & ~linked):
        effects = completions.changes(shared, count, entities).numpy() - of_target
        search.look(effects, scores[completions.target] - scores[entities], entities)
    for entities in completions.blocks(count, rivals & linked):
        effects = completions.changes(shared, count, entities).numpy() - of_target
        most = effects + _most(predictor, completions, far, count, entities)
        within = search.within_reach(most, scores[completions.target] - scores[entities])
        if within.any():
            entities, effects = entities[within], effects[:, within]
            moves = predictor.moves({table: each.only(np.isin(each.row, entities)) for table, each in far.items()})
            effects += completions.changes(moves, count, entities).numpy()
            search.look(effects, scores[completions.target] - scores[entities], entities)


def _most(predictor: Predictor, completions: Completions, far: Moves, count: int, entities: np.ndarray) -> np.ndarray:
    """Return upper bounds of what c = `count` candidates change by the rows of entities (n,) alone, (c, n)."""
    bounds, norms = np.zeros((count, len(entities)), np.float32), completions.norms(entities)
    for table, gradients in far.items():
        at = np.minimum(np.searchsorted(entities, gradients.row), len(entities) - 1)
        mine = entities[at] == gradients.row
        bounds[gradients.query[mine], at[mine]] += predictor.longest(table, gradients.grad[mine]) * norms[at[mine]]
    return bounds


def _bridges(triples: np.ndarray, head: int, tail: int) -> Sequence[np.ndarray] | None:
    """Return the least sets of candidates (c, 3) that lead from a head to a tail; None where both are one entity.

    All candidates touch one of these, so a set is connected with both if, and only if, it holds one of the least sets:
    a candidate between head and tail, or one of the head and one of the tail with the same entity at the other end.
    """
    if head == tail:
        return None
    ends = triples[:, [0, 2]]
    of_head, of_tail = (ends == head).any(1), (ends == tail).any(1)
    bridges = [np.array([fact]) for fact in np.flatnonzero(of_head & of_tail)]
    far = np.where(of_head, ends.sum(1) - head, ends.sum(1) - tail)  # the other end
    for fact in np.flatnonzero(of_head & ~of_tail & (far != head)):
        bridges += [np.array([fact, other]) for other in np.flatnonzero(of_tail & ~of_head & (far == far[fact]))]
    return bridges
