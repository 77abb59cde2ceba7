"""What the service does, without HTTP: resolve labels, attribute, label the answer."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeGuard, TypeVar, get_args

import numpy as np

from kgtrace_indexer.answers import Attribution, Completions, Restriction, Sums
from kgtrace_indexer.names import Damping, Direction, Group, Order, Ranking, Score
from kgtrace_server.wire import (
    Aggregate,
    Entities,
    Explanation,
    IndexInfo,
    Influence,
    Influences,
    InfluenceSum,
    Named,
    NamedTriple,
    Predictions,
    Relations,
    SelfInfluences,
)
from kgtrace_store.errors import BadRequest, KgtraceError

if TYPE_CHECKING:
    from kgtrace_indexer.query.attributor import Attributor

Field = Literal["head", "relation", "tail"]
Ref = int | str
"""An entity or relation: a string is a label, an integer an id."""
Condition = Mapping[Field, Sequence[Ref]]
"""By field of the training triple: entities or relations."""

Q = TypeVar("Q")
A = TypeVar("A")

_ANY: Condition = {}


@dataclass(frozen=True, slots=True)
class Question:
    """Test triples, and what to say about them."""

    triples: Sequence[tuple[Ref, Ref, Ref]]
    """Head, relation and tail of each."""
    top_k: int = 10
    order: Order = "proponents"
    exact: bool = False
    max_candidates: int | None = None
    must: Condition = field(default_factory=dict)
    """By field of the training triple: one of these."""
    must_not: Condition = field(default_factory=dict)
    """By field of the training triple: none of these."""
    within_hops: int | None = None
    """How near training triples are to the test triple, as in `Restriction`."""
    direction: Direction = "tail"
    score: Score | None = None
    """None for what the index was built with."""
    damping: Damping | None = None
    """σ² of the preconditioned score, as in `Attributor.query`; None for the index's own."""

    @property
    def alike(self) -> Hashable:
        """Questions in which this is equal differ in their triples alone."""
        conditions = [
            frozenset((f, frozenset(refs)) for f, refs in condition.items()) for condition in (self.must, self.must_not)
        ]
        options = (self.top_k, self.order, self.exact, self.max_candidates, self.within_hops, self.direction)
        return (*options, self.score, self.damping, *conditions)


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A triple whose tail (or head) the model is to predict."""

    head: Ref | None
    relation: Ref
    tail: Ref | None
    top_k: int = 10
    filtered: bool = False
    """Leave out what makes a training triple."""

    @property
    def direction(self) -> Direction:
        """What is missing. Raises `BadRequest` where not exactly one of head and tail is."""
        if (self.head is None) == (self.tail is None):
            given = "neither" if self.head is None else "both"
            raise BadRequest(f"exactly one of head and tail must be given: {given} were")
        return "tail" if self.tail is None else "head"

    @property
    def alike(self) -> Hashable:
        """Questions in which this is equal differ in their triples alone."""
        return (self.direction, self.top_k, self.filtered)


@dataclass(frozen=True, slots=True)
class Grouping:
    """Test triples, and by what to sum the influences on all of them."""

    triples: Sequence[tuple[Ref, Ref, Ref]]
    by: Group
    top_k: int = 10
    order: Order = "proponents"
    exact: bool = False
    must: Condition = field(default_factory=dict)
    must_not: Condition = field(default_factory=dict)
    within_hops: int | None = None
    direction: Direction = "tail"
    score: Score | None = None
    damping: Damping | None = None


class _GroupName(TypedDict):
    group: Named | NamedTriple
    train_index: int | None


class Service:
    """Answers in labels and names, ready to be written as JSON."""

    def __init__(self, attributor: "Attributor") -> None:
        self._attributor = attributor
        self._vocabulary = attributor.vocabulary

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
        return _together(questions, self._ids, lambda parts: self._attributed(questions[0], parts, wanted))

    def predictions(self, question: Incomplete) -> Predictions:
        """Return the model's best completions.

        Raises `BadRequest` where not exactly one of head and tail is given, `UnknownLabel` and `IdOutOfRange` for what
        the vocabulary lacks, and what `Attributor.complete` raises.
        """
        return self._completed(question, [self._incomplete(question)])[0]

    def predictions_together(self, questions: Sequence[Incomplete]) -> list[Predictions | Exception]:
        """Answer questions that are `alike` in one computation, as `influences_together` does."""
        return _together(questions, self._incomplete, lambda parts: self._completed(questions[0], parts))

    def aggregate(self, question: Grouping, wanted: Callable[[], bool] = lambda: True) -> Aggregate:
        """Sum the influences on test triples by training relation, head or tail, or of each training triple.

        Raises `UnknownLabel` and `IdOutOfRange` for what the vocabulary lacks, and what `Attributor.aggregate` raises.
        """
        _check(question)
        _one_of("by", question.by, get_args(Group))
        if not len(question.triples):
            raise BadRequest("there are no triples to explain: give at least one")
        triples = [self._triple_ids(triple) for triple in question.triples]
        found = self._attributor.aggregate(
            np.array(triples, np.int64),
            question.by,
            top_k=question.top_k,
            order=question.order,
            exact=question.exact,
            restriction=self._restriction(question),
            direction=question.direction,
            score=self._score(question),
            damping=question.damping,
            wanted=wanted,
        )
        return {
            "generation": self.generation,
            "score": self._score(question),
            "triple": self._triple(*triples[0]) if len(triples) == 1 else None,
            "test_triples": len(triples),
            "by": question.by,
            "exact": not found.total.errors.any(),  # also where the index has no bounds, and a scan is all there is
            "certified": found.certified,
            "total": _sums(found.total)[0],
            "groups": [
                {**self._group(question.by, group), **sums}
                for group, sums in zip(found.groups.tolist(), _sums(found.sums), strict=True)
            ],
        }

    def self_influences(
        self,
        *,
        top_k: int = 10,
        order: Ranking = "descending",
        score: Score | None = None,
        must: Condition = _ANY,
        must_not: Condition = _ANY,
    ) -> SelfInfluences:
        """Return the training triples of largest (or smallest) self-influence, by the index's own score if it can.

        Raises `BadRequest` for ``top_k`` below 1, another ``order`` and a ``score`` that was not computed, and
        `UnknownLabel` and `IdOutOfRange` for what the vocabulary lacks.
        """
        _integer("top_k", top_k, 1)
        _one_of("order", order, get_args(Ranking))
        training = self._attributor.training
        if score is None:
            score = self._attributor.score if self._attributor.score in training.self_influence else "tracin"
        _one_of("score", score, get_args(Score))
        if score not in training.self_influence:
            raise BadRequest(
                f"score is {score!r}, and this index holds self-influences of {', '.join(training.self_influence)} "
                "alone: build it with --precondition fisher"
            )
        restriction = Restriction(self._resolved(must), self._resolved(must_not))
        rows = training.by_self_influence(score, top_k, order, restriction)
        found = zip(
            training.train_index[rows].tolist(),
            training.triples[rows].tolist(),
            _shortest(training.self_influence[score][rows]),
            strict=True,
        )
        return {
            "generation": self.generation,
            "score": score,
            "loss": self._attributor.self_influence_loss,
            "self_influences": [
                {"train_index": index, "triple": self._triple(*triple), "self_influence": value}
                for index, triple, value in found
            ],
        }

    def entities(self, q: str = "", limit: int = 20) -> Entities:
        """Return up to ``limit`` entities whose label or name equals, starts with or contains ``q``.

        Raises `BadRequest` for ``limit`` below 1.
        """
        _integer("limit", limit, 1)
        found = self._vocabulary.search_entities(q, limit)
        return {"generation": self.generation, "entities": [self._entity(i) for i in found]}

    def relations(self, q: str = "", limit: int = 20) -> Relations:
        """Return up to ``limit`` relations, found as in `entities`."""
        _integer("limit", limit, 1)
        found = self._vocabulary.search_relations(q, limit)
        return {"generation": self.generation, "relations": [self._relation(i) for i in found]}

    def entity_from_text(self, text: str) -> int:
        """Return the id of an entity given by its label or, where no entity's label is made of digits, by its id.

        Raises `UnknownEntity` and `IdOutOfRange`.
        """
        return self._vocabulary.resolve_entity(self.entity_ref(text))

    def relation_from_text(self, text: str) -> int:
        """Return the id of a relation, as in `entity_from_text`."""
        return self._vocabulary.resolve_relation(self.relation_ref(text))

    def triple_from_text(self, head: str, relation: str, tail: str) -> tuple[int, int, int]:
        """Return the ids of a triple, each as in `entity_from_text`."""
        return self.entity_from_text(head), self.relation_from_text(relation), self.entity_from_text(tail)

    def refs_from_text(self, head: str, relation: str, tail: str) -> tuple[Ref, Ref, Ref]:
        """Tell labels from ids as `triple_from_text` does, without looking either up."""
        return self.entity_ref(head), self.relation_ref(relation), self.entity_ref(tail)

    def entity_ref(self, text: str) -> Ref:
        """Tell an entity's label from its id as `entity_from_text` does, without looking it up."""
        return self._vocabulary.entity_ref(text)

    def relation_ref(self, text: str) -> Ref:
        """Tell a relation's label from its id, as in `entity_ref`."""
        return self._vocabulary.relation_ref(text)

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
            "projection": _projection(configuration),
            "sample_rate": configuration.get("sample_rate", 1.0),
            "counts": dict(manifest.counts),
            "configuration": configuration,
        }

    def _ids(self, question: Question) -> np.ndarray:
        """(b, 3) int64. Raises `BadRequest` for options that no index honours, too."""
        _check(question)
        if question.max_candidates is not None:
            _integer("max_candidates", question.max_candidates, 0)
        if not len(question.triples):
            raise BadRequest("there are no triples to explain: give at least one")
        return np.array([self._triple_ids(triple) for triple in question.triples], np.int64)

    def _triple_ids(self, triple: tuple[Ref, Ref, Ref]) -> tuple[int, int, int]:
        # A string has a length, too: that of a single triple given in the place of several.
        if isinstance(triple, str) or not hasattr(triple, "__len__") or len(triple) != len(get_args(Field)):
            raise BadRequest(f"{triple!r} is not a triple: give head, relation and tail")
        head, relation, tail = map(_label_or_id, triple)
        vocabulary = self._vocabulary
        return vocabulary.resolve_entity(head), vocabulary.resolve_relation(relation), vocabulary.resolve_entity(tail)

    def _incomplete(self, question: Incomplete) -> np.ndarray:
        """(3,) int64, with the entity that is given in the place of the missing one, too."""
        _integer("top_k", question.top_k, 1)
        given = question.head if question.direction == "tail" else question.tail
        assert given is not None
        return np.array(self._triple_ids((given, question.relation, given)), np.int64)

    def _completed(self, question: Incomplete, triples: Sequence[np.ndarray]) -> list[Predictions]:
        """Complete triples, (3,) each, as one question's options say."""
        completed = self._attributor.complete(
            np.stack(triples), top_k=question.top_k, direction=question.direction, filtered=question.filtered
        )
        return [self._predictions(question.direction, found) for found in completed]

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
            restriction=self._restriction(question),
            direction=question.direction,
            score=self._score(question),
            damping=question.damping,
            wanted=wanted,
        )
        seconds = answer.seconds
        explanations = map(self._explanation, answer.attributions)
        return [
            {
                "generation": self.generation,
                "score": self._score(question),
                "results": list(islice(explanations, len(part))),
                "seconds": {"gradient": seconds.gradient, "search": seconds.search, "rerank": seconds.rerank},
            }
            for part in parts
        ]

    def _group(self, by: Group, i: int) -> _GroupName:
        """Name what the training triples of a group have in common."""
        if by != "triple":
            return {"group": self._relation(i) if by == "relation" else self._entity(i), "train_index": None}
        training = self._attributor.training
        return {"group": self._triple(*training.triples[i].tolist()), "train_index": int(training.train_index[i])}

    def _score(self, question: Question | Grouping) -> Score:
        return question.score or self._attributor.score

    def _restriction(self, question: Question | Grouping) -> Restriction:
        return Restriction(self._resolved(question.must), self._resolved(question.must_not), question.within_hops)

    def _resolved(self, condition: Condition) -> dict[str, Collection[int]]:
        entity, relation = self._vocabulary.resolve_entity, self._vocabulary.resolve_relation
        resolve = {"head": entity, "relation": relation, "tail": entity}
        for f in condition:
            _one_of("field of a condition", f, get_args(Field))
        return {f: frozenset(resolve[f](_label_or_id(ref)) for ref in refs) for f, refs in condition.items()}

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
            "rank": _rank(found.rank),
            "in_training": found.in_training,
            "loss": _finite(found.loss),
            "self_influence": _finite(found.self_influence),
            "certified": found.certified,
            "bound_gap": _finite(found.bound_gap),
            "candidates": found.candidates,
            "exact_terms": found.exact_terms,
            "notes": found.notes,
            "influences": influences,
        }

    def _predictions(self, direction: Direction, found: Completions) -> Predictions:
        rows = zip(
            found.entities.tolist(),
            found.triples.tolist(),
            _shortest(found.scores),
            found.ranks.tolist(),
            found.in_training.tolist(),
            strict=True,
        )
        return {
            "generation": self.generation,
            "direction": direction,
            "predictions": [
                {
                    "entity": self._entity(entity),
                    "triple": self._triple(*triple),
                    "score": score,
                    "rank": _rank(rank),
                    "in_training": in_training,
                }
                for entity, triple, score, rank, in_training in rows
            ],
        }

    def _triple(self, head: int, relation: int, tail: int) -> NamedTriple:
        return {"head": self._entity(head), "relation": self._relation(relation), "tail": self._entity(tail)}

    def _entity(self, i: int) -> Named:
        vocabulary = self._vocabulary
        return {"id": i, "label": vocabulary.entities[i], "name": vocabulary.entity_names.get(i)}

    def _relation(self, i: int) -> Named:
        vocabulary = self._vocabulary
        return {"id": i, "label": vocabulary.relations[i], "name": vocabulary.relation_names.get(i)}


