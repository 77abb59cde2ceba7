"""What is said of one test triple: its score and rank, and the training triples that a search or scan named."""

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


def attribution(
    training: TrainingSet,
    triple: np.ndarray,
    scores: Tensor,
    found: Found,
    direction: Direction,
    *,
    loss: float,
    self_influence: float,
    squared_norm: float,
    notes: list[str],
) -> Attribution:
    """Return what is known of a test triple (3,), with the scores (E,) of all entities in its tail's or head's place.

    `squared_norm` is that of the gradient that training gradients were multiplied with.
    """
    known = known_ids(training, triple, direction)
    head, relation, tail = (int(i) for i in triple)
    target = tail if direction == "tail" else head
    score = float(scores[target])
    better, equal = scores > score, scores == score
    for counted in (better, equal):
        counted[torch.as_tensor(known.astype(np.int64))] = False
    equal[target] = False
    rows = found.rows.numpy()
    norms = np.sqrt(training.squared_norm[rows].astype(np.float64) * squared_norm)
    influence = found.influence.numpy()
    return Attribution(
        triple=(head, relation, tail),
        score=score,
        rank=1 + int(better.sum()) + int(equal.sum()) / 2,
        in_training=bool(np.isin(target, known)),
        loss=loss,
        self_influence=self_influence,
        certified=found.certified,
        bound_gap=found.bound_gap,
        candidates=found.candidates,
        exact_terms=found.exact_terms,
        train_index=np.asarray(training.train_index[rows]),
        triples=np.asarray(training.triples[rows]),
        influence=influence,
        cosine=np.divide(influence, norms, out=np.zeros_like(influence), where=norms > 0),
        notes=notes,
    )


def notes(
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
