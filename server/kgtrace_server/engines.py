"""Which engine searches: FAISS, which comes with an index, or Milvus, which runs elsewhere."""

from kgtrace_server.settings import Settings
from kgtrace_store.milvus import Milvus


def milvus(settings: Settings) -> Milvus | None:
    """Connect to Milvus, if that is to search. Raises `SearchUnavailable` and `MissingExtra`."""
    if settings.search != "milvus" or settings.milvus_uri is None:
        return None
    return Milvus(settings.milvus_uri, settings.milvus_token)
