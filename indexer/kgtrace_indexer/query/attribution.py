"""What is said of test triples: score and rank, and the training triples that a search or scan named."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Attribution
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.names import Direction
from kgtrace_indexer.query.certify import Found
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
    found: Sequence[Found],
    direction: Direction,
    *,
    loss: tuple[str, Sequence[float]],
    self_influence: Sequence[float],
    squared_norm: Sequence[float],
) -> list[Attribution]:
    """Return what is known of test triples (b, 3), given the scores (b, E) of all entities in tail's or head's place.

    `loss` is its name and values; `squared_norm` is that of the gradients that training gradients were multiplied with.
    """
    targets = triples[:, 2 if direction == "tail" else 0]
    known = [np.unique(known_ids(training, triple, direction)) for triple in triples]
    ranks = _ranks(scores, targets, known)
    rows, influences = _split([each.rows for each in found]), _split([each.influence for each in found])
    return [
        Attribution(
            triple=(int(triple[0]), int(triple[1]), int(triple[2])),
            score=float(scores[i, targets[i]]),
            rank=float(ranks[i]),
            in_training=bool(np.isin(targets[i], known[i])),
            loss=loss[1][i],
            self_influence=self_influence[i],
            notes=_notes(training, vocabulary, loss[0], triple, squared_norm[i]),
            certified=found[i].certified,
            bound_gap=found[i].bound_gap,
            candidates=found[i].candidates,
            exact_terms=found[i].exact_terms,
            train_index=np.asarray(training.train_index[rows[i]]),
            triples=np.asarray(training.triples[rows[i]]),
            influence=influences[i],
            cosine=_cosines(training, rows[i], influences[i], squared_norm[i]),
        )
        for i, triple in enumerate(triples)
    ]


def _split(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Return tensors as arrays; joined first, since each conversion takes microseconds."""
    return np.split(torch.cat(list(tensors)).numpy(), np.cumsum([len(tensor) for tensor in tensors])[:-1])


def _cosines(training: TrainingSet, rows: np.ndarray, influence: np.ndarray, squared_norm: float) -> np.ndarray:
    norms = np.sqrt(training.squared_norm[rows].astype(np.float64) * squared_norm)
    found: np.ndarray = np.divide(influence, norms, out=np.zeros_like(influence), where=norms > 0)
    return found


def _ranks(scores: np.ndarray, targets: np.ndarray, known: Sequence[np.ndarray]) -> np.ndarray:
    """Return filtered realistic ranks of targets (b,) among all entities but those that are known, (b,)."""
    every = np.arange(len(targets))
    own = scores[every, targets]
    query, entity = every.repeat([len(ids) for ids in known]), np.concatenate(known).astype(np.int64)
    query, entity = query[entity != targets[query]], entity[entity != targets[query]]
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
