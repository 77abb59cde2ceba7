"""Upper and lower bounds of influence from stored codes, without touching the model.

`Codes.index_upper` gives the loose bound that is an inner product of short vectors; `Codes.bracket` the tight one, an
``estimate ± slack`` within which the exact influence lies. See `kgtrace_indexer.index.bases` for why they hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.index.bases import FLOOR, ROUNDING
from kgtrace_indexer.index.query_code import QueryCode, QueryFactor, QuerySlopes, RowCodes
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.models.checkpoints import checkpoint_of
from kgtrace_indexer.models.featurizer import BCE_SLOPE, OF_BCE_SUFFIX


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
    uses: Mapping[str, int]
    """How often a loss term reads each embedding table."""

    @classmethod
    def of(cls, arrays: Mapping[str, Stack]) -> "Codes":
        """Wrap the arrays of a generation."""
        uses: dict[str, int] = {}
        for name in arrays:
            if name.endswith(".index") and not name.endswith(".spread.index"):
                table = name.removesuffix(".index").rpartition(".")[0]
                uses[table] = uses.get(table, 0) + 1
        return cls(arrays, uses)

    @property
    def device(self) -> torch.device:
        """Where they are, and queries have to be."""
        return self.arrays["self_influence"].device

    def __len__(self) -> int:
        """Return n."""
        return len(self.arrays["projected"])

    def index_upper(self, query: QueryCode, sign: int, rows: Tensor) -> Tensor:
        """Bound sign · influence of training triples (m,) by the index codes and the norms of shared rows, (m,)."""
        upper = sign * (self._take("projected", rows) @ query.phi) + self._take("residual", rows) @ query.residual
        for table, i, index, factor in self._uses(query):
            if table in query.spread:
                continue  # its other uses are in φ and ρ
            place, direction = torch.nonzero(self._take(f"{table}.{i}.index", rows) == index, as_tuple=True)
            norms = self._take(f"{table}.{i}.size", rows[place], direction)[:, 0]
            upper.index_add_(0, place, norms * (factor.norm * (1 + ROUNDING)))
        return upper

    def bracket(self, query: QueryCode, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the influence of training triples (m,) by the factor codes, (m,) each.

        Both are exactly 0 for a triple that shares no row with the query when there are no dense blocks either.
        """
        flat = query.flat_dims
        estimate = self._take("projected", rows)[:, :flat] @ query.phi[:flat]
        slack = ROUNDING * query.norm * (self._take("self_influence", rows) + FLOOR).sqrt()
        rounding = slack.clone()
        slack += self._take("residual", rows)[:, 0] * query.residual[0]
        related = torch.full_like(slack, float(query.residual[0] > 0 or len(query.kron) + len(query.spread) > 0))
        for name, factors in query.kron.items():
            for u, v in factors:
                product, error = _product_bounds(
                    self._stored(f"{name}.u", rows).product(u), self._stored(f"{name}.v", rows).product(v)
                )  # (m, directions) each
                estimate += product.sum(1)
                slack += error.sum(1)
        for table, i, index, factor in self._uses(query):
            place, direction = torch.nonzero(self._take(f"{table}.{i}.index", rows) == index, as_tuple=True)
            if len(place):
                product, error = self._stored(f"{table}.{i}", rows[place], direction).product(factor)
                estimate.index_add_(0, place, product)
                slack.index_add_(0, place, error)
                related[place] = 1
        for table, slopes in query.spread.items():
            product, error = self._spread_bracket(table, slopes, query, rows, rounding)
            estimate += product
            slack += error
        return estimate, slack * related

    def rows_bracket(self, tables: Mapping[str, RowCodes], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the influence of training triples (m,) on a gradient of table rows, (m,) each.

        It is `bracket` for a sum over many test triples, which may read every row of the tables.
        """
        estimate, slack = torch.zeros(2, len(rows), device=self.device)
        for table, query in tables.items():
            for i in range(self.uses[table]):
                index = self._take(f"{table}.{i}.index", rows).long().clamp_max(len(query.norm) - 1)  # (m, directions)
                stored = self._stored(f"{table}.{i}", rows)
                estimate += ((stored.direction * query.coordinates[index]).sum(2) * stored.norm).sum(1)
                error = stored.norm * (stored.error * query.length[index] + ROUNDING * query.norm[index])
                slack += (error + stored.rest * query.rest[index]).sum(1)
        return estimate, slack

    def row_gradients(self, table: str, index: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of one row of a table as training triples (m,) have them, as far as they are stored.

        Returns their coordinates, (m, c) float32, and the sum of squares of what these leave out, ().
        """
        found = torch.zeros(len(rows), self.arrays[f"{table}.0.code"].shape[2], device=self.device)
        left = torch.zeros((), device=self.device)
        for read in self.row_reads(table, torch.full_like(rows, index), rows):
            found.index_add_(0, read.place, read.grad)
            left += read.left.sum()
        return found, left.clamp_min(0)

    def row_reads(self, table: str, index: Tensor, rows: Tensor) -> Iterator["RowReads"]:
        """Yield, for each use of a table, the reads of row `index` (m,) of it by training triples (m,)."""
        slopes = self.arrays.get(BCE_SLOPE)
        for i in range(self.uses[table]):
            indices, left_name = self._take(f"{table}.{i}.index", rows), f"{table}.{i}.left"
            place, direction = torch.nonzero(indices == index[:, None], as_tuple=True)
            triples = rows[place]
            stored = self._stored(f"{table}.{i}", triples, direction)
            slope = torch.ones_like(stored.norm)
            if slopes is not None:
                slope = slopes.take(triples, checkpoint_of(table) * indices.shape[1] + direction)
            if left_name in self.arrays:
                left = self._take(left_name, triples, direction)
                scaled = left if slopes is None else self._take(f"{left_name}{OF_BCE_SUFFIX}", triples, direction)
            else:
                left = stored.rest.square()
                scaled = slope.square() * left
            yield RowReads(place, stored.direction * stored.norm[:, None], slope, left, scaled)

    def _spread_bracket(
        self, table: str, slopes: Sequence[QuerySlopes], query: QueryCode, rows: Tensor, rounding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of what a table whose rows were all scored adds, (m,) each.

        Products of two row gradients of the table are not among it. Products ⟨g, x'⟩ that matter less than `rounding`
        (m,) are bounded by their norms.
        """
        u, x = _StoredSlopes.of(self.arrays, table, rows), self._stored(f"{table}.x", rows)
        pairs = [(u.product(each), x.product(each.x)) for each in slopes]
        pairs += [(u.entry(index), x.product(factor)) for index, factor in query.rows.get(table, ())]
        bounds = [_product_bounds(*pair) for pair in pairs]
        estimate, slack = (torch.stack(part).sum((0, 2)) for part in zip(*bounds, strict=True))
        for i in range(self.uses.get(table, 0)):
            index, norm = self._take(f"{table}.{i}.index", rows), self._take(f"{table}.{i}.size", rows)[:, :, 0]
            for each in slopes:
                weight = each.all[index]  # (m, directions): u' at the row that was read
                most = weight.abs() * norm * each.x.norm * (1 + ROUNDING)
                matters = most > rounding[:, None]
                slack += (most * ~matters).sum(1)
                place, direction = torch.nonzero(matters, as_tuple=True)
                product, error = self._stored(f"{table}.{i}", rows[place], direction).product(each.x)
                estimate.index_add_(0, place, product * weight[matters])
                slack.index_add_(0, place, error * weight[matters].abs())
        return estimate, slack

    def _uses(self, query: QueryCode) -> list[tuple[str, int, int, QueryFactor]]:
        """Return every pairing of a stored use of a table with one of the query's."""
        return [
            (table, i, index, factor)
            for table, factors in query.rows.items()
            for i in range(self.uses[table])
            for index, factor in factors
        ]

    def _stored(self, name: str, rows: Tensor, direction: Tensor | None = None) -> "_Stored":
        """Gather stored vectors: (m, directions) of them, or (m,) for one direction of each."""
        code = self._take(f"{name}.code", rows, direction)
        norm, rest = self._take(f"{name}.size", rows, direction).unbind(-1)
        return _Stored(code.float(), norm, rest, _stored_error(code.dtype))

    def _take(self, name: str, rows: Tensor, direction: Tensor | None = None) -> Tensor:
        """Gather rows (m, …) of an array, or those of one direction each."""
        return self.arrays[name].take(rows, direction)


@dataclass(frozen=True, slots=True)
class RowReads:
    """Gradients of one embedding row each, as k reads by training triples have them."""

    place: Tensor
    """(k,) int64: which of the triples asked for reads."""
    grad: Tensor
    """(k, c) float32: the gradient in stored coordinates."""
    slope: Tensor
    """(k,): what multiplies it under ``bce``, where the index has ``removal``; 1 elsewhere."""
    left: Tensor
    """(k,): share of the read in the squared norm of what the coordinates leave out of the triple's gradient."""
    scaled_left: Tensor
    """(k,): the same under ``bce``, where the index has ``removal``."""


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
