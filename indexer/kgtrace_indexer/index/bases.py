"""Short codes of gradients: orthogonal projections with the norm of the rest.

An orthonormal basis B splits a vector v into its coordinates Bᵀv and a rest of norm r, so that by Cauchy-Schwarz

    |⟨v, v'⟩ − ⟨Bᵀv, Bᵀv'⟩| ≤ r r'.

Two kinds of code are made of every gradient, and both bounds follow from that line alone:

* the *index code* φ, the k leading principal directions of the flat blocks and of each rank-1 block's matrix, with
  one residual norm ρ for each: Σ φφ' + Σ ρρ' is an inner product and bounds the dense influence from above;
* the *factor codes* of the vectors u and v of each rank-1 block, in 16 or 32 bits: ⟨u, u'⟩⟨v, v'⟩ is bounded through
  both factors, which is far tighter, but no inner product.

Gradients of single embedding rows need neither: they are stored as they are (`kgtrace_indexer.index.rows`).

A table whose rows were all scored is one dense block, its gradient Σ u ⊗ x + Σ e_i ⊗ g. Its index code takes principal
directions of the whole; the factor u, of as many numbers as there are entities, is stored as its largest entries and
coordinates of the rest (`SlopesCode`), and x as other factors are.

The directions are the principal ones (uncentred PCA) of a sample of training gradients, the landmarks: the Nyström
method with the gradient kernel (Williams and Seeger, 2000).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_indexer.gradients.norms import OwnProducts
from kgtrace_indexer.gradients.reads import Reads
from kgtrace_indexer.gradients.terms import Kron, Terms
from kgtrace_store.errors import CorruptGeneration

ROUNDING = 1e-4
"""Relative slack of every bound, in units of ‖g‖‖g'‖.

