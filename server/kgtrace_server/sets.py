"""Sets of training triples, in labels."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from kgtrace_indexer import answers as ids
from kgtrace_server.because import reasoned
from kgtrace_server.labels import Labels
from kgtrace_server.numbers import finite, shortest, whole
from kgtrace_server.schema.questions import SetRequest, WhatIfRequest
from kgtrace_server.schema.sets import (
    Completion,
    Convinced,
    Fact,
    PredictedRank,
    PredictedScore,
    SetExplanation,
    WhatIf,
)
from kgtrace_store.errors import BadRequest

if TYPE_CHECKING:
    from kgtrace_indexer.explaining.explainer import SetExplainer
    from kgtrace_indexer.query.attributor import Attributor


class Sets:
    """Answers questions about sets, with the errors of `SetExplainer` and `Labels`."""

    def __init__(self, explainer: "SetExplainer", attributor: "Attributor", labels: Labels) -> None:
        self._explainer = explainer
        self._training = attributor.training
        self._reasons = attributor.reasons
        self._labels = labels
        self._generation = attributor.manifest.generation

    def what_if(self, question: WhatIfRequest, triple: np.ndarray, wanted: Callable[[], bool]) -> WhatIf:
        """Predict what the model says of a triple (3,) without a set.

        Raises `BadRequest` for members of the set that are no indexed training triples.
        """
        found = self._explainer.what_if(
            triple,
            self._train_index(question),
            direction=question.direction,
            top_k=question.top_k,
            wanted=wanted,
        )
        return WhatIf(
            generation=self._generation,
            triple=self._labels.triple(*found.triple),
            direction=question.direction,
            **self._without(found),
        )

    def explanation(self, question: SetRequest, triple: np.ndarray, wanted: Callable[[], bool]) -> SetExplanation:
        """Find the set that explains a triple (3,)."""
        common: dict[str, Any] = {
            "generation": self._generation,
            "mode": question.mode,
            "triple": self._labels.triple(*triple.tolist()),
            "direction": question.direction,
        }
        if question.mode == "necessary":
            found = self._explainer.necessary(
                triple,
                max_facts=question.max_facts,
                candidates=question.candidates,
                connected=question.connected,
                direction=question.direction,
                top_k=question.top_k,
                wanted=wanted,
            )
            return SetExplanation(
                **common,
                **self._without(found.what_if),
                suffices=found.suffices,
                certified=True,
                candidates=found.candidates,
                rival=None if found.rival is None else self._labels.entity(found.rival),
                margin=None if found.rival is None else found.margin,
                entities=(),
            )
        if question.connected or question.candidates != "head":
            raise BadRequest("candidates and connected are of mode necessary: a sufficient set is of the head's facts")
        told = self._explainer.sufficient(
            triple,
            max_facts=question.max_facts,
            entities=question.entities,
            seed=question.seed,
            direction=question.direction,
            wanted=wanted,
        )
        return SetExplanation(
            **common,
            facts=tuple(self._facts(told.triple, told.train_index, told.triples, None)),
            suffices=told.suffices,
            certified=False,
            candidates=told.candidates,
            score=None,
            rank=PredictedRank(float(told.ranks.mean()), float(told.ranks_after.mean())),
            rival=None,
            margin=None,
            measured_on=None,
            completions=(),
            entities=tuple(self._convinced(told)),
        )

    def _train_index(self, question: WhatIfRequest) -> np.ndarray:
        """Return the rows of the training triples of a set."""
        rows: list[int] = []
        for place, member in enumerate(question.without):
            if isinstance(member, int):
                rows.append(member)
                continue
            positions = self._training.positions(*self._labels.triple_ids(member))
            if not len(positions):
                shown = f"({member.head}, {member.relation}, {member.tail})"
                raise BadRequest(f"without[{place}]: {shown} is no indexed training triple")
            rows += self._training.train_index[positions].tolist()
        return np.array(rows, np.int64)

    def _without(self, found: ids.WhatIf) -> dict[str, Any]:
        """Return the fields that both answers share."""
        low, high = found.interval or (None, None)
        rows = zip(found.entities.tolist(), shortest(found.scores), shortest(found.scores_after), strict=True)
        return {
            "facts": tuple(self._facts(found.triple, found.train_index, found.triples, found.changes)),
            "score": PredictedScore(finite(found.score), finite(found.score_after), low, high),
            "rank": PredictedRank(whole(found.rank), whole(found.rank_after)),
            "measured_on": found.measured_on,
            "completions": tuple(
                Completion(self._labels.entity(entity), PredictedScore(before, after)) for entity, before, after in rows
            ),
        }

    def _facts(
        self, prediction: ids.Ids, train_index: np.ndarray, triples: np.ndarray, changes: np.ndarray | None
    ) -> Iterable[Fact]:
        values = [None] * len(triples) if changes is None else changes.tolist()
        for index, triple, change in zip(train_index.tolist(), triples.tolist(), values, strict=True):
            related = reasoned(self._reasons, self._labels, prediction, tuple(triple))
            yield Fact(train_index=index, change=change, **related)

    def _convinced(self, told: ids.SufficientSet) -> Iterable[Convinced]:
        scores = zip(shortest(told.scores), shortest(told.scores_after), strict=True)
        ranks = zip(told.ranks.tolist(), told.ranks_after.tolist(), strict=True)
        for entity, score, (before, after) in zip(told.entities.tolist(), scores, ranks, strict=True):
            yield Convinced(
                self._labels.entity(entity), PredictedScore(*score), PredictedRank(whole(before), whole(after))
            )
