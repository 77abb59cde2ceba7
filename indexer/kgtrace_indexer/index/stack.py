"""Arrays that lie in several pieces, read as one."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor


class Stack:
    """Pieces (nᵢ, ...) of one type, one after the other: an array of n = Σ nᵢ rows."""

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        """`pieces`: at least one."""
        self.pieces = pieces
        self._starts = list(accumulate(map(len, pieces), initial=0))

    def __len__(self) -> int:
        """Return n."""
        return self._starts[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (len(self), *self.pieces[0].shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the pieces are."""
        return self.pieces[0].device

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.nbytes for piece in self.pieces)

    def to(self, device: torch.device) -> "Stack":
        """Return the same on a device; on a GPU in one piece, so that nobody waits to learn in which one rows are."""
        if device.type == "cpu":
            return Stack([piece.to(device) for piece in self.pieces])
        whole = torch.empty(self.shape, dtype=self.pieces[0].dtype, device=device)
        for piece, (start, stop) in zip(self.pieces, pairwise(self._starts), strict=True):
            whole[start:stop].copy_(piece)
        return Stack([whole])

    def take(self, rows: Tensor) -> Tensor:
        """Gather rows (m,), (m, ...)."""
        if len(self.pieces) == 1:
            return self.pieces[0].index_select(0, rows)  # five times faster than by indexing
        ranked, order = rows.sort()
        cuts = torch.searchsorted(ranked, torch.tensor(self._starts, device=rows.device)).tolist()
        gathered = self.pieces[0].new_empty((len(rows), *self.shape[1:]))
        for piece, start, (low, high) in zip(self.pieces, self._starts, pairwise(cuts), strict=False):
            if low < high:
                gathered[order[low:high]] = piece.index_select(0, ranked[low:high] - start)
        return gathered
