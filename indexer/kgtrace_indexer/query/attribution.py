"""Attributions of test triples: score and rank, and the top training triples of a search or scan."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Attribution
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.names import Direction, Score
from kgtrace_indexer.query.certify import TopK
from kgtrace_store.vocabulary import Vocabulary

_VANISHED = float(np.finfo(np.float32).tiny)
"""‖g'‖² below which g' has, at best, a few correct digits."""


def known_ids(training: TrainingSet, triple: np.ndarray, direction: Direction) -> np.ndarray:
    """Return the entities that make a training triple in place of the tail (or the head)."""
    head, relation, tail = (int(i) for i in triple)
    return training.tails_of(head, relation) if direction == "tail" else training.heads_of(relation, tail)


def attribute(
    training: TrainingSet,
    vocabulary: Vocabulary,
    triples: np.ndarray,
    scores: np.ndarray,
    tops: Sequence[TopK],
    values: Mapping[Score, Tensor],
    direction: Direction,
    *,
    score: Score,
    loss: tuple[str, Sequence[float]],
    self_influence: Sequence[float],
    squared_norm: Sequence[float],
) -> list[Attribution]:
    """Return attributions of test triples (b, 3), given the scores (b, E) of all entities in tail's or head's place.

    `values` are the influences by each score, side by side; `loss` is the loss's name and values; `squared_norm` are
    the squared norms of the query gradients.
    """
    targets = triples[:, 2 if direction == "tail" else 0]
    query, entity = _known(training, triples, direction, scores.shape[1])
    ranks = filtered_ranks(scores, targets, query, entity)
    in_training = np.bincount(query, entity == targets[query], len(targets)) > 0
    rows = torch.cat([top.rows for top in tops]).numpy()
    sizes = [len(top.rows) for top in tops]
    influences = {name: tensor.numpy() for name, tensor in values.items()}
    norms = np.sqrt(training.squared_norm[score][rows].astype(np.float64) * np.repeat(squared_norm, sizes))
    cosine = np.divide(influences[score], norms, out=np.zeros_like(influences[score]), where=norms > 0)

    def split(column: np.ndarray) -> list[np.ndarray]:
        return np.split(column, np.cumsum(sizes)[:-1])

    train_index, named = split(np.asarray(training.train_index[rows])), split(np.asarray(training.triples[rows]))
    cosines, by_score = split(cosine), {name: split(influence) for name, influence in influences.items()}
    return [
        Attribution(
            triple=(int(triple[0]), int(triple[1]), int(triple[2])),
            score=float(scores[i, targets[i]]),
            rank=float(ranks[i]),
            in_training=bool(in_training[i]),
            loss=loss[1][i],
            self_influence=self_influence[i],
            notes=_notes(training, vocabulary, loss[0], triple, squared_norm[i]),
            certified=tops[i].certified,
            bound_gap=tops[i].bound_gap,
            candidates=tops[i].candidates,
            exact_terms=tops[i].exact_terms,
            train_index=train_index[i],
            triples=named[i],
            influence=by_score[score][i],
            cosine=cosines[i],
            tracin=by_score["tracin"][i],
            preconditioned=by_score["preconditioned"][i] if "preconditioned" in by_score else None,
        )
        for i, triple in enumerate(triples)
    ]


def _known(
    training: TrainingSet, triples: np.ndarray, direction: Direction, entities: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the known entities of all test triples (b, 3): whose they are, and the entity, (m,) int64, each once."""
    known = [known_ids(training, triple, direction) for triple in triples]
    query = np.arange(len(known)).repeat([len(ids) for ids in known])
    return np.divmod(np.unique(query * entities + np.concatenate(known)), entities)


def filtered_ranks(scores: np.ndarray, targets: np.ndarray, query: np.ndarray, entity: np.ndarray) -> np.ndarray:
    """Return filtered realistic ranks of targets (b,) among all entities but known ones, (b,)."""
    own = scores[np.arange(len(targets)), targets]
    others = entity != targets[query]
    query, entity = query[others], entity[others]
    filtered = scores[query, entity]
    higher, equal = (
        compare(scores, own[:, None]).sum(1) - np.bincount(query, compare(filtered, own[query]), len(targets))
        for compare in (np.greater, np.equal)
    )
    ranks: np.ndarray = 1 + higher + (equal - 1) / 2  # the target equals itself
    return ranks


def _notes(
    training: TrainingSet, vocabulary: Vocabulary, loss: str, triple: np.ndarray, squared_norm: float
) -> list[str]:
    """Return remarks on a test triple (3,), the squared norm of whose gradient of the loss is `squared_norm`."""
    head, relation, tail = (int(i) for i in triple)
    absent = [
        f"entity {vocabulary.entities[entity]!r}"
        for entity in dict.fromkeys((head, tail))
        if not training.has_entity(entity)
    ]
    if not training.has_relation(relation):
        absent.append(f"relation {vocabulary.relations[relation]!r}")
    remarks = [f"{named} occurs in no training triple: none says anything of it" for named in absent]
    if squared_norm < _VANISHED:
        remarks.append(
            f"the gradient of the loss {loss} vanishes in float32 for this triple: influences on it are 0 or nearly "
            "so, and their order says nothing"
        )
    return remarks
