"""A `SetExplainer` without a model: each training triple left out takes 1 from the score."""

from typing import Any

import numpy as np

from kgtrace_indexer.answers import NecessarySet, SufficientSet, WhatIf
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_store.errors import BadRequest


class FakeExplainer:
    """Says the same of every triple, and names the first training triples."""

    def __init__(self, training: TrainingSet) -> None:
        self._training = training

    def what_if(self, triple: np.ndarray, without: np.ndarray, *, top_k: int = 10, **_: Any) -> WhatIf:
        positions = np.flatnonzero(np.isin(self._training.train_index, without))
        if not len(positions):
            raise BadRequest(f"train_index {without[0]} is of no indexed training triple")
        head, relation, tail = triple.tolist()
        count = len(positions)
        return WhatIf(
            triple=(head, relation, tail),
            train_index=self._training.train_index[positions],
            triples=self._training.triples[positions],
            changes=-np.ones(count),
            score=7.5,
            score_after=7.5 - count,
            interval=(6.5 - count, 8.5 - count),
            measured_on="ConvE on UMLS",
            rank=1.0,
            rank_after=2.5,
            entities=np.arange(5)[:top_k],
            scores=np.full(5, 3.25, np.float32)[:top_k],
            scores_after=np.full(5, 3.5, np.float32)[:top_k],
        )

    def necessary(self, triple: np.ndarray, *, max_facts: int, top_k: int, **_: Any) -> NecessarySet:
        without = self._training.train_index[: min(2, max_facts)]
        return NecessarySet(self.what_if(triple, without, top_k=top_k), max_facts > 1, 3, 0.5, 20)

    def sufficient(self, triple: np.ndarray, *, entities: int, **_: Any) -> SufficientSet:
        head, relation, tail = triple.tolist()
        told = np.arange(min(entities, 4))
        return SufficientSet(
            triple=(head, relation, tail),
            train_index=self._training.train_index[:2],
            triples=self._training.triples[:2],
            suffices=False,
            candidates=12,
            entities=told,
            scores=np.full(len(told), 0.5, np.float32),
            scores_after=np.full(len(told), 2.5, np.float32),
            ranks=told + 4.0,
            ranks_after=told + 1.0,
        )
