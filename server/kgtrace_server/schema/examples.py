"""Answers that the documentation shows."""

from kgtrace_server.schema.answers import (
    Aggregate,
    Explanation,
    GroupInfluence,
    Influence,
    Influences,
    InfluenceSum,
    Named,
    NamedTriple,
    Prediction,
    Predictions,
    Seconds,
    SelfInfluence,
    SelfInfluences,
)
from kgtrace_server.schema.operation import (
    Agreement,
    Entities,
    GenerationInfo,
    Generations,
    IndexInfo,
    Ready,
    Relations,
    Reload,
    Status,
    Switched,
)
from kgtrace_server.schema.sets import Completion, Fact, PredictedRank, PredictedScore, SetExplanation, WhatIf

_GENERATION = "20261123T020000Z-1a2b3c"
_ASPIRIN = Named(3, "Q18216", "aspirin")
_TREATS = Named(1, "treats", None)
_HEADACHE = Named(7, "Q86", "headache")
_TEST = NamedTriple(_ASPIRIN, _TREATS, _HEADACHE)
_TRAINING = NamedTriple(Named(5, "Q186969", "ibuprofen"), _TREATS, _HEADACHE)
_COUNTS = {"triples": 32888, "entities": 2034, "relations": 42}
_CONFIGURATION = {
    "loss": "removal",
    "tracin_loss": "bce",
    "layers": ["all"],
    "dim": 64,
    "landmarks": 2048,
    "precondition": "fisher",
    "seed": 0,
}

INFLUENCES = Influences(
    generation=_GENERATION,
    score="preconditioned",
    results=(
        Explanation(
            triple=_TEST,
            score=7.31,
            rank=2,
            in_training=False,
            loss=-7.31,
            self_influence=42.6,
            certified=True,
            bound_gap=0.0,
            candidates=241,
            exact_terms=12,
            influences=(
                Influence(
                    1234,
                    _TRAINING,
                    11.9,
                    0.28,
                    0.0021,
                    11.9,
                    reason="same-relation-tail",
                    because="has the same relation and tail, and the head ibuprofen",
                ),
            ),
        ),
    ),
    seconds=Seconds(0.004, 0.002, 0.006),
)

SELF_INFLUENCES = SelfInfluences(
    generation=_GENERATION,
    score="preconditioned",
    loss="bce",
    count=32888,
    self_influences=(SelfInfluence(1234, _TRAINING, 41.7, 96.3, 41.7),),
)

PREDICTIONS = Predictions(_GENERATION, "tail", (Prediction(_HEADACHE, _TEST, 7.31, 1, in_training=False),))

AGGREGATE = Aggregate(
    generation=_GENERATION,
    score="preconditioned",
    triple=_TEST,
    by="relation",
    exact=False,
    certified=True,
    total=InfluenceSum(32888, 160.2, 183.9, -23.7, 14.6),
    groups=(GroupInfluence(group=_TREATS, count=312, sum=98.1, positive=101.5, negative=-3.4, error=2.9),),
)

_FEVER = Named(9, "Q38933", "fever")
_FACT = Fact(
    1234,
    NamedTriple(_ASPIRIN, _TREATS, _FEVER),
    -2.4,
    reason="same-head-relation",
    because="has the same head and relation, and the tail fever",
)
_SCORE = PredictedScore(7.31, 4.91, 3.2, 6.6)
_FALLEN = PredictedRank(1, 2)
_AFTER = (Completion(_FEVER, PredictedScore(5.6, 5.2)), Completion(_HEADACHE, PredictedScore(7.31, 4.91)))

WHAT_IF = WhatIf(
    generation=_GENERATION,
    triple=_TEST,
    direction="tail",
    facts=(_FACT,),
    score=_SCORE,
    rank=_FALLEN,
    measured_on="ConvE on UMLS",
    completions=_AFTER,
)

EXPLANATION = SetExplanation(
    generation=_GENERATION,
    mode="necessary",
    triple=_TEST,
    direction="tail",
    facts=(_FACT,),
    suffices=True,
    certified=True,
    candidates=14,
    score=_SCORE,
    rank=_FALLEN,
    rival=_FEVER,
    margin=0.29,
    measured_on="ConvE on UMLS",
    completions=_AFTER,
    entities=(),
)

INDEX = IndexInfo(
    generation=_GENERATION,
    built_at="2026-11-23T02:00:00Z",
    age_seconds=4211.0,
    fingerprint="1a2b3c",
    model="ConvE",
    summed=[],
    loss="removal",
    layers=["all"],
    projection={"type": "pca", "dim": 64, "landmarks": 2048, "seed": 0},
    counts=_COUNTS,
    configuration=_CONFIGURATION,
)

ENTITIES = Entities(_GENERATION, (_ASPIRIN,))

RELATIONS = Relations(_GENERATION, (_TREATS,))

GENERATIONS = Generations(
    _GENERATION,
    _GENERATION,
    (
        GenerationInfo(
            id=_GENERATION,
            live=True,
            problem=None,
            built_at="2026-11-23T02:00:00Z",
            model="ConvE",
            counts=_COUNTS,
            configuration=_CONFIGURATION,
            bytes=61865984,
            agreement=Agreement(generation="20261122T020000Z-4d5e6f", overlap=0.81, top_k=10, triples=32),
        ),
    ),
)

_RELOAD = Reload(_GENERATION, ok=True, reason=None, at="2026-11-23T02:00:07Z", seconds=1.4)

SWITCHED = Switched(_GENERATION, _GENERATION, _RELOAD)

STATUS = Status("alive")

READY = Ready("ready", _GENERATION, (), _RELOAD)
