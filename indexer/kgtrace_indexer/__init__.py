"""kgtrace's indexer: from trained models to gradient terms, from gradient terms to certified influences."""

from kgtrace_indexer.answers import Answer, Attribution, Direction, Order, Restriction, Seconds
from kgtrace_indexer.append import append
from kgtrace_indexer.build import BuildConfig, BuildReport, build
from kgtrace_indexer.engine import Attributor, open_attributor
from kgtrace_indexer.model_file import ModelFile, read_model, write_model
from kgtrace_indexer.triples import TripleTable, read_training_folder, read_triples, read_vocabulary

__all__ = [
    "Answer",
    "Attribution",
    "Attributor",
    "BuildConfig",
    "BuildReport",
    "Direction",
    "ModelFile",
    "Order",
    "Restriction",
    "Seconds",
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
