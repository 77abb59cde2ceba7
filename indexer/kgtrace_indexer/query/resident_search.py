"""Certified top-k of influences on embedding rows alone, on a GPU that holds the gradients of these rows.

All training triples that share a row with a test triple have their influence computed, and the best are chosen, for as
many test triples at once as there is memory for. There are no bounds, and nothing is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.query.certify import SearchOptions, TopK
from kgtrace_indexer.query.ranking import Best
from kgtrace_indexer.query.row_search import RowSearch
from kgtrace_indexer.transfers import to_device

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
