"""Influences preconditioned by what gradients have in common: g'ᵀ (F + σ²I)⁻¹ g with F = Σ g gᵀ over the training triples.

Influence functions (Koh and Liang, 2017), TRAK (Park et al., 2023) and EK-FAC influence (Grosse et al., 2023) differ in what
they take for F. `Fisher` takes it as it is, or its leading directions; `Blocks` block by block, as it would fit an index: a
query's gradient is transformed, and stays a sum of rank-1 terms.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.truth.graphs import Graph
from kgtrace_indexer import ModelFile
from kgtrace_indexer.featurizer import featurizer_for
from kgtrace_indexer.terms import Kron, Rows, Terms, inner, squared_norms


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


@dataclass(frozen=True, slots=True)
class Blocks:
    """F with a block for each embedding row, one for each small tensor, and a Kronecker product for the linear layer."""

    training: Terms
    test: Terms

    @classmethod
    def of(cls, model: ModelFile, graph: Graph, test: np.ndarray) -> "Blocks":
        """Compute the gradients of the logits of training and test triples."""
        config = {"loss": "removal", "layers": ["all"], "directions": "forward"}
        featurizer = featurizer_for(model, config, torch.device("cpu"))
        with torch.inference_mode():
            return cls(featurizer.training_terms(graph.train), featurizer.test_terms(test, "tail"))

    def scores(self, damping: float, *, dense: bool) -> np.ndarray:
        """Return preconditioned influences (n, q), with σ² so many times the mean ‖g‖².

        Without `dense`, only embedding rows are preconditioned, and the other blocks are left out.
        """
        with torch.inference_mode():
            sigma = damping * float(squared_norms(self.training).total.mean())
            kron = {name: self._kron(name, block, sigma) for name, block in self.test.kron.items()} if dense else {}
            flat = {name: self._flat(name, grad, sigma) for name, grad in self.test.flat.items()} if dense else {}
            rows = {name: [self._rows(name, use, sigma) for use in uses] for name, uses in self.test.rows.items()}
            asked = replace(self.test, kron=kron, flat=flat, rows=rows)
            some = self.training if dense else replace(self.training, kron={}, flat={})
            found: np.ndarray = inner(some, asked).numpy()
        return found

    def _kron(self, name: str, block: Kron, sigma: float) -> Kron:
        """Multiply by (A + …)⁻¹ ⊗ (B + …)⁻¹ with the factored damping of Martens and Grosse (2015, section 6.3)."""
        known = self.training.kron[name]
        u, v, count = known.u.double(), known.v.index_select(0, known.group).double(), len(known.u)
        a, b = v.T @ v / count, u.T @ u / count
        ratio = ((a.diagonal().mean()) / (b.diagonal().mean())).sqrt()
        root = (sigma / count) ** 0.5
        left = _damped(b, root / float(ratio), block.u)
        right = _damped(a, root * float(ratio), block.v)
        return Kron(left / count, right, block.group)

    def _flat(self, name: str, grad: Tensor, sigma: float) -> Tensor:
        known = self.training.flat[name].double()
        return _damped(known.T @ known, sigma, grad)

    def _rows(self, table: str, use: Rows, sigma: float) -> Rows:
        """Multiply each row's gradient by (F_i + σ²)⁻¹, F_i being of all training gradients of that row i."""
        grads = []
        for index, grad in zip(use.index.tolist(), use.grad, strict=True):
            known = torch.cat([each.grad[each.index == index] for each in self.training.rows[table]]).double()
            grads.append(_damped(known.T @ known, sigma, grad[None])[0])
        return Rows(use.index, torch.stack(grads))


def _damped(moment: Tensor, sigma: float, vectors: Tensor) -> Tensor:
    """Return (M + σ²I)⁻¹ x for the rows x of (m, d), float32."""
    damped = moment + sigma * torch.eye(len(moment), dtype=moment.dtype)
    return torch.linalg.solve(damped, vectors.double().T).T.float()
