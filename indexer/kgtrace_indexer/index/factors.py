"""Factor codes: vectors of rank-1 blocks in the directions of `kgtrace_indexer.index.bases`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Slopes, Terms
from kgtrace_indexer.index.bases import FLOAT32, FLOOR, Bases, Coordinates, rest_norm, split_slopes


@dataclass(frozen=True, slots=True)
class FactorCode:
    """Vectors of one kind as direction, norm and rest: v ≈ norm · direction in the basis."""

    direction: Tensor
    """(…, m) in the stored type; of length at most 1."""
    size: Tensor
    """(…, 2) float32: ‖v‖, and the norm of the part outside the basis."""

    def of(self, group: Tensor) -> "FactorCode":
        """Return the codes of vectors `group` (m,) of (groups, ·)."""
        return FactorCode(self.direction.index_select(0, group), self.size.index_select(0, group))


def factor_codes_of(vectors: Sequence[Tensor], inside: Sequence[Tensor], dtype: torch.dtype) -> list[FactorCode]:
    """Encode lists of vectors (mᵢ, dᵢ), given their coordinates (mᵢ, cᵢ) in a basis each."""
    counts = [len(some) for some in vectors]
    norms, lengths = (torch.cat([x.norm(dim=1) for x in some]) for some in (vectors, inside))
    squared = norms.square()
    norm = (squared + FLOOR).sqrt_()
    size = torch.stack([norm, rest_norm(squared, lengths[:, None])], 1)
    directions = [torch.empty_like(coordinates, dtype=dtype) for coordinates in inside]
    for direction, coordinates, own in zip(directions, inside, norm.split(counts), strict=True):
        torch.div(coordinates, own[:, None], out=direction)
    return [FactorCode(*code) for code in zip(directions, size.split(counts), strict=True)]


@dataclass(frozen=True, slots=True)
class SlopesCode:
    """Slopes u over all entities as entries of their own tail and of a few others, and coordinates of the rest."""

    direction: Tensor
    """(m, c + s) in the stored type: coordinates of the rest and entries, over their norm."""
    at: Tensor
    """(m, s) int32: the entities of the entries. The own tail's entry, if it is one of these, is 0: `size` has it."""
    size: Tensor
    """(m, 4) float32: the norm of `direction`'s numbers; the norm of the part in neither; a bound of every entry that
    is not stored; the difference of the own tail's entry and its approximation."""


def slopes_code(slopes: Slopes, basis: Tensor, dtype: torch.dtype) -> SlopesCode:
    """Encode slopes u in directions (E, c) of their smaller entries."""
    split = split_slopes(slopes.base)
    inside = split.rest @ basis  # (groups, E) @ (E, c) -> (groups, c)
    left = (split.rest - inside @ basis.T).norm(dim=1)  # not from squares: their difference would cancel
    least = split.value[:, -1].abs()
    inside, left, least, value, at = (x[slopes.group] for x in (inside, left, least, split.value, split.at))
    value, at = torch.cat([slopes.own[:, 1:], value], 1), torch.cat([slopes.index[:, 1:], at], 1)
    is_own = at == slopes.tail[:, None]
    own = slopes.own[:, 0] + (value * is_own).sum(1)
    stored = torch.cat([inside, value * ~is_own], 1)
    norm = (stored.square().sum(1) + FLOOR).sqrt()
    size = torch.stack([norm, left + FLOAT32 * (norm + left + own.abs()), least, own], 1)
    return SlopesCode((stored / norm[:, None]).to(dtype), at.int(), size)


def factor_codes(
    terms: Terms, bases: Bases, dtype: torch.dtype, coordinates: Coordinates, slope: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the factor codes of training triples under the names that they have in a part.

    Each array is (n, directions, …): ``NAME.u`` and ``NAME.v`` with ``.code`` in the stored type and ``.size`` in
    float32. Of a table whose rows were all scored there are ``TABLE.x`` and ``TABLE.spread``, the latter with ``.at``
    and, the own tail, ``.index``, int32. `slope` (n, D) multiplies the loss terms of rank-1 blocks.
    """
    codes: dict[str, Tensor] = {}

    def add(name: str, code: FactorCode) -> None:
        codes[f"{name}.code"], codes[f"{name}.size"] = code.direction, code.size

    for name, block in terms.kron.items():
        u, v = factor_codes_of([block.u, block.v], coordinates[name], dtype)
        add(f"{name}.u", u if slope is None else FactorCode(u.direction, u.size * slope.view(-1, 1)))
        add(f"{name}.v", v.of(block.group))
    for table, spread in terms.spread.items():
        slopes = slopes_code(spread.u, bases.kron[table].u, dtype)
        add(f"{table}.spread", FactorCode(slopes.direction, slopes.size))
        codes[f"{table}.spread.at"], codes[f"{table}.spread.index"] = slopes.at, spread.u.tail.int()
        (x,) = factor_codes_of([spread.x], [spread.x @ bases.kron[table].v], dtype)
        add(f"{table}.x", x.of(spread.u.group))
    shape = (len(terms), terms.per_triple)
    return {name: tensor.reshape(*shape, *tensor.shape[1:]) for name, tensor in codes.items()}
