"""Explanations of a prediction as sets of training triples."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from kgtrace_indexer.answers import NecessarySet, SufficientSet, WhatIf
from kgtrace_indexer.explaining.necessary import necessary
from kgtrace_indexer.explaining.predictor import Predictor
from kgtrace_indexer.explaining.sufficient import sufficient
from kgtrace_indexer.explaining.what_if import what_if
from kgtrace_indexer.names import Direction, SetCandidates
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_indexer.query.checks import require_positive
from kgtrace_indexer.threads import one_thread
from kgtrace_store.errors import BadRequest


class SetExplainer:
    """Predicts what a model would say without sets of training triples, and finds the sets that matter.

    Every method calls `wanted` from time to time, true while a caller waits for its answer, and raises `Abandoned` once
    it is false. All raise `BadRequest` for an index without a preconditioned score, or with one of another loss than
    ``removal`` or of several checkpoints, and `IdOutOfRange` for ids beyond the model's tables.
    """

    def __init__(self, attributor: Attributor) -> None:
        self.predictor = Predictor(attributor)
        """What all predictions come from."""
        self._training = attributor.training

    def what_if(
        self,
        triple: np.ndarray,
        without: np.ndarray,
        *,
        direction: Direction = "tail",
        top_k: int = 10,
        wanted: Callable[[], bool] = lambda: True,
    ) -> WhatIf:
        """Predict the scores of all completions of a triple if training triples had been left out.

        Parameters
        ----------
        triple
            (3,) int64: head, relation, tail ids.
        without
            (m,) int64, at least one: the ``train_index`` of each; none counts twice.
        direction
            Predict tails, or heads.
        top_k
            How many of the best completions to return.

        Raises `BadRequest`, also for a ``train_index`` that is not indexed.
        """
        require_positive("top_k", top_k)
        with torch.inference_mode(), one_thread():
            completions = self.predictor.completions(triple, direction, wanted)
            return what_if(self.predictor, completions, self._positions(without), top_k)

    def necessary(
        self,
        triple: np.ndarray,
        *,
        max_facts: int = 4,
        candidates: SetCandidates = "head",
        connected: bool = False,
        direction: Direction = "tail",
        top_k: int = 10,
        wanted: Callable[[], bool] = lambda: True,
    ) -> NecessarySet:
        """Find the smallest set of training triples whose removal is predicted to take a triple from the first rank.

        Parameters
        ----------
        triple
            (3,) int64: head, relation, tail ids; the model must rank the tail (or head) first.
        max_facts
            The most training triples of a set, at least 1.
        candidates
            Training triples that have the triple's head, its tail, or either.
        connected
            Only sets with a path of their own training triples from the triple's head to its tail, whichever way they
            point.
        direction
            Explain the tail, or the head.
        top_k
            How many of the best completions without the set to return.

        Raises `BadRequest` for a triple that is not ranked first, too.
        """
        require_positive("top_k", top_k)
        require_positive("max_facts", max_facts)
        with torch.inference_mode(), one_thread():
            return necessary(
                self.predictor,
                self.predictor.completions(triple, direction, wanted),
                max_facts=max_facts,
                candidates=candidates,
                connected=connected,
                top_k=top_k,
            )

    def sufficient(
        self,
        triple: np.ndarray,
        *,
        max_facts: int = 4,
        entities: int | Sequence[int] = 10,
        seed: int = 0,
        direction: Direction = "tail",
        wanted: Callable[[], bool] = lambda: True,
    ) -> SufficientSet:
        """Find training triples of the head that are predicted to give its tail to other entities, too.

        Each of the other entities is thought to learn the same triples in place of the head; only its own row moves
        (Rossi et al., 2022, https://doi.org/10.1145/3514221.3517887). Training triples are added one by one, each time
        the one after which the tail is most probable, until its mean reciprocal rank is 0.9 or none does much for its
        log-probability: sets of less than two are the best, larger ones need not be.

        Parameters
        ----------
        triple
            (3,) int64: head, relation, tail ids.
        max_facts
            The most training triples of a set, at least 1.
        entities
            How many other entities to draw, at least 1, of those that occur in training triples, or the ids of some.
            Those are looked at that have not the triple in training, and with which the model does not rank the tail
            first. There may be fewer.
        seed
            Of the draw, at least 0.
        direction
            ``head`` explains the head, by training triples of the tail.

        Raises `BadRequest`, also where the tail ranks first with all entities that were looked at.
        """
        require_positive("max_facts", max_facts)
        if isinstance(entities, int | np.integer):
            require_positive("entities", entities)
        if seed < 0:
            raise BadRequest(f"seed is {seed}, must be at least 0")
        with torch.inference_mode(), one_thread():
            completions = self.predictor.completions(triple, direction, wanted)
            return sufficient(self.predictor, completions, max_facts=max_facts, entities=entities, seed=seed)

    def _positions(self, train_index: np.ndarray) -> np.ndarray:
        """Return the places of training triples among the indexed ones, ascending, each once."""
        asked = np.unique(train_index)
        if not len(asked):
            raise BadRequest("there are no training triples to leave out")
        if not np.issubdtype(asked.dtype, np.integer):
            raise BadRequest(f"train_index has type {asked.dtype}, needs integers")
        stored = self._training.train_index
        positions = np.flatnonzero(np.isin(stored, asked))
        if len(positions) < len(asked):
            missing = np.setdiff1d(asked, stored[positions])
            raise BadRequest(f"train_index {missing[0]} is of no indexed training triple")
        return positions
