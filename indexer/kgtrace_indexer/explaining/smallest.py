"""The smallest set of facts that lets a rival pass, where the effects of facts add up.

A rival e passes when the effects of a set on its margin exceed its gap, Σ_z v(z, e) > gap_e. Of all sets of k facts the
k of largest v have the largest sum, so one sort for each rival finds the best set of every size, and the smallest size
at which any rival passes is the smallest of all. Nothing is left out: the answer is that of trying all subsets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Best:
    """The best set of a size, for the rival that it helps most."""

    facts: np.ndarray
    """(k,) int64, by descending effect."""
    rival: int
    margin: float
    """Sum of the effects less the gap: by how much the rival is ahead."""


class SmallestSet:
    """Looks at rivals, some at a time, and keeps the best set of each size."""

    def __init__(self, most: int, bridges: Sequence[np.ndarray] | None = None) -> None:
        """Sets have at most `most` facts and, where there are `bridges`, sets of facts, all facts of at least one."""
        self._most = most
        self._bridges = None if bridges is None else [bridge for bridge in bridges if len(bridge) <= most]
        self._best: dict[int, Best] = {}
        self._at_hand = -np.inf  # margin of a single fact, or a bridge

    def look(self, effects: np.ndarray, gaps: np.ndarray, rivals: np.ndarray) -> None:
        """Look at rivals (R,), given the effects v (c, R) of c facts and the gaps (R,)."""
        if not effects.size:
            return
        if self._bridges is None:
            margins = [float((effects.max(0) - gaps).max())]
        else:
            margins = [float((effects[bridge].sum(0) - gaps).max()) for bridge in self._bridges]
        self._at_hand = max(self._at_hand, *margins, -np.inf)
        reached = self.within_reach(effects, gaps)
        values = torch.from_numpy(np.ascontiguousarray(effects[:, reached].T, np.float64))  # (R, c)
        gaps, rivals = gaps[reached], rivals[reached]
        if not len(rivals):
            return
        top = values.topk(min(self._most, values.shape[1]), dim=1).values
        sums = torch.cat([torch.zeros(len(top), 1, dtype=top.dtype), top.cumsum(1)], 1)  # of the largest 0, 1, ...
        for size in range(1, top.shape[1] + 1):
            for forced in [np.empty(0, np.int64)] if self._bridges is None else self._bridges:
                if len(forced) <= size:
                    margins = _largest(values[:, forced], top, sums, size).numpy() - gaps
                    at = int(margins.argmax())
                    if size not in self._best or margins[at] > self._best[size].margin:
                        self._best[size] = Best(_chosen(values[at], size, forced), int(rivals[at]), float(margins[at]))

    def within_reach(self, effects: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """Return which rivals (R,), given effects or more (c, R), may have a set that counts, (R,) bool.

        That is a smallest set or, where none lets a rival pass, one of the largest margin. A rival has none if its
        margin cannot reach that of a set at hand: the best single fact, which is smallest if it lets a rival pass, or a
        bridge, as far as it does not.
        """
        largest = effects.max(0, initial=-np.inf)  # (R,)
        at_hand = self._at_hand if self._bridges is None else min(0.0, self._at_hand)
        reached: np.ndarray = np.maximum(largest, self._most * largest) - gaps >= at_hand
        return reached

    @property
    def answer(self) -> Best | None:
        """The smallest set that lets a rival pass, or if none does, of any size; each that of the largest margin."""
        passing = [size for size, best in self._best.items() if best.margin > 0]
        if passing:
            return self._best[min(passing)]
        return max(self._best.values(), key=lambda best: best.margin, default=None)


def _largest(forced: torch.Tensor, top: torch.Tensor, sums: torch.Tensor, size: int) -> torch.Tensor:
    """Return the largest sums of `size` effects with all of some forced ones (R, f), (R,).

    They are the sum of the largest size − m effects and of the m least of the forced ones, where m is the smallest
    number such that all others of these are among the former, each in a place of its own: where effects are equal,
    the last of them is compared with the last place, the last but one with the last but one. `top` and `sums` are the
    largest effects, and their sums.
    """
    count = forced.shape[1]
    ordered = forced.sort(dim=1, descending=True).values
    total = sums[:, size - count] + ordered.sum(1)
    for m in reversed(range(count)):
        among = (ordered[:, : count - m] >= top[:, size - count : size - m]).all(1)
        total = torch.where(among, sums[:, size - m] + ordered[:, count - m :].sum(1), total)
    return total


def _chosen(values: torch.Tensor, size: int, forced: np.ndarray) -> np.ndarray:
    """Return the facts of the largest effects (c,) with all of some forced ones, (size,), by descending effect."""
    free = values.clone()
    free[forced] = torch.inf  # chosen first
    facts = free.topk(size).indices
    return facts[values[facts].argsort(descending=True, stable=True)].numpy()
