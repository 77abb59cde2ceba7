"""Factor codes: vectors of rank-1 blocks in the directions of `kgtrace_indexer.index.bases`; rows as they are."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Slopes, Terms
from kgtrace_indexer.index.bases import FLOAT32, FLOOR, Bases, rest_norm, split_slopes


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


def factor_code(vectors: Tensor, basis: Tensor, dtype: torch.dtype) -> FactorCode:
    """Encode vectors (m, d) in a basis (d, c)."""
    coordinates = vectors @ basis  # (m, d) @ (d, c) -> (m, c)
    squared_norm = torch.linalg.vecdot(vectors, vectors)
    norm = (squared_norm + FLOOR).sqrt()
    direction = coordinates / norm[:, None]
    return FactorCode(direction.to(dtype), torch.stack([norm, rest_norm(squared_norm, coordinates)], 1))


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


def row_gradients(terms: Terms) -> dict[str, np.ndarray]:
    """Return ``TABLE.i.grad``, the gradient of each row that use i of a table reads, (n, directions, d) float32."""
    return {
        f"{table}.{i}.grad": use.grad.view(len(terms), terms.per_triple, -1).cpu().numpy()
        for table, uses in terms.rows.items()
        for i, use in enumerate(uses)
    }


def factor_codes(terms: Terms, bases: Bases, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return the factor codes of training triples, and which rows they read, under the names they have in a part.

    Each array is (n, directions, …): ``NAME.u`` and ``NAME.v`` with ``.code`` in the stored type and ``.size`` in
    float32; for use i of a table ``TABLE.i.index``, the row read, int32. Of a table whose rows were all scored there
    are ``TABLE.x`` and ``TABLE.spread``, the latter with ``.at`` and, the own tail, ``.index``, int32.
    """
    codes: dict[str, Tensor] = {}

    def add(name: str, code: FactorCode) -> None:
        codes[f"{name}.code"], codes[f"{name}.size"] = code.direction, code.size

    for name, block in terms.kron.items():
        add(f"{name}.u", factor_code(block.u, bases.kron[name].u, dtype))
        shared = factor_code(block.v, bases.kron[name].v, dtype)
        add(f"{name}.v", shared.of(block.group))
    for table, uses in terms.rows.items():
        for i, use in enumerate(uses):
            codes[f"{table}.{i}.index"] = use.index.int()
    for table, spread in terms.spread.items():
        slopes = slopes_code(spread.u, bases.kron[table].u, dtype)
        add(f"{table}.spread", FactorCode(slopes.direction, slopes.size))
        codes[f"{table}.spread.at"], codes[f"{table}.spread.index"] = slopes.at, spread.u.tail.int()
        shared = factor_code(spread.x, bases.kron[table].v, dtype)
        add(f"{table}.x", shared.of(spread.u.group))
    shape = (len(terms), terms.per_triple)
    return {name: tensor.reshape(*shape, *tensor.shape[1:]).cpu().numpy() for name, tensor in codes.items()}
