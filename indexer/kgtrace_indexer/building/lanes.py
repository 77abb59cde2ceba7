"""Batches side by side: threads that each compute one batch, and one that writes whole parts.

Matrix products of one batch leave cores idle between them, in gathers, reductions and on disk; several batches at a
time, each on one core, do not. A batch is then computed in the same way whatever the number of cores. On a GPU each
lane has a stream of its own, so that one batch is computed while another is copied.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_GPU_LANES = 2
"""Batches on a GPU at a time: one is computed, one copied."""


class Lanes:
    """Threads that compute, and a thread that writes; leaving the context waits for both.

    `several` says whether batches may be computed at the same time. Where they may not, each uses all cores.
    """

    def __init__(self, device: torch.device, *, several: bool) -> None:
        self._cores = cores = torch.get_num_threads()
        self._device = device
        self._count = 1 if not several else _GPU_LANES if device.type == "cuda" else cores
        self._threads = 1 if several and device.type == "cpu" else cores
        self._compute = ThreadPoolExecutor(self._count, "kgtrace-batch", initializer=self._begin)
        self._write = ThreadPoolExecutor(1, "kgtrace-write")
        self._writing: Future[None] | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield a function's result for each item, in order; its exceptions are raised here."""
        return self._compute.map(self._in_lane(function), items)

    def write(self, function: Callable[[], None]) -> None:
        """Start to write once the write before is done; raise here the exception of that write, if any."""
        self._wait()
        self._writing = self._write.submit(function)

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._compute.shutdown(cancel_futures=True)
        self._write.shutdown()
        torch.set_num_threads(self._cores)  # threads that begin later inherit the number that was set last
        if kind is None:
            self._wait()

    def _begin(self) -> None:
        torch.set_num_threads(self._threads)  # threads that run already keep theirs

    def _in_lane(self, function: Callable[[Item], Result]) -> Callable[[Item], Result]:
        if self._device.type != "cuda" or self._count == 1:
            return function

        def in_stream(item: Item) -> Result:
            with torch.cuda.stream(torch.cuda.Stream(self._device)):
                return function(item)

        return in_stream
