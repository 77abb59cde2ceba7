"""Certified top-k on a GPU that holds what is stored of all training triples: for many test triples at once.

Of influences on embedding rows alone all are computed, and the best are chosen: there are no bounds, and nothing is
left out. Of influences on all parameters the factor bounds of all training triples are computed, by matrix products of
their codes, and those that may be among the best go on to `kgtrace_indexer.query.certify`, without an index.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.query_code import QueryCodes, encode_queries
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.query.cascade import Cascade
from kgtrace_indexer.query.certify import CertifiedSearch, SearchOptions, TopK, value
from kgtrace_indexer.query.ranking import Best
from kgtrace_indexer.query.row_search import RowSearch
from kgtrace_indexer.transfers import to_device, to_host

_FLOATS = 8
"""Floats in memory for each pair of a test triple and a training triple."""


@dataclass(frozen=True, slots=True)
class ResidentSearch(RowSearch):
    """Looks at all that `RowSearch` bounds; a search that may be cut short is one of that kind."""

    resident: ResidentRows = field(kw_only=True)

    def _find(
        self, queries: Mapping[str, RowQueries], count: int, options: SearchOptions, mask: np.ndarray | None
    ) -> list[TopK]:
        if options.max_candidates is not None:
            return RowSearch._find(self, queries, count, options, mask)
        device, tops = self.resident.device, list[TopK]()
        rows, allowed = torch.arange(self._count, device=device), None
        if mask is not None:
            allowed = to_device(mask, device)[None]
        together = max(1, piece_floats(device) // (_FLOATS * self._count))
        for start in range(0, count, together):
            tests = range(start, min(start + together, count))
            influence, linked = self.resident.influences(queries, tests, self._count)
            best = Best(len(tests), options.order, options.top_k, device)
            best.add(rows, influence.float(), allowed, linked)
            tops += best.tops()
        return tops


@dataclass(frozen=True, slots=True)
class ResidentCascade(Cascade):
    """Bounds all training triples by the codes; a search that may be cut short is one of `Cascade`, with its index.

    So is one of a loss whose gradient is in all rows of a table.
    """

    resident: ResidentRows = field(kw_only=True)
    """Of TracIn's loss."""

    def find(self, terms: Terms, options: SearchOptions) -> list[TopK]:
        """Return the exact top k of each test triple, certified unless `max_candidates` cut the search short."""
        if options.max_candidates is not None or terms.spread:
            return Cascade.find(self, terms, options)
        queries = encode_queries(terms, self.bases, self.codes.device)
        search = CertifiedSearch(queries, self.codes, self._exactly(queries, terms, options), options)
        together = max(1, piece_floats(self.codes.device) // (_FLOATS * len(self.codes)))
        for start in range(0, len(queries), together):
            search.look(*self._candidates(queries, options, range(start, min(start + together, len(queries)))))
        return search.top()

    def _candidates(self, queries: QueryCodes, options: SearchOptions, tests: range) -> tuple[Tensor, Tensor]:
        """Return the test triples and training triples, (m,) each, that may be among the best of the former."""
        device, count = self.codes.device, len(self.codes)
        estimate, slack = self.codes.bracket_all(queries, slice(tests.start, tests.stop))
        on_rows, _ = self.resident.influences(queries.rows, tests, count)
        middle = value(estimate + on_rows.float(), options.order)
        lower, upper = middle - slack, middle + slack
        masks = options.allowed[tests.start : tests.stop]
        if any(mask is not None for mask in masks):
            every = np.ones(count, bool)
            allowed = to_device(np.stack([every if mask is None else mask for mask in masks]), device)
            lower, upper = (torch.where(allowed, bound, -torch.inf) for bound in (lower, upper))
        least = lower.topk(min(options.top_k, count)).values[:, -1:]
        pairs = to_host({"pairs": ((upper >= least) & (upper > -torch.inf)).nonzero()})()["pairs"]
        query, rows = torch.from_numpy(pairs).unbind(1)
        return query + tests.start, rows
