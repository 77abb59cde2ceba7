"""How much is computed at a time: what fits into a CPU's caches, or into a GPU's free memory.

Every size that depends on the device is chosen here.
"""

from collections.abc import Callable
from functools import lru_cache
from time import monotonic
from typing import Protocol, Self, TypeVar

import torch

from kgtrace_store.errors import DeviceMemoryFull

Items = TypeVar("Items", bound="Halvable")
Result = TypeVar("Result")

_CACHE_FLOATS = 1 << 20
"""Floats of a temporary on a CPU: 4 MiB stay in the caches, and are not given back to the system."""
_TEMPORARIES = 16
"""Temporaries of the size of a piece that a GPU should have room for."""
_CPU_TRIPLES = 256
"""Training triples whose gradients are computed together on a CPU: they should stay in its caches."""
_GPU_TRIPLES = 8192
"""The same on a GPU, if there is room."""
_SCANNED = 2048
"""Training triples whose influences are computed together on a CPU."""
_CHUNK_FLOATS = 1 << 24
"""Floats of the widest temporary of automatic differentiation on a CPU, where each pass has a price of its own."""


class Halvable(Protocol):
    """A list, an array or a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


def piece_floats(device: torch.device) -> int:
    """Return how many floats a temporary may hold."""
    if device.type == "cpu":
        return _CACHE_FLOATS
    return max(_CACHE_FLOATS, recently_free(device, int(monotonic())) // (4 * _TEMPORARIES))


def triples_together(device: torch.device, floats: int) -> int:
    """Return how many training triples' gradients are computed together, given the floats of one's widest piece."""
    return _CPU_TRIPLES if device.type == "cpu" else max(1, min(_GPU_TRIPLES, piece_floats(device) // floats))


def scan_block(device: torch.device) -> int:
    """Return how many training triples' influences on test triples are computed together."""
    return _SCANNED if device.type == "cpu" else _GPU_TRIPLES


def chunk_floats(device: torch.device) -> int:
    """Return how many floats the widest temporary of automatic differentiation may hold."""
    return max(_CHUNK_FLOATS, 0 if device.type == "cpu" else piece_floats(device))


def in_halves(function: Callable[[Items], Result], items: Items, what: str) -> list[Result]:
    """Return a function's results: for all items, or, where the device's memory is too small, for halves of them.

    Raises `DeviceMemoryFull`, which says `what` a single item is, where it is too small even for that.
    """
    try:
        return [function(items)]
    except torch.OutOfMemoryError as e:
        if len(items) == 1:
            raise DeviceMemoryFull(
                f"the device's memory is too small for one {what}: free some, or use --device cpu"
            ) from e
    torch.cuda.empty_cache()  # of pieces that no half needs; does nothing where there is no GPU
    middle = len(items) // 2
    return [result for half in (items[:middle], items[middle:]) for result in in_halves(function, half, what)]


@lru_cache(maxsize=8)
def recently_free(device: torch.device, second: int) -> int:
    """Return what `free_bytes` says once in a second: a query asks often, and to ask takes longer than a product."""
    return free_bytes(device)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a GPU, or kept by torch for later tensors."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
