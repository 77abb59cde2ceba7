"""The best of many influences on many test triples at once.

An influence and its training triple make one integer: bits of a float, turned so that integers ascend as floats do,
above the bits of the triple's number, turned so that they descend. The largest integers are the best influences, and of
equal ones those of the first training triples.
"""

import torch
from torch import Tensor

from kgtrace_indexer.names import Order
from kgtrace_indexer.query.certify import TopK, value
from kgtrace_indexer.transfers import to_host

_MOST_ROWS = 1 << 32
_NONE = torch.iinfo(torch.int64).min
"""Less than any influence."""


class Best:
    """The `top_k` best of the influences on b test triples that were taken in so far."""

    def __init__(self, count: int, order: Order, top_k: int, device: torch.device) -> None:
        self._order: Order = order
        self._looked_at = torch.zeros(count, dtype=torch.int64, device=device)
        self._top_k = top_k
        self._keys = torch.empty(count, 0, dtype=torch.int64, device=device)
        self._influence = torch.empty(count, 0, device=device)

    def add(
        self, rows: Tensor, influence: Tensor, allowed: Tensor | None = None, computed: Tensor | None = None
    ) -> None:
        """Take in influences (b, m) float32 of training triples (m,), each of them once.

        Masks (b or 1, m) say which may be named, and which were `computed`, where others are known to be 0.
        """
        keys = _ascending(value(influence, self._order)) * _MOST_ROWS + (_MOST_ROWS - 1 - rows)
        if allowed is not None:
            keys = torch.where(allowed, keys, _NONE)
        looked_at = keys > _NONE if computed is None else computed & (keys > _NONE)
        self._looked_at += looked_at.sum(1)
        keys, influence = torch.cat([self._keys, keys], 1), torch.cat([self._influence, influence], 1)
        best = keys.topk(min(self._top_k, keys.shape[1]))
        self._keys, self._influence = best.values, influence.gather(1, best.indices)

    def tops(self) -> list[TopK]:
        """Return the best of each test triple."""
        found = to_host({"keys": self._keys, "influence": self._influence, "looked_at": self._looked_at})()
        keys, influence = (torch.from_numpy(found[name]) for name in ("keys", "influence"))
        rows, sizes = _MOST_ROWS - 1 - keys % _MOST_ROWS, (keys > _NONE).sum(1).tolist()
        return [
            TopK(row[:size], one[:size], 0.0, looked_at, looked_at)
            for row, one, size, looked_at in zip(rows, influence, sizes, found["looked_at"].tolist(), strict=True)
        ]


def _ascending(values: Tensor) -> Tensor:
    """Return integers (…,) int64 that are in the order of values (…,) float32; 0 and −0 are the same."""
    bits = (values + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ torch.iinfo(torch.int32).max, bits).long()
