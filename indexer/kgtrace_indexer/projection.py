"""Short codes of gradients: orthogonal projections with the norm of what they leave out.

An orthonormal basis B splits a vector v into its coordinates Bᵀv and a rest of norm r, so that by Cauchy-Schwarz

    |⟨v, v'⟩ − ⟨Bᵀv, Bᵀv'⟩| ≤ r r'.

Two kinds of code are made of every gradient, and both bounds follow from that line alone:

* the *index code* φ, the k leading principal directions of the flat blocks and of each rank-1 block's matrix, with
  one residual norm ρ for each: Σ φφ' + Σ ρρ' is an inner product and bounds the dense influence from above;
* the *factor codes* of the vectors u and v of each rank-1 block and of each embedding row's gradient, in 16 or 32
  bits: ⟨u, u'⟩⟨v, v'⟩ is bounded through both factors, which is far tighter, but no inner product.

The directions are the principal ones (uncentred PCA) of a sample of training gradients, the landmarks: the Nyström
method with the gradient kernel (Williams and Seeger, 2000).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.terms import Kron, Terms, squared_norms
from kgtrace_store.errors import CorruptGeneration

ROUNDING = 1e-4
"""Relative slack of every bound, in units of ‖g‖‖g'‖.

Float32 sums of this length err by about 1e-6. The model itself adds more: the score of a triple differs in its last
digits with the batch it is computed in, and where the loss is saturated (ℓ' = −σ(−s) for large s) an absolute error of
s becomes a relative one of the gradient."""

FLOOR = 1e-32
"""Added to every squared norm: what squares of numbers below float32's range may have lost."""

_U_DIMS = 256
"""Coordinates kept of u: all of a layer with up to so many outputs. ⟨u, u'⟩ carries the sign, so it must be good."""
_V_DIMS = 16
"""Coordinates kept of v. On ConvE, 64 instead of 8 left 46 instead of 57 rows for the exact term (90 % quantile)."""
_V_LANDMARKS = 1024
"""Inputs looked at for the directions of v, and of wider embedding rows: their Gram matrix is what costs."""
_PAIR_DIMS = (256, 8)
"""Leading coordinates of u and v whose products span the matrix directions of φ."""
_ROW_DIMS = 128
"""Coordinates kept of an embedding row's gradient: with 64 instead, its share of the slack is three times as large."""


@dataclass(frozen=True, slots=True)
class KronBasis:
    """Directions for one rank-1 block."""

    u: Tensor
    """(p, mu), orthonormal columns."""
    v: Tensor
    """(q, mv), orthonormal columns."""
    pairs: Tensor
    """(pu·pv, k), orthonormal columns over the products of the first pu and pv coordinates."""

    @property
    def pair_shape(self) -> tuple[int, int]:
        """(pu, pv)."""
        return min(self.u.shape[1], _PAIR_DIMS[0]), min(self.v.shape[1], _PAIR_DIMS[1])


@dataclass(frozen=True, slots=True)
class Bases:
    """All directions of a generation; `dim` = k, the length of φ."""

    flat: Tensor
    """(size, k), orthonormal columns."""
    kron: Mapping[str, KronBasis]
    rows: Mapping[str, Tensor]
    """Table name → (d, m), orthonormal columns."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the directions under the names they have in a generation."""
        found = {"basis.flat": self.flat}
        for name, block in self.kron.items():
            found |= {
                f"basis.{name}.u": block.u,
                f"basis.{name}.v": block.v,
                f"basis.{name}.pairs": block.pairs,
            }
        found |= {f"basis.{table}.rows": basis for table, basis in self.rows.items()}
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> "Bases":
        """Read what `arrays` gave. Raises `CorruptGeneration` where some of it is missing."""
        tensors = {
            name.removeprefix("basis."): torch.tensor(array, device=device)
            for name, array in arrays.items()
            if name.startswith("basis.")
        }
        krons = [name.removesuffix(".pairs") for name in tensors if name.endswith(".pairs")]
        try:
            return cls(
                flat=tensors["flat"],
                kron={name: KronBasis(*(tensors[f"{name}.{part}"] for part in ("u", "v", "pairs"))) for name in krons},
                rows={name.removesuffix(".rows"): t for name, t in tensors.items() if name.endswith(".rows")},
            )
        except KeyError as e:
            raise CorruptGeneration(f"directions {e} are missing; there are {sorted(tensors)}") from e


def fit_bases(terms: Terms, dim: int) -> Bases:
    """Choose the directions from the landmarks' gradients; φ gets the `dim` leading ones over all dense blocks."""
    flat, flat_energy = _principal(terms.flat_sum(), dim)
    kron: dict[str, KronBasis] = {}
    energies = {"": flat_energy}
    for name, block in terms.kron.items():
        u, _ = _principal(block.u, _U_DIMS)
        v, _ = _principal(block.v[:: -(-len(block.v) // _V_LANDMARKS)], _V_DIMS)
        pairs = KronBasis(u, v, u[:0])
        directions, energies[name] = _principal(_pair_products(block, pairs, terms.directions), dim)
        kron[name] = KronBasis(u, v, directions)
    kept = _share(energies, dim)
    return Bases(
        flat=flat[:, : kept[""]].contiguous(),
        kron={n: KronBasis(b.u, b.v, b.pairs[:, : kept[n]].contiguous()) for n, b in kron.items()},
        rows={
            table: _principal(_thinned(torch.cat([use.grad for use in uses])), _ROW_DIMS)[0]
            for table, uses in terms.rows.items()
        },
    )


def _thinned(vectors: Tensor) -> Tensor:
    """Return evenly spaced ones of (m, d) vectors that are too wide for more; an odd step meets every direction."""
    return vectors if vectors.shape[1] <= _V_LANDMARKS else vectors[:: -(-len(vectors) // _V_LANDMARKS) | 1]


def _principal(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return up to `count` leading principal directions of (m, d) vectors, (d, ·), and their energies, descending."""
    x = vectors.double()
    count = min(count, *x.shape)
    if x.shape[1] <= x.shape[0]:
        energy, directions = torch.linalg.eigh(x.T @ x)
        energy, directions = energy.flip(0)[:count], directions.flip(1)[:, :count]
    else:
        energy, left = torch.linalg.eigh(x @ x.T)
        energy, left = energy.flip(0)[:count], left.flip(1)[:, :count]
        directions = x.T @ left
    basis = torch.linalg.qr(directions).Q if count else directions
    return basis.to(vectors.dtype), energy.clamp_min(0)


def _share(energies: Mapping[str, Tensor], dim: int) -> dict[str, int]:
    """Return how many directions each block gets when the `dim` of largest energy are taken over all blocks."""
    ranked = sorted(((float(e), name) for name, energy in energies.items() for e in energy), reverse=True)[:dim]
    return {name: sum(1 for _, owner in ranked if owner == name) for name in energies}


def _pair_products(block: Kron, basis: KronBasis, directions: int) -> Tensor:
    """Return each triple's gradient matrix in the leading coordinates, Σ_d (Uᵀu_d) ⊗ (Vᵀv_d): (n, pu·pv)."""
    pu, pv = basis.pair_shape
    u = (block.u @ basis.u[:, :pu]).view(-1, directions, pu)
    v = (block.v @ basis.v[:, :pv])[block.group].view(-1, directions, pv)
    return torch.einsum("ndp,ndq->npq", u, v).flatten(1)


@dataclass(frozen=True, slots=True)
class IndexCode:
    """φ and the residual norms of n triples; the block order is flat, then the rank-1 blocks."""

    phi: Tensor
    """(n, k)."""
    residual: Tensor
    """(n, blocks)."""
    squared_norm: Tensor
    """(n,): ‖g‖² over all blocks, embedding rows included."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the code under the names it has in a generation."""
        named = {"projected": self.phi, "residual": self.residual, "self_influence": self.squared_norm}
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def index_code(terms: Terms, bases: Bases) -> IndexCode:
    """Project the dense blocks of each triple; residual norms carry the slack for rounding."""
    norms = squared_norms(terms)
    phis = [terms.flat_sum() @ bases.flat]  # (n, size) @ (size, k) -> (n, k)
    squares = [norms.flat]
    for name, block in terms.kron.items():
        products = _pair_products(block, bases.kron[name], terms.directions)
        phis.append(products @ bases.kron[name].pairs)
        squares.append(norms.kron[name])
    residuals = [rest_norm(square, phi) for square, phi in zip(squares, phis, strict=True)]
    if not len(bases.flat):
        residuals[0] = torch.zeros_like(residuals[0])  # without flat blocks there is nothing to round
    return IndexCode(torch.cat(phis, 1), torch.stack(residuals, 1), norms.total)


def rest_norm(squared_norm: Tensor, coordinates: Tensor) -> Tensor:
    """Return the norm that the coordinates (…, k) leave of vectors with squared norms (…), and a slack for rounding."""
    left = (squared_norm - coordinates.square().sum(-1)).clamp_min(0)
    return (left + ROUNDING * squared_norm + FLOOR).sqrt()


@dataclass(frozen=True, slots=True)
class FactorCode:
    """Vectors of one kind as direction, norm and rest: v ≈ norm · direction in the basis."""

    direction: Tensor
    """(…, m) in the stored type; of length at most 1."""
    size: Tensor
    """(…, 2) float32: ‖v‖, and the norm of what the basis leaves out."""


def factor_code(vectors: Tensor, basis: Tensor, dtype: torch.dtype) -> FactorCode:
    """Encode vectors (m, d) in a basis (d, c)."""
    coordinates = vectors @ basis  # (m, d) @ (d, c) -> (m, c)
    squared_norm = vectors.square().sum(1)
    norm = (squared_norm + FLOOR).sqrt()
    direction = coordinates / norm[:, None]
    return FactorCode(direction.to(dtype), torch.stack([norm, rest_norm(squared_norm, coordinates)], 1))


def factor_codes(terms: Terms, bases: Bases, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return the factor codes of training triples under the names they have in a generation.

    Each array is (n, directions, …): ``NAME.u``, ``NAME.v`` and, for use i of a table, ``TABLE.i``, with ``.code`` in
    the stored type and ``.size`` in float32; ``TABLE.i.index`` is the row read, int32.
    """
    found: dict[str, Tensor] = {}

    def add(name: str, code: FactorCode) -> None:
        found[f"{name}.code"], found[f"{name}.size"] = code.direction, code.size

    for name, block in terms.kron.items():
        add(f"{name}.u", factor_code(block.u, bases.kron[name].u, dtype))
        shared = factor_code(block.v, bases.kron[name].v, dtype)
        add(f"{name}.v", FactorCode(shared.direction[block.group], shared.size[block.group]))
    for table, uses in terms.rows.items():
        for i, use in enumerate(uses):
            add(f"{table}.{i}", factor_code(use.grad, bases.rows[table], dtype))
            found[f"{table}.{i}.index"] = use.index.int()
    shape = (len(terms), terms.directions)
    return {name: tensor.reshape(*shape, *tensor.shape[1:]).cpu().numpy() for name, tensor in found.items()}
