"""The number of CPU threads that compute.

A query is hundreds of operations of some microseconds. Shared out among threads, each operation ends with its slowest
thread, and beside another busy process the slowest waits for its turn on a core while the others spin. So a query
computes on one thread; scans and builds, whose operations are large, on as many as their caller allows
(``python -m benchmarks.neighbours``).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kgtrace_store.search import search_threads, set_search_threads


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
