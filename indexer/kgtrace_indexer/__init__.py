"""kgtrace's indexer: from trained models to gradient terms, from gradient terms to certified influences."""

from typing import TYPE_CHECKING

from kgtrace_store.doors import door

if TYPE_CHECKING:
    from kgtrace_indexer.answers import (
        Aggregation as Aggregation,
        Answer as Answer,
        Attribution as Attribution,
        Completions as Completions,
        NecessarySet as NecessarySet,
        Restriction as Restriction,
        Seconds as Seconds,
        SufficientSet as SufficientSet,
        Sums as Sums,
        WhatIf as WhatIf,
    )
    from kgtrace_indexer.building.append import append as append
    from kgtrace_indexer.building.build import BuildConfig as BuildConfig, BuildReport as BuildReport, build as build
    from kgtrace_indexer.explaining.explainer import SetExplainer as SetExplainer
    from kgtrace_indexer.inputs.id_maps import read_vocabulary as read_vocabulary
    from kgtrace_indexer.inputs.model_file import ModelFile as ModelFile, write_model as write_model
    from kgtrace_indexer.inputs.model_reader import read_model as read_model
    from kgtrace_indexer.inputs.rdf import read_rdf as read_rdf
    from kgtrace_indexer.inputs.training_folder import read_training_folder as read_training_folder
    from kgtrace_indexer.inputs.triples import TripleTable as TripleTable, read_triples as read_triples
    from kgtrace_indexer.names import Direction as Direction, Group as Group, Order as Order, Ranking as Ranking
    from kgtrace_indexer.query.analyzer import TracInAnalyzer as TracInAnalyzer
    from kgtrace_indexer.query.attributor import Attributor as Attributor
    from kgtrace_indexer.query.opening import open_index as open_index

__all__, __getattr__ = door(
    __name__,
    {
        "kgtrace_indexer.answers": [
            "Aggregation",
            "Answer",
            "Attribution",
            "Completions",
            "NecessarySet",
            "Restriction",
            "Seconds",
            "SufficientSet",
            "Sums",
            "WhatIf",
        ],
        "kgtrace_indexer.building.append": ["append"],
        "kgtrace_indexer.building.build": ["BuildConfig", "BuildReport", "build"],
        "kgtrace_indexer.explaining.explainer": ["SetExplainer"],
        "kgtrace_indexer.inputs.model_file": ["ModelFile", "write_model"],
        "kgtrace_indexer.inputs.model_reader": ["read_model"],
        "kgtrace_indexer.inputs.id_maps": ["read_vocabulary"],
        "kgtrace_indexer.inputs.rdf": ["read_rdf"],
        "kgtrace_indexer.inputs.training_folder": ["read_training_folder"],
        "kgtrace_indexer.inputs.triples": ["TripleTable", "read_triples"],
        "kgtrace_indexer.names": ["Direction", "Group", "Order", "Ranking"],
        "kgtrace_indexer.query.analyzer": ["TracInAnalyzer"],
        "kgtrace_indexer.query.attributor": ["Attributor"],
        "kgtrace_indexer.query.opening": ["open_index"],
    },
)
