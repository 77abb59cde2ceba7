"""kgtrace's indexer: from trained models to gradient terms, from gradient terms to certified influences."""

from kgtrace_indexer.analyzer import TracInAnalyzer
from kgtrace_indexer.answers import (
    Aggregation,
    Answer,
    Attribution,
    Completions,
    Direction,
    Group,
    Order,
    Ranking,
    Restriction,
    Seconds,
    Sums,
)
from kgtrace_indexer.append import append
from kgtrace_indexer.build import BuildConfig, BuildReport, build
from kgtrace_indexer.engine import Attributor, open_attributor
from kgtrace_indexer.model_file import ModelFile, read_model, write_model
from kgtrace_indexer.triples import TripleTable, read_training_folder, read_triples, read_vocabulary

__all__ = [
    "Aggregation",
    "Answer",
    "Attribution",
    "Attributor",
    "BuildConfig",
    "BuildReport",
    "Completions",
    "Direction",
    "Group",
    "ModelFile",
    "Order",
    "Ranking",
    "Restriction",
    "Seconds",
    "Sums",
    "TracInAnalyzer",
    "TripleTable",
    "append",
    "build",
    "open_attributor",
    "read_model",
    "read_training_folder",
    "read_triples",
    "read_vocabulary",
    "write_model",
]
