"""What the service does, without HTTP: resolve labels, attribute, label the answer."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from kgtrace_indexer.answers import Attribution, Direction, Order, Restriction
from kgtrace_server.wire import (
    Entities,
    Explanation,
    IndexInfo,
    Influence,
    Influences,
    Named,
    NamedTriple,
    Relations,
)
from kgtrace_store.errors import KgtraceError

if TYPE_CHECKING:
    from kgtrace_indexer.engine import Attributor

Field = Literal["head", "relation", "tail"]
Ref = int | str
"""An entity or relation: a string is a label, an integer an id."""

_MOST_DIGITS = 18
"""Of an id in a text: more do not fit 64 bits, and Python refuses to read numbers of thousands."""


@dataclass(frozen=True, slots=True)
class Question:
    """Test triples, and what to say about them."""

    triples: Sequence[tuple[Ref, Ref, Ref]]
    """Head, relation and tail of each."""
    top_k: int = 10
    order: Order = "proponents"
    exact: bool = False
    max_candidates: int | None = None
    must: Mapping[Field, Sequence[Ref]] = field(default_factory=dict)
    """By field of the training triple: one of these."""
    must_not: Mapping[Field, Sequence[Ref]] = field(default_factory=dict)
    """By field of the training triple: none of these."""
    direction: Direction = "tail"

    @property
    def alike(self) -> Hashable:
        """Questions in which this is equal differ in their triples alone."""
        conditions = [
            frozenset((f, frozenset(refs)) for f, refs in condition.items()) for condition in (self.must, self.must_not)
        ]
        return (self.top_k, self.order, self.exact, self.max_candidates, self.direction, *conditions)


class Service:
    """Answers in labels and names, ready to be written as JSON."""

    def __init__(self, attributor: "Attributor") -> None:
        self._attributor = attributor
        self._vocabulary = attributor.vocabulary
        self._decimal_entities = frozenset(filter(str.isdecimal, self._vocabulary.entities))
        self._decimal_relations = frozenset(filter(str.isdecimal, self._vocabulary.relations))

    @property
    def generation(self) -> str:
        """Id of the generation that answers."""
        return self._attributor.manifest.generation

    def influences(self, question: Question) -> Influences:
        """Explain test triples.

        Raises `UnknownLabel` and `IdOutOfRange` for what the vocabulary lacks, and what `Attributor.query` raises.
        """
        return self._attributed(question, [self._ids(question)])[0]

    def influences_together(
        self, questions: Sequence[Question], wanted: Callable[[], bool] = lambda: True
    ) -> list[Influences | Exception]:
        """Answer questions that are `alike` in one computation: each gets its answer, or the error `influences` raises.

        ``wanted`` tells whether anybody still waits; what takes long is given up otherwise. ``seconds`` of each answer
        are those of the whole computation.
        """
        resolved: list[np.ndarray | KgtraceError] = []
        for question in questions:
            try:
                resolved.append(self._ids(question))
            except KgtraceError as e:
                resolved.append(e)
        answers = iter(self._answered(questions[0], [ids for ids in resolved if isinstance(ids, np.ndarray)], wanted))
        return [next(answers) if isinstance(ids, np.ndarray) else ids for ids in resolved]

    def entities(self, q: str = "", limit: int = 20) -> Entities:
        """Return up to ``limit`` entities whose label or name equals, starts with or contains ``q``."""
        found = self._vocabulary.search_entities(q, limit)
        return {"generation": self.generation, "entities": [self._entity(i) for i in found]}

    def relations(self, q: str = "", limit: int = 20) -> Relations:
        """Return up to ``limit`` relations, found as in `entities`."""
        found = self._vocabulary.search_relations(q, limit)
        return {"generation": self.generation, "relations": [self._relation(i) for i in found]}

    def entity_from_text(self, text: str) -> int:
        """Return the id of an entity given by its label or, where no label is the same, by its id in decimals.

        Raises `UnknownEntity` and `IdOutOfRange`.
        """
        return self._vocabulary.resolve_entity(_ref(text, self._decimal_entities))

    def relation_from_text(self, text: str) -> int:
        """Return the id of a relation, as in `entity_from_text`."""
        return self._vocabulary.resolve_relation(_ref(text, self._decimal_relations))

    def triple_from_text(self, head: str, relation: str, tail: str) -> tuple[int, int, int]:
        """Return the ids of a triple, each as in `entity_from_text`."""
        return self.entity_from_text(head), self.relation_from_text(relation), self.entity_from_text(tail)

    def refs_from_text(self, head: str, relation: str, tail: str) -> tuple[Ref, Ref, Ref]:
        """Tell labels from ids as `triple_from_text` does, without looking either up."""
        return (
            _ref(head, self._decimal_entities),
            _ref(relation, self._decimal_relations),
            _ref(tail, self._decimal_entities),
        )

    def index_info(self) -> IndexInfo:
        """Describe the index that answers."""
        manifest = self._attributor.manifest
        built = datetime.fromisoformat(manifest.created_at)
        configuration = dict(manifest.configuration)
        return {
            "generation": self.generation,
            "built_at": manifest.created_at,
            "age_seconds": max(0.0, (datetime.now(UTC) - built).total_seconds()),
            "fingerprint": manifest.fingerprint,
            "model": manifest.provenance.get("interaction"),
            "loss": configuration.get("loss"),
            "layers": configuration.get("layers"),
            "projection": {"type": "pca"} | {k: configuration.get(k) for k in ("dim", "landmarks", "seed")},
            "counts": dict(manifest.counts),
            "configuration": configuration,
        }

    def _ids(self, question: Question) -> np.ndarray:
        """(b, 3) int64."""
        resolve = self._resolvers()
        ids = [[resolve[f](ref) for f, ref in zip(resolve, triple, strict=True)] for triple in question.triples]
        return np.array(ids, np.int64).reshape(-1, 3)

    def _answered(
        self, question: Question, parts: Sequence[np.ndarray], wanted: Callable[[], bool]
    ) -> Sequence[Influences | Exception]:
        try:
            return self._attributed(question, parts, wanted) if parts else []
        except Exception as e:
            if len(parts) == 1:
                return [e]
        # What fails for one must not fail for the others.
        return [outcome for part in parts for outcome in self._answered(question, [part], wanted)]

    def _attributed(
        self, question: Question, parts: Sequence[np.ndarray], wanted: Callable[[], bool] = lambda: True
    ) -> list[Influences]:
        """Explain several arrays of ids, each (b, 3), as one question's options say: one answer for each array."""
        answer = self._attributor.query(
            np.concatenate(parts),
            top_k=question.top_k,
            order=question.order,
            exact=question.exact,
            max_candidates=question.max_candidates,
            restriction=Restriction(self._resolved(question.must), self._resolved(question.must_not)),
            direction=question.direction,
            wanted=wanted,
        )
        seconds = answer.seconds
        explanations = map(self._explanation, answer.attributions)
        return [
            {
                "generation": self.generation,
                "results": list(islice(explanations, len(part))),
                "seconds": {"gradient": seconds.gradient, "search": seconds.search, "rerank": seconds.rerank},
            }
            for part in parts
        ]

    def _resolvers(self) -> dict[Field, Callable[[Ref], int]]:
        vocabulary = self._vocabulary
        return {
            "head": vocabulary.resolve_entity,
            "relation": vocabulary.resolve_relation,
            "tail": vocabulary.resolve_entity,
        }

    def _resolved(self, condition: Mapping[Field, Sequence[Ref]]) -> dict[str, Collection[int]]:
        resolve = self._resolvers()
        return {f: frozenset(resolve[f](ref) for ref in refs) for f, refs in condition.items()}

    def _explanation(self, found: Attribution) -> Explanation:
        rows = zip(
            found.train_index.tolist(),
            found.triples.tolist(),
            _shortest(found.influence),
            _shortest(found.cosine),
            strict=True,
        )
        influences: list[Influence] = [
            {"train_index": index, "triple": self._triple(*triple), "influence": influence, "cosine": cosine}
            for index, triple, influence, cosine in rows
        ]
        return {
            "triple": self._triple(*found.triple),
            "score": _finite(found.score),
            "rank": found.rank,
            "in_training": found.in_training,
            "loss": _finite(found.loss),
            "self_influence": _finite(found.self_influence),
            "certified": found.certified,
            "bound_gap": _finite(found.bound_gap),
            "candidates": found.candidates,
            "exact_terms": found.exact_terms,
            "influences": influences,
        }

    def _triple(self, head: int, relation: int, tail: int) -> NamedTriple:
        return {"head": self._entity(head), "relation": self._relation(relation), "tail": self._entity(tail)}

    def _entity(self, i: int) -> Named:
        vocabulary = self._vocabulary
        return {"id": i, "label": vocabulary.entities[i], "name": vocabulary.entity_names.get(i)}

    def _relation(self, i: int) -> Named:
        vocabulary = self._vocabulary
        return {"id": i, "label": vocabulary.relations[i], "name": vocabulary.relation_names.get(i)}


def _ref(text: str, decimal_labels: frozenset[str]) -> Ref:
    if text.isascii() and text.isdecimal() and text not in decimal_labels and len(text) <= _MOST_DIGITS:
        return int(text)
    return text


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def _shortest(values: np.ndarray) -> Iterable[float | None]:
    """Return float32 as the shortest decimals that read back the same: 0.83, not 0.8299999833106995."""
    return [_finite(float(str(value))) for value in values]