def _check(question: Question | Grouping) -> None:
    """Raise `BadRequest` for options that no index honours."""
    _integer("top_k", question.top_k, 1)
    _one_of("order", question.order, get_args(Order))
    _one_of("direction", question.direction, get_args(Direction))
    if question.score is not None:
        _one_of("score", question.score, get_args(Score))
    if question.within_hops is not None:
        _integer("within_hops", question.within_hops, 1)


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BadRequest(f"{name} is {value!r}, must be one of {', '.join(allowed)}")


def _integer(name: str, value: object, least: int) -> None:
    if not _is_integer(value) or value < least:
        raise BadRequest(f"{name} is {value!r}, must be an integer of at least {least}")


def _label_or_id(ref: Ref) -> Ref:
    """Return what may be looked up. Raises `BadRequest`."""
    if not isinstance(ref, str) and not _is_integer(ref):
        raise BadRequest(f"{ref!r} is no entity or relation: give a label (string) or an id (integer)")
    return ref


def _is_integer(value: object) -> TypeGuard[int]:
    """Whether it counts, which `bool` does not and NumPy's integers do."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _together(
    questions: Sequence[Q],
    resolve: Callable[[Q], np.ndarray],
    answer: Callable[[Sequence[np.ndarray]], Sequence[A]],
) -> list[A | Exception]:
    """Answer what of several questions can be resolved in one call; each gets its answer or its error."""
    resolved: list[np.ndarray | KgtraceError] = []
    for question in questions:
        try:
            resolved.append(resolve(question))
        except KgtraceError as e:
            resolved.append(e)
    answers = iter(_answered([ids for ids in resolved if isinstance(ids, np.ndarray)], answer))
    return [next(answers) if isinstance(ids, np.ndarray) else ids for ids in resolved]


def _answered(
    parts: Sequence[np.ndarray], answer: Callable[[Sequence[np.ndarray]], Sequence[A]]
) -> Sequence[A | Exception]:
    try:
        return answer(parts) if parts else []
    except Exception as e:
        if len(parts) == 1:
            return [e]
    # What fails for one must not fail for the others.
    return [outcome for part in parts for outcome in _answered([part], answer)]


def _sums(found: Sums) -> list[InfluenceSum]:
    columns = (found.counts, found.sums, found.positive, found.negative, found.errors)
    return [
        {
            "count": count,
            "sum": _finite(total),
            "positive": _finite(positive),
            "negative": _finite(negative),
            "error": _finite(error),
        }
        for count, total, positive, negative, error in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _projection(configuration: Mapping[str, Any]) -> dict[str, Any]:
    kind = configuration.get("projection", "pca")
    fields = {"pca": ("dim", "landmarks", "seed"), "none": ()}.get(kind, ("dim", "seed"))
    return {"type": kind} | {name: configuration.get(name) for name in fields}


def _rank(value: float) -> float:
    """Return a whole number where the rank is one: 2, not 2.0."""
    return value if value % 1 else int(value)


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def _shortest(values: np.ndarray) -> Iterable[float | None]:
    """Return float32 as the shortest decimals that read back the same: 0.83, not 0.8299999833106995."""
    return [_finite(float(str(value))) for value in values]