Float32 sums of this length err by about 1e-6. The model itself adds more: the score of a triple differs in its last
digits with the batch it is computed in, and where the loss is saturated (ℓ' = −σ(−s) for large s) an absolute error of
s becomes a relative one of the gradient."""

FLOAT32 = 1e-6
"""Relative error of a float32 sum of any length met here."""

FLOOR = 1e-32
"""Added to every squared norm: bounds the loss where squares are below float32's range."""

_U_DIMS = 256
"""Coordinates kept of u: all of a layer with up to so many outputs. ⟨u, u'⟩ carries the sign, so it must be good."""
_V_DIMS = 64
"""Coordinates kept of v."""
_V_LANDMARKS = 1024
"""Inputs looked at for the directions of v, and of wider x: their Gram matrix dominates the cost."""
_PAIR_DIMS = (256, 8)
"""Leading coordinates of u and v whose products span the matrix directions of φ."""
_X_DIMS = 256
"""Coordinates kept of x, the gradient of all scores with respect to a row, and of row gradients of such a table."""
_HEAD = 32
"""Entries kept of the slopes over all entities."""
_SPREAD_DIMS = 16
"""Coordinates kept of the slopes that are left."""


@dataclass(frozen=True, slots=True)
class KronBasis:
    """Directions for one rank-1 block."""

    u: Tensor
    """(p, mu), orthonormal columns."""
    v: Tensor
    """(q, mv), orthonormal columns."""
    pairs: Tensor
    """(pu·pv, k), orthonormal columns over the products of the first pu and pv coordinates."""


@dataclass(frozen=True, slots=True)
class Bases:
    """All directions of a generation; `dim` = k, the length of φ."""

    flat: Tensor
    """(size, k), orthonormal columns."""
    kron: Mapping[str, KronBasis]
    """By rank-1 block, and by table whose rows were all scored: u is over its rows, v for x and row gradients."""

    @property
    def dense(self) -> bool:
        """Whether there are blocks that all triples share."""
        return bool(self.kron or len(self.flat))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the directions under the names they have in a generation."""
        directions = {"basis.flat": self.flat}
        for name, block in self.kron.items():
            directions |= {
                f"basis.{name}.u": block.u,
                f"basis.{name}.v": block.v,
                f"basis.{name}.pairs": block.pairs,
            }
        return {name: tensor.cpu().numpy() for name, tensor in directions.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> "Bases":
        """Read the arrays that `arrays` returned. Raises `CorruptGeneration` where one is missing."""
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
            )
        except KeyError as e:
            raise CorruptGeneration(f"directions {e} are missing; there are {sorted(tensors)}") from e


def fit_bases(landmarks: Iterable[Terms], dim: int) -> Bases:
    """Choose the directions from the landmarks' gradients; φ gets the `dim` leading ones over all dense blocks.

    `landmarks` are the gradients of the same triples, apart: each `Terms` holds other blocks, and is in memory alone.
    """
    flats: list[Tensor] = []
    kron: dict[str, tuple[KronBasis, Tensor]] = {}
    for flat_sum, blocks in map(partial(_directions, dim=dim), landmarks):
        flats.append(flat_sum)
        kron |= blocks
    flat, flat_energies = _principal(torch.cat(flats, 1), dim)
    kept = _share({"": flat_energies} | {name: energies for name, (_, energies) in kron.items()}, dim)
    return Bases(
        flat=flat[:, : kept[""]].contiguous(),
        kron={n: KronBasis(b.u, b.v, b.pairs[:, : kept[n]].contiguous()) for n, (b, _) in kron.items()},
    )


def _directions(terms: Terms, dim: int) -> tuple[Tensor, dict[str, tuple[KronBasis, Tensor]]]:
    """Return the flat blocks (n, size), and up to `dim` directions of other dense blocks with energies."""
    kron = {name: _kron_directions(block, terms.per_triple, dim) for name, block in terms.kron.items()}
    kron |= {table: _table_directions(terms, table, dim) for table in terms.spread}
    return terms.flat_sum(), kron


def _kron_directions(block: Kron, per_triple: int, dim: int) -> tuple[KronBasis, Tensor]:
    """Return up to `dim` directions for a rank-1 block, and their energies."""
    u, _ = _principal(block.u, _U_DIMS)
    v, _ = _principal(block.v[:: -(-len(block.v) // _V_LANDMARKS)], _V_DIMS)
    pairs, energies = _principal(_pair_products(block, (block.u @ u, block.v @ v), per_triple), dim)
    return KronBasis(u, v, pairs), energies


def _table_directions(terms: Terms, table: str, dim: int) -> tuple[KronBasis, Tensor]:
    """Return up to `dim` directions for a table whose rows were all scored, and their energies."""
    spread = terms.spread[table]
    weight = spread.u.paired(spread.u).clamp_min(0).sqrt()  # (m,): ‖u‖
    weighted = weight[:, None] * spread.x[spread.u.group]
    gradients = torch.cat([weighted, *(use.grad for use in terms.rows.get(table, ()))])
    base = spread.u.base
    u, _ = _principal(split_slopes(base[:: -(-len(base) // _V_LANDMARKS)]).rest, _SPREAD_DIMS)
    v, _ = _principal(_thinned(gradients), _X_DIMS)
    pairs, energies = _principal(_table_products(terms, table, u, v), dim)
    return KronBasis(u, v, pairs), energies


def _thinned(vectors: Tensor) -> Tensor:
    """Return evenly spaced vectors of (m, d) that are too wide to take all; an odd step meets every direction."""
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


def _pair_products(
    block: Kron, coordinates: tuple[Tensor, Tensor], per_triple: int, weights: Tensor | None = None
) -> Tensor:
    """Return each triple's gradient matrix in the leading coordinates, Σ_d w_d (Uᵀu_d) ⊗ (Vᵀv_d): (n, pu·pv).

    `coordinates` are Uᵀu (m, ·) and Vᵀv (groups, ·), `weights` w (n, D) or 1.
    """
    u, v = (all_[:, :leading] for all_, leading in zip(coordinates, _PAIR_DIMS, strict=True))
    v = v.index_select(0, block.group).view(-1, per_triple, v.shape[1])
    if weights is not None:
        v = v * weights[:, :, None]
    return (u.view(-1, per_triple, u.shape[1]).mT @ v).flatten(1)  # (n, pu, D) @ (n, D, pv)


def _table_products(terms: Terms, table: str, u_basis: Tensor, v_basis: Tensor) -> Tensor:
    """Return the gradient of a table whose rows were all scored in the leading coordinates, (n, pu·pv)."""
    u_basis, v_basis = u_basis[:, : _PAIR_DIMS[0]], v_basis[:, : _PAIR_DIMS[1]]
    spread = terms.spread[table]
    pairs = [(spread.u.along(u_basis), (spread.x @ v_basis)[spread.u.group])]
    pairs += [(u_basis[use.index], use.grad @ v_basis) for use in terms.rows.get(table, ())]
    shape = (len(terms), terms.per_triple, -1)
    parts = [torch.einsum("ndp,ndq->npq", u.view(shape), v.view(shape)) for u, v in pairs]
    return torch.stack(parts).sum(0).flatten(1)


@dataclass(frozen=True, slots=True)
class IndexCode:
    """φ and the residual norms of n triples; blocks are flat, rank-1 blocks, then tables whose rows were all scored."""

    phi: Tensor
    """(n, k)."""
    residual: Tensor
    """(n, blocks)."""
    squared_norm: Tensor
    """(n,): ‖g‖² over all blocks, embedding rows included."""
    unweighted: Tensor | None
    """(n,): the same without the weights of loss terms, where there are some."""


@dataclass(frozen=True, slots=True)
class BlockCodes:
    """The share of one `Terms` in an index code."""

    flat: Tensor
    """(n, size): its flat blocks, which are projected together with the flat blocks of other `Terms`."""
    phi: Sequence[Tensor]
    """(n, ·): coordinates of each other dense block, rank-1 blocks first."""
    squared: Tensor
    """(n, 1 + blocks): ‖g‖² of the flat blocks, and of these."""
    norms: Tensor
    """(n, 1 + blocks): Σ_d ‖g_d‖ over the loss terms."""
    squared_norm: Tensor
    """(n,): ‖g‖² of all blocks."""
    unweighted: Tensor | None
    """(n,): the same without slopes, where there are some."""


Coordinates = Mapping[str, tuple[Tensor, Tensor]]
"""Uᵀu (m, ·) and Vᵀv (groups, ·) of each rank-1 block."""


def coordinates(terms: Terms, bases: Bases) -> Coordinates:
    """Return the coordinates of the factors of all rank-1 blocks."""
    return {name: (block.u @ bases.kron[name].u, block.v @ bases.kron[name].v) for name, block in terms.kron.items()}


def index_code(gradients: Iterable[Terms], bases: Bases) -> IndexCode:
    """Project the dense blocks of each triple; residual norms carry the slack for rounding.

    `gradients` are the terms of the same triples, apart as for `fit_bases`.
    """
    return join_codes([block_codes(terms, bases, coordinates(terms, bases)) for terms in gradients], bases)


def join_codes(parts: Sequence[BlockCodes], bases: Bases) -> IndexCode:
    """Join the codes of all blocks of the same triples to their index code."""
    flat, squared, norms = parts[0].flat, parts[0].squared, parts[0].norms
    if len(parts) > 1:
        flat = torch.cat([part.flat for part in parts], 1)
        flats = torch.stack([part.squared[:, 0] for part in parts], 1).sum(1)
        squared = torch.cat([flats[:, None], *(part.squared[:, 1:] for part in parts)], 1)
        # no less than the sum over loss terms of the norms of all flat blocks
        flats = torch.stack([part.norms[:, 0] for part in parts], 1).sum(1)
        norms = torch.cat([flats[:, None], *(part.norms[:, 1:] for part in parts)], 1)
    phis = [flat @ bases.flat, *(phi for part in parts for phi in part.phi)]  # (n, size) @ (size, k) -> (n, k)
    inside = torch.stack([phi.norm(dim=1) for phi in phis], 1)
    residual = _squared_rest(squared, inside).addcmul_(norms, norms, value=ROUNDING**2).sqrt_()
    if not len(bases.flat):
        residual[:, 0] = 0.0  # without flat blocks there is nothing to round
    first, *others = [part.squared_norm for part in parts]
    unweighted = [part.unweighted for part in parts if part.unweighted is not None]
    return IndexCode(
        phi=torch.cat(phis, 1),
        residual=residual,
        squared_norm=sum(others, first),
        unweighted=sum(unweighted[1:], unweighted[0]) if unweighted else None,
    )


def block_codes(
    terms: Terms,
    bases: Bases,
    coordinates: Coordinates,
    slope: Tensor | None = None,
    reads: Sequence[Reads] | None = None,
) -> BlockCodes:
    """Project the dense blocks of one `Terms`, but for its flat ones, each loss term times `slope` (n, D).

    Norms are then computed with and without slopes. `reads` are those of the tables that are no `spread` blocks.
    """
    products = OwnProducts.of(terms, reads)
    if slope is None:
        flat, squared = products.squared(None)
        total, unweighted, norms = squared.sum(1), None, products.norms().sum(2)
    else:
        flats, both = products.squared(F.pad(slope[:, None], (0, 0, 0, 1), value=1.0))
        flat, squared, (total, unweighted) = flats[:, 0], both[:, :, 0], both.sum(1).unbind(1)
        norms = (products.norms() @ slope[:, :, None])[:, :, 0]  # (n, 1 + blocks, D) @ (n, D, 1)
    phi = [
        _pair_products(block, coordinates[name], terms.per_triple, slope) @ bases.kron[name].pairs
        for name, block in terms.kron.items()
    ]
    for table in terms.spread:
        basis = bases.kron[table]
        phi.append(_table_products(terms, table, basis.u, basis.v) @ basis.pairs)
    return BlockCodes(flat, phi, squared[:, :-1], norms, total, unweighted)


def rest_norm(squared_norm: Tensor, coordinates: Tensor) -> Tensor:
    """Return the norm that the coordinates (…, k) leave of vectors with squared norms (…), and a slack for rounding."""
    return _squared_rest(squared_norm, coordinates.norm(dim=-1)).sqrt_()


def _squared_rest(squared_norm: Tensor, inside: Tensor) -> Tensor:
    """Return the squared norm of a vector's rest, and a slack for rounding, given the norm of its coordinates."""
    left = torch.addcmul(squared_norm, inside, inside, value=-1).clamp_min_(0)
    return left.add_(squared_norm, alpha=ROUNDING).add_(FLOOR)


@dataclass(frozen=True, slots=True)
class Split:
    """Slopes over all entities (groups, E) as their largest entries and the rest."""

    value: Tensor
    """(groups, s): the entries of largest absolute value, descending in that."""
    at: Tensor
    """(groups, s) int64: the entities of these entries."""
    rest: Tensor
    """(groups, E): all other entries, and 0 in place of the largest."""


def split_slopes(slopes: Tensor) -> Split:
    """Split slopes over all entities (groups, E)."""
    at = slopes.abs().topk(min(_HEAD, slopes.shape[1])).indices
    return Split(slopes.gather(1, at), at, slopes.scatter(1, at, 0.0))
