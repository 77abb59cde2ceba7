"""Influences preconditioned by the whole second moment of gradients, all parameters together."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fisher:
    """Influences with the inverse of the gradients' second moment, by the kernel of the training gradients.

    With the n gradients as rows of G, F = GᵀG and K = GGᵀ, (Schioppa et al., 2022; Park et al., 2023)

        G (F + σ²I)⁻¹ g'  =  (K + σ²I)⁻¹ G g',

    so that the kernel's eigenvectors U and eigenvalues λ are all that is needed. With its first k alone it is, up to
    1/σ², the influence minus what common directions of gradient have of it: k' − U_k diag(λ / (λ + σ²)) U_kᵀ k'.
    """

    vectors: Tensor
    """(n, n) float64, by descending eigenvalue."""
    values: Tensor
    """(n,)."""

    @classmethod
    def of(cls, kernel: np.ndarray) -> "Fisher":
        """Decompose K (n, n)."""
        values, vectors = torch.linalg.eigh(torch.from_numpy(kernel).double())
        return cls(vectors.flip(1), values.flip(0).clamp_min(0))

    def scores(self, influences: np.ndarray, damping: float, rank: int | None = None) -> np.ndarray:
        """Return preconditioned influences (n, q), with σ² so many times the mean ‖g‖²."""
        sigma = damping * float(self.values.mean())
        vectors, values = self.vectors[:, :rank], self.values[:rank]
        plain = torch.from_numpy(influences).double()
        common = vectors @ ((values / (values + sigma))[:, None] * (vectors.T @ plain))
        return (plain - common).numpy()
