"""kgtrace's store: what lies on disk, and the search over it. No torch, no web."""

from kgtrace_store.generation import Generation
from kgtrace_store.generations import GenerationStatus, IndexRoot
from kgtrace_store.manifest import Manifest
from kgtrace_store.milvus import Milvus
from kgtrace_store.search import ExactSearch, FaissSearch, SearchIndex
from kgtrace_store.vocabulary import Vocabulary

__all__ = [
    "ExactSearch",
    "FaissSearch",
    "Generation",
    "GenerationStatus",
    "IndexRoot",
    "Manifest",
    "Milvus",
    "SearchIndex",
    "Vocabulary",
]
