"""The few numbers of a gradient that every query reads: 16 bytes for each training triple.

The first few coordinates of the index code [φ, ρ] give most of a dense influence, and a scan of all training triples
waits for memory. The short code keeps the coordinates S of most energy, rounded to bfloat16, and
one norm of everything else. Be φ_S = φ̂_S + ε with φ̂_S as stored; then for any α > 0, by Cauchy-Schwarz,

    ⟨φ, φ'⟩ + ⟨ρ, ρ'⟩  =  ⟨φ̂_S, φ'_S⟩ + ⟨ε, φ'_S⟩ + ⟨rest, rest'⟩
                       ≤  ⟨φ̂_S, φ'_S⟩ + √(‖ε‖²/α² + ‖rest‖²) · √(α²‖φ'_S‖² + ‖rest'‖²),

with rest = (φ outside S, ρ): again an inner product of a stored vector and one of the query, and again an upper bound
of the dense influence. A training triple that passes meets the bound of the whole code next.
"""

from dataclasses import dataclass

import numpy as np

COLUMNS = "search.columns"
"""Name of the array that says which coordinates of φ the search index holds."""

WIDTH = 8
"""Numbers in a short code: FAISS has fast code for multiples of 8. By ``python -m benchmarks.search``, on ConvE and
FB15k-237, 7 let through 1.8 times as many training triples as 64 in float32, in a seventh of the time."""

_ALPHA = 2.0**-4
"""α: rounding costs as little on the query's side as on the stored one."""

_SLACK = np.float32(1 + 1e-5)
"""Covers the rounding of a float32 norm."""


@dataclass(frozen=True, slots=True)
class ShortCode:
    """Which coordinates of φ are kept."""

    columns: np.ndarray
    """(m,) int64, m < WIDTH."""

    @classmethod
    def choose(cls, energy: np.ndarray) -> "ShortCode":
        """Return the coordinates of most energy Σ φ² (k,)."""
        return cls(np.sort(np.argsort(-energy, kind="stable")[: WIDTH - 1]))

    def stored(self, phi: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """Return the short codes of index codes φ (n, k) and ρ (n, blocks), (n, WIDTH) float32 of bfloat16 values."""
        kept = phi[:, self.columns]
        rounded = _nearest(kept)
        rest = _squared(np.delete(phi, self.columns, 1)) + _squared(rho) + _squared(kept - rounded) / _ALPHA**2
        return self._joined(rounded, _above(np.sqrt(rest) * _SLACK))

    def query_vectors(self, phi: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """Return the factors of short codes for index codes of test triples, (b, WIDTH) float32."""
        kept = phi[:, self.columns]
        rest = _squared(np.delete(phi, self.columns, 1)) + _squared(rho) + _squared(kept) * _ALPHA**2
        return self._joined(kept, np.sqrt(rest) * _SLACK)

    def _joined(self, kept: np.ndarray, rest: np.ndarray) -> np.ndarray:
        codes = np.zeros((len(kept), WIDTH), np.float32)
        codes[:, : kept.shape[1]], codes[:, -1] = kept, rest
        return codes


def _squared(rows: np.ndarray) -> np.ndarray:
    """Return squared norms of rows (n, ·), (n,)."""
    norms: np.ndarray = np.einsum("nj,nj->n", rows, rows)
    return norms


def _nearest(x: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16."""
    bits = x.view(np.uint32)
    return _truncated(bits + 0x7FFF + ((bits >> 16) & 1))


def _above(x: np.ndarray) -> np.ndarray:
    """Round non-negative float32 up to bfloat16."""
    return _truncated(x.view(np.uint32) + 0xFFFF)


def _truncated(bits: np.ndarray) -> np.ndarray:
    values: np.ndarray = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return values
