"""kgtrace's store: what lies on disk, and the search over it. No torch, no web.

Names are imported when first used, so that whoever needs one error or one file loads neither numpy nor h5py.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "ExactSearch": "search",
    "FaissSearch": "search",
    "Generation": "generation",
    "GenerationStatus": "generations",
    "IndexRoot": "generations",
    "Manifest": "manifest",
    "Milvus": "milvus",
    "SearchIndex": "search",
    "Vocabulary": "vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
