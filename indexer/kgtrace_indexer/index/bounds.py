"""Upper and lower bounds of influence from stored codes, without touching the model.

`Codes.index_upper` gives the loose bound that is an inner product of short vectors; `Codes.bracket` the tight one, an
``estimate ± slack`` within which the exact influence lies. See `kgtrace_indexer.index.bases` for why they hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.index.bases import FLOAT32, FLOOR, ROUNDING
from kgtrace_indexer.index.query_code import QueryCode, QueryFactor, QuerySlopes
from kgtrace_indexer.index.rows import RowLists
from kgtrace_indexer.index.stack import Stack


def _stored_error(dtype: torch.dtype) -> float:
    """Return how far a stored direction, of length at most 1, may lie from the true one."""
    return 2.0**-11 + 1e-6 if dtype == torch.float16 else 2.0**-24  # half a unit in the last place, and subnormals


def _product_bounds(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the product of two numbers known up to an error each, and its error."""
    (first, first_error), (second, second_error) = x, y
    error = first.abs() * second_error + second.abs() * first_error + first_error * second_error
    return first * second, error


@dataclass(frozen=True, slots=True)
class Codes:
    """The stored codes of n training triples, as `factor_codes` and `index_code` made them."""

    arrays: Mapping[str, Stack]
    """By their names in a generation; memory-mapped on the CPU, unless a GPU has room for them."""
    rows: RowLists
    """Gradients of embedding rows, on the CPU."""

    @property
    def device(self) -> torch.device:
        """Where they are, and queries have to be."""
        return self.arrays["self_influence"].device

    def __len__(self) -> int:
        """Return n."""
        return len(self.arrays["projected"])

    def index_upper(self, query: QueryCode, sign: int, rows: Tensor) -> Tensor:
        """Bound sign · influence of training triples (m,) by the index codes and the norms of shared rows, (m,)."""
        # eq. (12) of docs/how-it-works.md, and eq. (4) by the norms of the shared rows
        upper = sign * (self._take("projected", rows) @ query.phi) + self._take("residual", rows) @ query.residual
        asked = {table: rows for table, rows in query.rows.items() if table not in query.spread}  # those are in φ and ρ
        norms = self.rows.norm_products(asked, query.number, rows.cpu().numpy())
        return upper + torch.from_numpy(norms * (1 + ROUNDING)).to(upper)

    def bracket(self, query: QueryCode, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the influence of training triples (m,) by the factor codes, (m,) each."""
        flat = query.flat_dims
        estimate = self._take("projected", rows)[:, :flat] @ query.phi[:flat]
        slack = ROUNDING * query.norm * (self._take("self_influence", rows) + FLOOR).sqrt()
        rounding = slack.cpu().numpy()
        slack = slack + self._take("residual", rows)[:, 0] * query.residual[0]
        for name, factors in query.kron.items():
            for u, v in factors:
                product, error = _product_bounds(
                    self._stored(f"{name}.u", rows).product(u), self._stored(f"{name}.v", rows).product(v)
                )  # (m, directions) each
                estimate += product.sum(1)
                slack += error.sum(1)
        products = self.rows.influences(query.rows, np.full(len(rows), query.number), rows.cpu().numpy())
        estimate += torch.from_numpy(products).to(estimate)
        for table, slopes in query.spread.items():
            product, error = self._spread_bracket(table, slopes, query, rows, rounding)
            estimate += product
            slack += error
        return estimate, slack

    def _spread_bracket(
        self, table: str, slopes: Sequence[QuerySlopes], query: QueryCode, rows: Tensor, rounding: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of what a table whose rows were all scored adds, (m,) each.

        Products of two row gradients of the table are not among it. Products ⟨g, x'⟩ that matter less than `rounding`
        (m,) are bounded by their norms.
        """
        # eq. (11) for u, then eq. (14) for its product with x
        u, x = _StoredSlopes.of(self.arrays, table, rows), self._stored(f"{table}.x", rows)
        pairs = [(u.product(each), x.product(each.x)) for each in slopes]
        pairs += [(u.entry(index), x.product(factor)) for index, factor in query.entries[table]]
        bounds = [_product_bounds(*pair) for pair in pairs]
        estimate, slack = (torch.stack(part).sum((0, 2)) for part in zip(*bounds, strict=True))
        for piece, of, index, read in self.rows.reads(table, rows.cpu().numpy()):
            for each in slopes:
                weight = each.all.cpu().numpy()[index]  # u' at the row that was read
                most = np.abs(weight) * piece.norm[read] * (each.x.norm * (1 + ROUNDING))
                exact = most > rounding[of]
                product = (piece.gradients(read[exact]) @ each.vector.cpu().numpy()) * weight[exact]
                error = np.where(exact, FLOAT32 * most, most)
                estimate += torch.from_numpy(np.bincount(of[exact], product, len(rows))).to(estimate)
                slack += torch.from_numpy(np.bincount(of, error, len(rows))).to(slack)
        return estimate, slack

    def _stored(self, name: str, rows: Tensor) -> "_Stored":
        """Gather stored vectors, (m, directions) of them."""
        code = self._take(f"{name}.code", rows)
        norm, rest = self._take(f"{name}.size", rows).unbind(-1)
        return _Stored(code.float(), norm, rest, _stored_error(code.dtype))

    def _take(self, name: str, rows: Tensor) -> Tensor:
        """Gather rows (m, …) of an array."""
        return self.arrays[name].take(rows)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Stored vectors v."""

    direction: Tensor
    """(…, m): their coordinates over their norms."""
    norm: Tensor
    rest: Tensor
    """Norms of what the basis leaves out."""
    error: float
    """How far a direction may lie from the true one."""

    def product(self, factor: QueryFactor) -> tuple[Tensor, Tensor]:
        """Return ⟨v, v'⟩ and its error, (…) each."""
        product = (self.direction @ factor.coordinates) * self.norm
        return product, self.norm * (self.error * factor.length) + self.rest * factor.rest


@dataclass(frozen=True, slots=True)
class _StoredSlopes:
    """Stored slopes u over all entities of some training triples: a few entries, coordinates and bounds of the rest."""

    inside: Tensor
    """(m, directions, c): coordinates of what has no entry, over `norm`."""
    value: Tensor
    """(m, directions, s): entries, over `norm`."""
    at: Tensor
    """(m, directions, s): whose they are."""
    tail: Tensor
    """(m, directions): t."""
    norm: Tensor
    """(m, directions), as are all below."""
    rest: Tensor
    """Norm of what neither has."""
    least: Tensor
    """Bound of every entry that is not stored."""
    own: Tensor
    """What u has at t beyond what the others say."""
    error: float
    """How far `inside` and `value` together may lie from the true ones."""

    @classmethod
    def of(cls, arrays: Mapping[str, Stack], table: str, rows: Tensor) -> "_StoredSlopes":
        """Gather those of training triples (m,)."""
        code, at = arrays[f"{table}.spread.code"].take(rows), arrays[f"{table}.spread.at"].take(rows)
        inside, value = code.float().split([code.shape[2] - at.shape[2], at.shape[2]], 2)
        norm, rest, least, own = arrays[f"{table}.spread.size"].take(rows).unbind(-1)
        tail = arrays[f"{table}.spread.index"].take(rows)
        return cls(inside, value, at, tail, norm, rest, least, own, _stored_error(code.dtype))

    def product(self, query: QuerySlopes) -> tuple[Tensor, Tensor]:
        """Return ⟨u, u'⟩ and its error, (m, directions) each."""
        coded = self.inside @ query.inside + (self.value * query.others[self.at]).sum(2)
        entry, entry_error = self.entry(query.tail)
        product = coded * self.norm + self.own * query.others[self.tail] + entry * query.at_tail
        error = self.norm * (self.error * query.length) + self.rest * query.outside + entry_error * abs(query.at_tail)
        return product, error

    def entry(self, index: int) -> tuple[Tensor, Tensor]:
        """Return u at an entity, and its error, (m, directions) each."""
        match = (self.at == index).float()  # (m, directions, s); sums of bool are slow
        entry = (self.value * match).sum(2) * self.norm + self.own * (self.tail == index)
        return entry, torch.where(match.sum(2) > 0, self.norm * self.error, self.least)
