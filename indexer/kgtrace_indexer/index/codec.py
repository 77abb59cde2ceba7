"""Codecs: the code that an index stores of each training gradient, by the value of ``--projection``.

============  ==================================================  ============================================
``pca``       principal coordinates, norms of the rest, codes of  bounds every influence: answers are certified
              factors
``gaussian``  a random projection                                 guesses which influences are large
``sparse``    the same, with entries of ±√3 and 0                 the same
``none``      its norm alone                                      nothing to search: every query is a scan
============  ==================================================  ============================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.reads import Reads
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bases import Bases, BlockCodes, block_codes, coordinates, join_codes
from kgtrace_indexer.index.factors import factor_codes
from kgtrace_indexer.index.rows import read_codes
from kgtrace_indexer.models.featurizer import SQUARED_NORM, Encoder
from kgtrace_store.errors import CorruptGeneration

PROJECTIONS = ("pca", "gaussian", "sparse", "none")
"""The values of ``--projection``."""
PCA = PROJECTIONS[0]

DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""Stored types of factor codes."""


class Codec(Encoder, Protocol):
    """Turns training gradients into stored arrays; ``self_influence`` (n,) is always among them."""

    @property
    def searched(self) -> tuple[str, ...]:
        """Arrays that make up the vectors of the search index, side by side; none: there is no index."""

    @property
    def checked(self) -> tuple[str, ...]:
        """Arrays that are float32, of the order of ‖g‖, or its square for ``self_influence``."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are stored once for all triples; their names begin with ``basis.``."""


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

    @property
    def checked(self) -> tuple[str, ...]:
        """The index code."""
        return (*self.searched, "self_influence")

    def encode(self, terms: Terms, slope: Tensor | None) -> tuple[BlockCodes, dict[str, Tensor]]:
        """Return the share in the index code, factor codes, and reads of embedding rows, the latter without slopes."""
        reads = Reads.of(terms, terms.rows.keys() - terms.spread.keys())
        inside = coordinates(terms, self.bases)
        blocks = block_codes(terms, self.bases, inside, slope, reads)
        codes = factor_codes(terms, self.bases, self.dtype, inside, slope)
        for piece in [*reads, *Reads.of(terms, terms.rows.keys() & terms.spread.keys())]:
            codes |= read_codes(piece)
        return blocks, codes

    def join(self, codes: Sequence[tuple[BlockCodes, dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Return index codes, factor codes and reads."""
        code = join_codes([blocks for blocks, _ in codes], self.bases)
        arrays = {"projected": code.phi, "residual": code.residual, "self_influence": code.squared_norm}
        for _, others in codes:
            arrays |= others
        return arrays if code.unweighted is None else arrays | {SQUARED_NORM: code.unweighted}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the principal directions."""
        return self.bases.arrays()


@dataclass(frozen=True, slots=True)
class RandomCodec:
    """Random projections. Their matrices follow from the seed, and are not stored."""

    projection: RandomProjection

    @property
    def searched(self) -> tuple[str, ...]:
        """The projections."""
        return ("projected",)

    @property
    def checked(self) -> tuple[str, ...]:
        """All arrays."""
        return ("projected", "self_influence")

    def encode(self, terms: Terms, slope: None) -> dict[str, Tensor]:
        """Return projections and squared norms."""
        return {"projected": self.projection.project(terms), "self_influence": squared_norms(terms)}

    def join(self, codes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the sums of the arrays."""
        return _summed(codes)

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

    @property
    def checked(self) -> tuple[str, ...]:
        """The squared norms."""
        return ("self_influence",)

    def encode(self, terms: Terms, slope: None) -> dict[str, Tensor]:
        """Return squared norms."""
        return {"self_influence": squared_norms(terms)}

    def join(self, codes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the sum of the squared norms."""
        return _summed(codes)

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


def _summed(codes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return each array, summed over blocks that are apart."""
    return {name: torch.stack([code[name] for code in codes]).sum(0) for name in codes[0]}
