"""What the service does, without HTTP: resolve labels, attribute, label the answer."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from kgtrace_indexer.answers import Attribution, Completions, Ids, Restriction, Sums
from kgtrace_indexer.names import Group, Score
from kgtrace_server.because import reasoned
from kgtrace_server.catalogue import describe
from kgtrace_server.labels import Labels
from kgtrace_server.numbers import finite, shortest, shortest_or_unknown, whole
from kgtrace_server.schema.answer import Answer
from kgtrace_server.schema.answers import (
    Aggregate,
    Explanation,
    GroupInfluence,
    Influence,
    Influences,
    InfluenceSum,
    Prediction,
    Predictions,
    Seconds,
    SelfInfluence,
    SelfInfluences,
)
from kgtrace_server.schema.fields import FIELDS, Condition, Filter, Ref
from kgtrace_server.schema.operation import Entities, IndexInfo, Relations
from kgtrace_server.schema.questions import (
    AggregateRequest,
    InfluenceRequest,
    PredictionRequest,
    SearchQuery,
    SelfInfluenceRequest,
    SetRequest,
    WhatIfRequest,
)
from kgtrace_server.schema.sets import SetExplanation, WhatIf
from kgtrace_server.sets import Sets
from kgtrace_store.errors import BadRequest, KgtraceError

if TYPE_CHECKING:
    from kgtrace_indexer.explaining.explainer import SetExplainer
    from kgtrace_indexer.query.attributor import Attributor

Computed = InfluenceRequest | PredictionRequest | AggregateRequest | WhatIfRequest | SetRequest
"""Questions that take a computation."""

Wanted = Callable[[], bool]
"""Whether anybody still waits for an answer."""

_ANY = SearchQuery()


def _always() -> bool:
    return True


class Service:
    """Answers in labels and names.

    Raises `UnknownLabel` and `IdOutOfRange` for entities and relations that the vocabulary lacks.
    """

    def __init__(self, attributor: "Attributor", explainer: "SetExplainer | None" = None) -> None:
        """`explainer` is for tests."""
        self._attributor = attributor
        self._explainer = explainer
        self._vocabulary = attributor.vocabulary
        self._labels = Labels(attributor.vocabulary)

    @cached_property
    def _sets(self) -> Sets:
        from kgtrace_indexer.explaining.explainer import SetExplainer

        explainer = self._explainer or SetExplainer(self._attributor)
        return Sets(explainer, self._attributor, self._labels)

    @property
    def generation(self) -> str:
        """Id of the generation that answers."""
        return self._attributor.manifest.generation

    def influences(self, question: InfluenceRequest) -> Influences:
        """Explain test triples. Raises the errors of `Attributor.query`, too."""
        return self._influences([question], [self._triples(question)])[0]

    def predictions(self, question: PredictionRequest) -> Predictions:
        """Return the model's best completions.

        Raises `BadRequest` where not exactly one of head and tail is given, and the errors of `Attributor.complete`.
        """
        return self._predictions([question], [self._triples(question)])[0]

    def aggregate(self, question: AggregateRequest) -> Aggregate:
        """Sum the influences on test triples by training relation, head or tail, or of each training triple.

        Raises the errors of `Attributor.aggregate`, too.
        """
        return self._aggregates([question], [self._triples(question)])[0]

    def what_if(self, question: WhatIfRequest) -> WhatIf:
        """Predict what the model says of a triple without a set. Raises the errors of `Sets.what_if`, too."""
        return self._sets.what_if(question, self._triples(question)[0], _always)

    def explanation(self, question: SetRequest) -> SetExplanation:
        """Explain a triple by a set. Raises the errors of `Sets.explanation`, too."""
        return self._sets.explanation(question, self._triples(question)[0], _always)

    def together(self, questions: Sequence[Computed], wanted: Wanted = _always) -> list[Answer | Exception]:
        """Answer questions that are `alike` in one computation: each gets the answer, or the error, that it gets alone.

        A long computation is given up when ``wanted`` returns False: no client waits for it. ``seconds`` of each answer
        are the seconds of the whole computation.
        """
        outcomes: dict[int, Answer | Exception] = {}
        resolved: dict[int, np.ndarray] = {}
        for place, question in enumerate(questions):
            try:
                resolved[place] = self._triples(question)
            except KgtraceError as e:
                outcomes[place] = e
        compute: Any = {
            InfluenceRequest: self._influences,
            PredictionRequest: self._predictions,
            AggregateRequest: self._aggregates,
            WhatIfRequest: lambda asked, parts, _: [self._sets.what_if(asked[0], parts[0][0], wanted)],
            SetRequest: lambda asked, parts, _: [self._sets.explanation(asked[0], parts[0][0], wanted)],
        }[type(questions[0])]  # no two questions about sets are alike

        def answer(places: Sequence[int]) -> None:
            try:
                answers = compute([questions[i] for i in places], [resolved[i] for i in places], wanted)
                outcomes.update(zip(places, answers, strict=True))
            except Exception as e:
                if len(places) == 1:
                    outcomes[places[0]] = e
                    return
                for place in places:  # an error of one question must not be that of the others
                    answer([place])

        if resolved:
            answer(list(resolved))
        return [outcomes[place] for place in range(len(questions))]

    def self_influences(self, question: SelfInfluenceRequest) -> SelfInfluences:
        """Return the training triples of largest (or smallest) self-influence, by default by the index's own score.

        Raises `BadRequest` for a score that was not computed.
        """
        training = self._attributor.training
        score = question.score or self._attributor.score
        if score not in training.self_influence:
            raise BadRequest(
                f"score is {score!r}, and this index holds self-influences of {', '.join(training.self_influence)} "
                "alone: build it with projection pca and a loss of single tails, such as bce"
            )
        restriction = self._restriction(question.filter)
        rows, count = training.by_self_influence(score, question.top_k, question.order, restriction)
        scores: tuple[Score, ...] = (score, "tracin", "preconditioned")
        members = zip(
            training.train_index[rows].tolist(),
            training.triples[rows].tolist(),
            *(
                shortest_or_unknown(None if own is None else own[rows], len(rows))
                for own in map(training.self_influence.get, scores)
            ),
            strict=True,
        )
        return SelfInfluences(
            generation=self.generation,
            score=score,
            loss=self._attributor.loss("tracin"),
            count=count,
            self_influences=tuple(
                SelfInfluence(index, self._labels.triple(*triple), *values) for index, triple, *values in members
            ),
        )

    def entities(self, search: SearchQuery = _ANY) -> Entities:
        """Return entities whose label or name equals, starts with or contains a text."""
        matches = self._vocabulary.search_entities(search.q, search.limit)
        return Entities(self.generation, tuple(map(self._labels.entity, matches)))

    def relations(self, search: SearchQuery = _ANY) -> Relations:
        """Return relations, as `entities`."""
        matches = self._vocabulary.search_relations(search.q, search.limit)
        return Relations(self.generation, tuple(map(self._labels.relation, matches)))

    def refs_from_text(self, head: str, relation: str, tail: str) -> tuple[Ref, Ref, Ref]:
        """Tell labels from ids as `entity_ref` does."""
        return self.entity_ref(head), self.relation_ref(relation), self.entity_ref(tail)

    def entity_ref(self, text: str) -> Ref:
        """Return an entity's label or, where no entity's label is made of digits, its id; neither is looked up."""
        return self._vocabulary.entity_ref(text)

    def relation_ref(self, text: str) -> Ref:
        """Tell a relation's label from its id, as in `entity_ref`."""
        return self._vocabulary.relation_ref(text)

    def triple_ids(self, head: Ref, relation: Ref, tail: Ref) -> tuple[int, int, int]:
        """Look a triple up."""
        return self._labels.ids(head, relation, tail)

    def index_info(self) -> IndexInfo:
        """Describe the index that answers."""
        return describe(self._attributor.manifest)

    def _triples(self, question: Computed) -> np.ndarray:
        """(b, 3) int64; of an incomplete triple, the given entity stands in the place of the missing one, too.

        Without a relation these are of all relations of the entity, the most frequent one first.
        """
        if isinstance(question, PredictionRequest):
            direction, ref = question.given
            if question.relation is not None:
                return np.array([self.triple_ids(ref, question.relation, ref)], np.int64)
            entity = self._vocabulary.resolve_entity(ref)
            relations = self._attributor.training.relations_of(entity, direction).tolist()
            return np.array([(entity, relation, entity) for relation in relations], np.int64).reshape(-1, 3)
        several = question.triples if isinstance(question, InfluenceRequest | AggregateRequest) else None
        triples = several or []
        if not isinstance(question, InfluenceRequest) and question.triple is not None:
            triples = [question.triple]
        return np.array([self._labels.triple_ids(triple) for triple in triples], np.int64)

    def _influences(
        self,
        questions: Sequence[InfluenceRequest],
        parts: Sequence[np.ndarray],
        wanted: Wanted = _always,
    ) -> list[Influences]:
        """Explain the triples of questions that are alike, (b, 3) each."""
        question = questions[0]
        score = question.score or self._attributor.score
        answer = self._attributor.query(
            np.concatenate(parts),
            top_k=question.top_k,
            order=question.order,
            exact=question.exact,
            max_candidates=question.max_candidates,
            restriction=self._restriction(question.filter, question.within_hops),
            direction=question.direction,
            score=score,
            damping=question.damping,
            outcome=question.outcome,
            wanted=wanted,
        )
        seconds = Seconds(answer.seconds.gradient, answer.seconds.search, answer.seconds.rerank)
        explanations = map(self._explanation, answer.attributions)
        return [
            Influences(
                generation=self.generation,
                score=score,
                outcome=question.outcome,
                results=tuple(islice(explanations, len(part))),
                seconds=seconds,
            )
            for part in parts
        ]

    def _predictions(
        self, questions: Sequence[PredictionRequest], parts: Sequence[np.ndarray], wanted: Wanted = _always
    ) -> list[Predictions]:
        """Complete the triples of questions that are alike, (b, 3) each, the first `size` of them."""
        question = questions[0]
        direction, _ = question.given
        asked = [part[: each.size] for each, part in zip(questions, parts, strict=True)]
        triples = np.concatenate(asked)
        options: dict[str, Any] = {"top_k": question.top_k, "direction": direction, "filtered": question.filtered}
        completed = iter(self._attributor.complete(triples, **options) if len(triples) else ())
        return [
            Predictions(
                generation=self.generation,
                direction=direction,
                predictions=tuple(chain.from_iterable(map(self._completions, islice(completed, len(rows))))),
                relations=None if each.relation is not None else len(part),
            )
            for each, part, rows in zip(questions, parts, asked, strict=True)
        ]

    def _aggregates(
        self, questions: Sequence[AggregateRequest], parts: Sequence[np.ndarray], wanted: Wanted = _always
    ) -> list[Aggregate]:
        """Sum the influences on the triples of each question, (b, 3), by itself."""
        return [self._aggregate(question, part, wanted) for question, part in zip(questions, parts, strict=True)]

    def _aggregate(self, question: AggregateRequest, triples: np.ndarray, wanted: Wanted) -> Aggregate:
        score = question.score or self._attributor.score
        aggregation = self._attributor.aggregate(
            triples,
            question.by,
            top_k=question.top_k,
            order=question.order,
            exact=question.exact,
            restriction=self._restriction(question.filter, question.within_hops),
            direction=question.direction,
            score=score,
            damping=question.damping,
            outcome=question.outcome,
            wanted=wanted,
        )
        return Aggregate(
            generation=self.generation,
            score=score,
            outcome=question.outcome,
            triple=self._labels.triple(*triples[0].tolist()) if len(triples) == 1 else None,
            test_triples=len(triples),
            by=question.by,
            exact=not aggregation.total.errors.any(),  # also where the index has no bounds: each sum is a scan then
            certified=aggregation.certified,
            total=InfluenceSum(**_sums(aggregation.total)[0]),
            groups=tuple(
                GroupInfluence(**self._group(question.by, group), **sums)
                for group, sums in zip(aggregation.groups.tolist(), _sums(aggregation.sums), strict=True)
            ),
        )

    def _group(self, by: Group, i: int) -> dict[str, Any]:
        """Return the relation, entity or triple that names a group; of a triple, its ``train_index``, too."""
        if by != "triple":
            return {"group": self._labels.relation(i) if by == "relation" else self._labels.entity(i)}
        training = self._attributor.training
        return {
            "group": self._labels.triple(*training.triples[i].tolist()),
            "train_index": int(training.train_index[i]),
        }

    def _restriction(self, chosen: Filter | None, within_hops: int | None = None) -> Restriction:
        chosen = chosen or Filter()
        return Restriction(self._resolved(chosen.must), self._resolved(chosen.must_not), within_hops)

    def _resolved(self, condition: Condition | None) -> dict[str, Collection[int]]:
        entity, relation = self._vocabulary.resolve_entity, self._vocabulary.resolve_relation
        resolve = zip(FIELDS, (entity, relation, entity), strict=True)
        fields = {} if condition is None else condition.options()
        return {field: frozenset(map(look_up, fields[field])) for field, look_up in resolve if fields.get(field)}

    def _explanation(self, attribution: Attribution) -> Explanation:
        rows = zip(
            attribution.train_index.tolist(),
            attribution.triples.tolist(),
            shortest(attribution.influence),
            shortest(attribution.cosine),
            shortest(attribution.tracin),
            shortest_or_unknown(attribution.preconditioned, len(attribution.tracin)),
            strict=True,
        )
        return Explanation(
            triple=self._labels.triple(*attribution.triple),
            score=finite(attribution.score),
            rank=whole(attribution.rank),
            in_training=attribution.in_training,
            loss=finite(attribution.loss),
            self_influence=finite(attribution.self_influence),
            certified=attribution.certified,
            bound_gap=finite(attribution.bound_gap),
            candidates=attribution.candidates,
            exact_terms=attribution.exact_terms,
            notes=tuple(attribution.notes),
            influences=tuple(
                self._influence(attribution.triple, index, tuple(triple), values) for index, triple, *values in rows
            ),
        )

    def _influence(self, prediction: Ids, index: int, fact: Ids, values: Sequence[Any]) -> Influence:
        named = dict(zip(("influence", "cosine", "tracin", "preconditioned"), values, strict=True))
        related = reasoned(self._attributor.reasons, self._labels, prediction, fact)
        return Influence(train_index=index, **named, **related)

    def _completions(self, completions: Completions) -> Iterable[Prediction]:
        rows = zip(
            completions.entities.tolist(),
            completions.triples.tolist(),
            shortest(completions.scores),
            map(whole, completions.ranks.tolist()),
            completions.in_training.tolist(),
            strict=True,
        )
        return (
            Prediction(self._labels.entity(entity), self._labels.triple(*triple), *rest)
            for entity, triple, *rest in rows
        )


def _sums(sums: Sums) -> list[dict[str, Any]]:
    """Return the fields of an `InfluenceSum` for each group."""
    columns = {"sum": sums.sums, "positive": sums.positive, "negative": sums.negative, "error": sums.errors}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"count": count, **dict(zip(columns, map(finite, row), strict=True))}
        for count, row in zip(sums.counts.tolist(), rows, strict=True)
    ]
