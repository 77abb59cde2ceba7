"""Which engine searches: FAISS, which comes with an index, or Milvus, which runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kgtrace_server.settings import Settings
    from kgtrace_store.milvus import Milvus


def milvus(settings: Settings) -> Milvus | None:
    """Connect to Milvus, if that is to search. Raises `SearchUnavailable` and `MissingExtra`."""
    if settings.search != "milvus" or settings.milvus_uri is None:
        return None
    from kgtrace_store.milvus import Milvus

    return Milvus(settings.milvus_uri, settings.milvus_token)
