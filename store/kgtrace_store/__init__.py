"""kgtrace's store: the files of an index, and the search over them. No torch, no web."""

from typing import TYPE_CHECKING

from kgtrace_store.doors import door

if TYPE_CHECKING:
    from kgtrace_store.generation import Generation as Generation
    from kgtrace_store.generations import GenerationStatus as GenerationStatus, IndexRoot as IndexRoot
    from kgtrace_store.manifest import Manifest as Manifest
    from kgtrace_store.milvus import Milvus as Milvus
    from kgtrace_store.search import ExactSearch as ExactSearch, FaissSearch as FaissSearch, SearchIndex as SearchIndex
    from kgtrace_store.vocabulary import Vocabulary as Vocabulary

__all__, __getattr__ = door(
    __name__,
    {
        "kgtrace_store.generation": ["Generation"],
        "kgtrace_store.generations": ["GenerationStatus", "IndexRoot"],
        "kgtrace_store.manifest": ["Manifest"],
        "kgtrace_store.milvus": ["Milvus"],
        "kgtrace_store.search": ["ExactSearch", "FaissSearch", "SearchIndex"],
        "kgtrace_store.vocabulary": ["Vocabulary"],
    },
)
