"""The number of CPU threads that compute.

A query is hundreds of operations of some microseconds. Shared out among threads, each operation ends with its slowest
thread, and beside another busy process the slowest waits for its turn on a core while the others spin. So a query
computes on one thread; scans and builds, whose operations are large, on as many as their caller allows
(``python -m benchmarks.neighbours``).
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from kgtrace_store.search import search_threads, set_search_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def limit_threads(count: int | None) -> None:
    """Let the calling thread compute with torch and FAISS on ``count`` threads; None changes nothing.

    OpenMP's limits belong to the thread that sets them, so each thread that computes calls this. Raises `MissingExtra`.
    """
    if count is None:
        return
    torch.set_num_threads(count)
    set_search_threads(count)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with torch and, where it is loaded, FAISS on the calling thread alone; restores its limits at the end."""
    threads = torch.get_num_threads()
    searching = search_threads() if "faiss" in sys.modules else None
    torch.set_num_threads(1)
    if searching is not None:
        set_search_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if searching is not None:
            set_search_threads(searching)


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the results of a function for each item, in order, computed by a thread for each core.

    Twice as many results as threads are in memory, whatever the number of items. What the function raises is raised
    here.
    """
    cores = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(cores, "kgtrace-block", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for item in items:
            if len(waiting) == 2 * cores:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # threads that begin later inherit the number that was set last
