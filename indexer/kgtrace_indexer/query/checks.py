"""Checks of a query's arguments."""

import numpy as np

from kgtrace_indexer.inputs.triples import out_of_range
from kgtrace_store.errors import BadRequest, IdOutOfRange
from kgtrace_store.vocabulary import Vocabulary


def require_positive(name: str, number: int) -> None:
    """Raise `BadRequest` for a number below 1."""
    if number < 1:
        raise BadRequest(f"{name} is {number}, must be at least 1")


def checked(triples: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return test triples as an array of ids (b, 3). Raises `BadRequest` and `IdOutOfRange`."""
    triples = np.asarray(triples)
    if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
        raise BadRequest(f"triples have shape {triples.shape} and type {triples.dtype}, need (b, 3) integers")
    if not len(triples):
        raise BadRequest("there are no triples to explain")
    if wrong := out_of_range(triples, len(vocabulary.entities), len(vocabulary.relations)):
        raise IdOutOfRange(wrong[1])
    return triples
