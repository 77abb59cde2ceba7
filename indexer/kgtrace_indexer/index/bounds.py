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
from kgtrace_indexer.index.query_code import QueryCodes, QueryFactors, QuerySlopes
from kgtrace_indexer.index.rows import RowLists
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.transfers import to_device

_TEMPORARIES = 4
"""Floats that are in memory for each pair of loss terms, where all training triples are looked at."""


def _stored_error(dtype: torch.dtype) -> float:
    """Return how far a stored direction, of length at most 1, may lie from the true one."""
    return 2.0**-11 + 1e-6 if dtype == torch.float16 else 2.0**-24  # half a unit in the last place, and subnormals


def _product_bounds(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the product of two numbers known up to an error each, and its error."""
    (first, first_error), (second, second_error) = x, y
    error = first.abs() * second_error + second.abs() * first_error + first_error * second_error
    return first * second, error


def _products(stored: Tensor, queries: Tensor, query: Tensor) -> Tensor:
    """Return ⟨x, y⟩ for vectors x (m, k), and y of (b, k) whose number is `query` (m,): (m,)."""
    return stored @ queries[0] if len(queries) == 1 else (stored * queries[query]).sum(1)


@dataclass(frozen=True, slots=True)
class Codes:
    """The stored codes of n training triples, as `factor_codes` and `index_code` made them."""

    arrays: Mapping[str, Stack]
    """By their names in a generation; memory-mapped on the CPU, unless a GPU has room for them."""
    rows: RowLists
    """Gradients of embedding rows, on the CPU."""

    @property
    def device(self) -> torch.device:
        """The device of the codes; queries must be there, too. The numbers of pairs are on the CPU."""
        return self.arrays["self_influence"].device

    def __len__(self) -> int:
        """Return n."""
        return len(self.arrays["projected"])

    def index_upper(self, queries: QueryCodes, query: Tensor, rows: Tensor, signs: Sequence[int]) -> Tensor:
        """Bound sign · influence, for the sign that makes it larger, of training triples (m,) on test triples (m,).

        Returns (m,) bounds of the pairs, by the index codes and the norms of shared rows; all on the CPU.
        """
        # eq. (12) of docs/how-it-works.md, and eq. (4) by the norms of the shared rows
        of, there = to_device(np.stack([query.numpy(), rows.numpy()]), self.device)
        products = _products(self._take("projected", there), queries.phi, of)
        upper = torch.stack([sign * products for sign in signs]).amax(0)
        upper += _products(self._take("residual", there), queries.residual, of)
        sparse = {name: gradients for name, gradients in queries.rows.items() if name not in queries.spread}
        norms = self.rows.norm_products(sparse, query.numpy(), rows.numpy())  # spread tables are in φ and ρ
        return upper.cpu() + torch.from_numpy(norms * (1 + ROUNDING) + FLOOR).float()  # small norms are 0 in float32

    def bracket(self, queries: QueryCodes, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the influence of training triples (m,) on test triples (m,), (m,) each.

        The bounds, of pairs, are those of the factor codes; all on the CPU.
        """
        flat = queries.flat_dims
        of, there = to_device(np.stack([query.numpy(), rows.numpy()]), self.device)
        estimate = _products(self._take("projected", there)[:, :flat], queries.phi[:, :flat], of)
        rounding = ROUNDING * queries.norm[of] * (self._take("self_influence", there) + FLOOR).sqrt()
        slack = rounding + self._take("residual", there)[:, 0] * queries.residual[:, 0][of]
        for name, (u, v) in queries.kron.items():
            product, error = _product_bounds(
                self._stored(f"{name}.u", there).product(u.take(of)),
                self._stored(f"{name}.v", there).product(v.take(of)),
            )  # (m, directions, D') each
            estimate += product.sum((1, 2))
            slack += error.sum((1, 2))
        for table in queries.spread:
            product, error = self._spread_bracket(table, queries, of, there, rounding.cpu().numpy())
            estimate += product
            slack += error
        estimate, slack = torch.stack([estimate, slack]).cpu()
        products = self.rows.influences(queries.rows, query.numpy(), rows.numpy())
        return estimate + torch.from_numpy(products).float(), slack

    def bracket_all(self, queries: QueryCodes, tests: slice) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the influence of all n training triples on some test triples, (b, n) each.

        They are those of `bracket` but for gradients of embedding rows, and on the device; not for tables whose rows
        are all scored.
        """
        flat, norm, rest = queries.flat_dims, queries.norm[tests], queries.residual[tests, 0]
        count, found = len(norm), list[tuple[Tensor, Tensor]]()
        terms = max((u.norm.shape[1] for u, _ in queries.kron.values()), default=1)
        together = max(1, piece_floats(self.device) // (_TEMPORARIES * count * terms * terms))
        for start in range(0, len(self), together):
            rows = torch.arange(start, min(start + together, len(self)), device=self.device)
            estimate = self._take("projected", rows)[:, :flat] @ queries.phi[tests, :flat].T  # (m, b)
            own = (self._take("self_influence", rows) + FLOOR).sqrt()
            slack = ROUNDING * own[:, None] * norm + self._take("residual", rows)[:, :1] * rest
            for name, (u, v) in queries.kron.items():
                product, error = _product_bounds(
                    self._stored(f"{name}.u", rows).products(u, tests),
                    self._stored(f"{name}.v", rows).products(v, tests),
                )  # (m, directions, b, D') each
                estimate += product.sum((1, 3))
                slack += error.sum((1, 3))
            found.append((estimate.T, slack.T))
        estimates, slacks = (torch.cat(part, 1) for part in zip(*found, strict=True))
        return estimates, slacks

    def _spread_bracket(
        self, table: str, queries: QueryCodes, query: Tensor, rows: Tensor, rounding: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Return estimate and slack of the part of a table whose rows were all scored, (m,) each.

        Products of two row gradients of the table do not belong to it. Products ⟨g, x'⟩ that matter less than
        `rounding` (m,) are bounded by their norms.
        """
        # eq. (11) for u, then eq. (14) for its product with x
        slopes, stored = queries.spread[table], self._stored(f"{table}.x", rows)
        u = _StoredSlopes.of(self.arrays, table, rows)
        pairs = [(u.product(slopes, query), stored.product(slopes.x.take(query)))]
        if table in queries.entries:
            read_by, factors = queries.entries[table]
            pairs.append((u.entry(read_by[query]), stored.product(factors.take(query))))
        bounds = [_product_bounds(*pair) for pair in pairs]
        estimate, slack = (sum(tensor.sum((1, 2)) for tensor in part) for part in zip(*bounds, strict=True))
        tests = query.cpu().numpy()
        for piece, of, index, read in self.rows.reads(table, rows.cpu().numpy()):
            for term in range(slopes.tail.shape[1]):
                test = tests[of]
                weight = slopes.all[test, term, index].cpu().numpy()  # u' at the row that was read
                most = np.abs(weight) * piece.norms(read) * (slopes.x.norm[test, term].cpu().numpy() * (1 + ROUNDING))
                exact = most > rounding[of]
                vectors = slopes.vector[test[exact], term].cpu().numpy()
                product = np.einsum("kd,kd->k", piece.gradients(read[exact]), vectors) * weight[exact]
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
    """Stored vectors v of some training triples."""

    direction: Tensor
    """(m, directions, c): their coordinates over their norms."""
    norm: Tensor
    """(m, directions)."""
    rest: Tensor
    """(m, directions): norms of the parts outside the basis."""
    error: float
    """How far a direction may lie from the true one."""

    def product(self, factors: QueryFactors) -> tuple[Tensor, Tensor]:
        """Return ⟨v, v'⟩ with every loss term of the test triple (m, D', ·) beside each, and its error, (m, …, D')."""
        norm, rest = self.norm[..., None], self.rest[..., None]
        coordinates = factors.coordinates
        product = (self.direction @ (coordinates[0].T if len(coordinates) == 1 else coordinates.mT)) * norm
        return product, norm * (self.error * factors.length[:, None]) + rest * factors.rest[:, None]

    def products(self, factors: QueryFactors, tests: slice) -> tuple[Tensor, Tensor]:
        """Return ⟨v, v'⟩ with every loss term of some test triples, and its error, (m, directions, b, D') each."""
        coordinates, norm, rest = factors.coordinates[tests], self.norm[..., None, None], self.rest[..., None, None]
        product = self.direction.flatten(0, 1) @ coordinates.flatten(0, 1).T
        error = norm * (self.error * factors.length[tests]) + rest * factors.rest[tests]
        return product.view(*self.norm.shape, *coordinates.shape[:2]) * norm, error


@dataclass(frozen=True, slots=True)
class _StoredSlopes:
    """Stored slopes u over all entities of some training triples: a few entries, coordinates and bounds of the rest."""

    inside: Tensor
    """(m, directions, c): coordinates of the slopes without entry, over `norm`."""
    value: Tensor
    """(m, directions, s): entries, over `norm`."""
    at: Tensor
    """(m, directions, s): the entities of the entries."""
    tail: Tensor
    """(m, directions): t."""
    norm: Tensor
    """(m, directions), as are all below."""
    rest: Tensor
    """Norm of the part in neither coordinates nor entries."""
    least: Tensor
    """Bound of every entry that is not stored."""
    own: Tensor
    """The difference at t of u and its approximation by coordinates and entries."""
    error: float
    """How far `inside` and `value` together may lie from the true ones."""

    @classmethod
    def of(cls, arrays: Mapping[str, Stack], table: str, rows: Tensor) -> "_StoredSlopes":
        """Gather the slopes of training triples (m,)."""
        code, at = arrays[f"{table}.spread.code"].take(rows), arrays[f"{table}.spread.at"].take(rows)
        inside, value = code.float().split([code.shape[2] - at.shape[2], at.shape[2]], 2)
        norm, rest, least, own = arrays[f"{table}.spread.size"].take(rows).unbind(-1)
        tail = arrays[f"{table}.spread.index"].take(rows)
        return cls(inside, value, at, tail, norm, rest, least, own, _stored_error(code.dtype))

    def product(self, slopes: QuerySlopes, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return ⟨u, u'⟩ and its error for test triples (m,), (m, directions, D') each."""
        terms = torch.arange(slopes.tail.shape[1], device=query.device)[:, None, None]  # (D', 1, 1)
        entries = slopes.others[query[:, None, None, None], terms, self.at[:, None]]  # (m, D', directions, s)
        coded = self.inside @ slopes.inside[query].mT + (self.value[:, None] * entries).sum(3).mT
        tail, at_tail = slopes.tail[query], slopes.at_tail[query][:, None]
        entry, entry_error = self.entry(tail)
        at_own = slopes.others[query[:, None, None], terms[:, 0], self.tail[:, None]].mT  # u' at t
        product = coded * self.norm[..., None] + self.own[..., None] * at_own + entry * at_tail
        error = self.norm[..., None] * (self.error * slopes.length[query][:, None])
        error = error + self.rest[..., None] * slopes.outside[query][:, None] + entry_error * at_tail.abs()
        return product, error

    def entry(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return u at entities (m, e), and its error, (m, directions, e) each."""
        match = (
            self.at[..., None, :] == index[:, None, :, None]
        ).float()  # (m, directions, e, s); sums of bool are slow
        own = self.own[..., None] * (self.tail[..., None] == index[:, None])
        entry = (self.value[..., None, :] * match).sum(3) * self.norm[..., None] + own
        return entry, torch.where(match.sum(3) > 0, self.norm[..., None] * self.error, self.least[..., None])
