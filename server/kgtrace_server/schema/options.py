"""Arguments of the clients' methods: triples, and the options of questions by their names."""

from collections.abc import Mapping, Sequence
from typing import Literal

from typing_extensions import TypedDict

from kgtrace_indexer.names import Direction, Order, Outcome, Ranking, Score, SetCandidates, SetMode
from kgtrace_server.schema.fields import Damping, Ref

Triple = tuple[Ref, Ref, Ref]
"""Head, relation and tail."""

Triples = Sequence[Triple]

Without = Sequence[Triple | int]
"""Training triples, or the ``train_index`` of each."""

RefsByField = Mapping[Literal["head", "relation", "tail"], Sequence[Ref]]
"""Labels or ids by field of the training triple."""


class Restriction(TypedDict, total=False):
    """Which training triples may be named, as in `Filter`."""

    must: RefsByField
    must_not: RefsByField


class Options(Restriction, total=False):
    """As in `AggregateRequest`."""

    top_k: int
    order: Order
    exact: bool
    within_hops: int | None
    direction: Direction
    score: Score | None
    damping: Damping | None
    outcome: Outcome


class InfluenceOptions(Options, total=False):
    """As in `InfluenceRequest`."""

    max_candidates: int | None


class RankingOptions(Restriction, total=False):
    """As in `SelfInfluenceRequest`."""

    top_k: int
    order: Ranking
    score: Score | None


class PredictionOptions(TypedDict, total=False):
    """As in `PredictionRequest`."""

    head: Ref | None
    relation: Ref | None
    tail: Ref | None
    top_k: int
    filtered: bool


class WhatIfOptions(TypedDict, total=False):
    """As in `WhatIfRequest`."""

    direction: Direction
    top_k: int


class SetOptions(WhatIfOptions, total=False):
    """As in `SetRequest`."""

    mode: SetMode
    max_facts: int
    candidates: SetCandidates
    connected: bool
    entities: int
    seed: int
