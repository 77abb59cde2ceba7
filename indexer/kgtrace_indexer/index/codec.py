"""What an index keeps of each training gradient, by the name that ``--projection`` takes.

============  ==================================================  ============================================
``pca``       principal coordinates, norms of the rest, codes of  bounds every influence: answers are certified
              factors
``gaussian``  a random projection                                 guesses which influences are large
``sparse``    the same, with entries of ±√3 and 0                 the same
``none``      its norm alone                                      nothing to search: every query is a scan
============  ==================================================  ============================================
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import Terms, squared_norms
from kgtrace_indexer.index.bases import Bases, index_code
from kgtrace_indexer.index.factors import factor_codes, row_gradients
from kgtrace_store.errors import CorruptGeneration

PROJECTIONS = ("pca", "gaussian", "sparse", "none")
"""What ``--projection`` takes."""
PCA = PROJECTIONS[0]

DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""Stored types of factor codes."""


class Codec(Protocol):
    """Turns training gradients into stored arrays.

    Gradients of the same triples come apart: each `Terms` holds other blocks of them, and is in memory alone.
    """

    @property
    def searched(self) -> tuple[str, ...]:
        """Arrays that make up the vectors of the search index, side by side; none: there is no index."""

    def encode(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return the stored arrays, one row for each triple. ``self_influence`` (n,) is always among them."""

    def checked(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return those of them that are float32, of the order of ‖g‖, or its square for ``self_influence``."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is stored once for all triples, under names that begin with ``basis.``."""


@dataclass(frozen=True, slots=True)
class PrincipalCodec:
    """Codes in principal directions; see `kgtrace_indexer.index.bases`."""

    bases: Bases
    dtype: torch.dtype
    """Stored type of factor codes."""

    @property
    def searched(self) -> tuple[str, ...]:
        """[φ, ρ]."""
        return ("projected", "residual")

    def encode(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return index codes, factor codes and row gradients."""
        factors: dict[str, np.ndarray] = {}

        def noted(terms: Terms) -> Terms:
            factors.update(factor_codes(terms, self.bases, self.dtype))
            return terms

        return {**self.checked(map(noted, gradients)), **factors}

    def checked(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return the index codes and row gradients."""
        rows: dict[str, np.ndarray] = {}

        def noted(terms: Terms) -> Terms:
            rows.update(row_gradients(terms))
            return terms

        return {**index_code(map(noted, gradients), self.bases).arrays(), **rows}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the directions."""
        return self.bases.arrays()


@dataclass(frozen=True, slots=True)
class RandomCodec:
    """Random projections. Their matrices follow from the seed, so nothing is stored of them."""

    projection: RandomProjection

    @property
    def searched(self) -> tuple[str, ...]:
        """The projections."""
        return ("projected",)

    def encode(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return projections and squared norms."""
        return self.checked(gradients)

    def checked(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return the same."""
        projected, norms = _summed(gradients, self.projection.project, _squared_norms)
        return {"projected": projected, "self_influence": norms}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class NoCodec:
    """Squared norms alone."""

    @property
    def searched(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def encode(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return squared norms."""
        (norms,) = _summed(gradients, _squared_norms)
        return {"self_influence": norms}

    def checked(self, gradients: Iterable[Terms]) -> dict[str, np.ndarray]:
        """Return the same."""
        return self.encode(gradients)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return nothing."""
        return {}


def read_codec(configuration: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: torch.device) -> Codec:
    """Return the codec of a generation from its configuration and its arrays. Raises `CorruptGeneration`."""
    try:
        match kind := configuration.get("projection", PCA):  # generations older than the choice do not name it
            case "pca":
                return PrincipalCodec(Bases.from_arrays(arrays, device), DTYPES[configuration["dtype"]])
            case "gaussian" | "sparse":
                return RandomCodec(RandomProjection(kind, configuration["dim"], configuration["seed"]))
            case "none":
                return NoCodec()
    except KeyError as e:
        raise CorruptGeneration(f"the manifest's configuration lacks {e}, or what it says is not known") from e
    raise CorruptGeneration(f"the manifest names projection {kind!r}; known: {', '.join(PROJECTIONS)}")


def _summed(gradients: Iterable[Terms], *measures: Callable[[Terms], Tensor]) -> list[np.ndarray]:
    """Return each measure, summed over blocks that are apart."""

    def measured(terms: Terms) -> list[Tensor]:
        return [measure(terms) for measure in measures]

    return [torch.stack(found).sum(0).cpu().numpy() for found in zip(*map(measured, gradients), strict=True)]


def _squared_norms(terms: Terms) -> Tensor:
    return squared_norms(terms).total
