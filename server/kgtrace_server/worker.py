"""One thread that computes, and the queue before it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kgtrace_server.problems import DeadlineExceeded, NotReady, QueueFull

T = TypeVar("T")


class Worker:
    """Runs one computation at a time, off the event loop; each uses all cores by itself.

    A computation that has not begun at its deadline never begins. One that has cannot be stopped: it ends unheard.
    """

    def __init__(self, queue_length: int, deadline: float) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kgtrace")
        self._places = threading.BoundedSemaphore(queue_length + 1)
        self._queue_length = queue_length
        self._deadline = deadline

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread and return what it returns.

        Raises `QueueFull`, `DeadlineExceeded`, `NotReady` after `close`, and what the function raises.
        """
        if not self._places.acquire(blocking=False):
            raise QueueFull(f"{self._queue_length} requests are waiting already: try again shortly")
        try:
            future = self.submit(function)
        except NotReady:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.wrap_future(future)
        except TimeoutError as e:
            raise DeadlineExceeded(
                f"no answer within {self._deadline:g} seconds: ask for fewer triples or set max_candidates"
            ) from e

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Queue a function that no request waits for, such as loading the index. Raises `NotReady` after `close`."""
        try:
            return self._executor.submit(function)
        except RuntimeError as e:
            raise NotReady("the service is shutting down") from e

    def close(self) -> None:
        """Drop what has not begun, and refuse what comes."""
        self._executor.shutdown(wait=False, cancel_futures=True)
