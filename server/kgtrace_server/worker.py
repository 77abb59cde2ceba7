"""One thread that computes, and the queue before it.

Nothing waits for company: what is queued when the thread gets free, and is alike, is computed together. Under light
load that is one request at a time, under heavy load as many as fit.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from kgtrace_server.problems import NotReady, QueueFull

BATCH = 64
"""Test triples computed together, unless one request has more: they share forward passes, and what does not hurry
waits for no more than these."""

_GRACE = 5.0
"""Seconds that `Worker.close` waits for a computation that nobody waits for any more."""

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task(Generic[A, T]):
    """One request's part of a computation."""

    compute: Callable[[Sequence[A]], Sequence[T | Exception]]
    """Called in the computing thread with the arguments of all tasks computed together; one outcome for each."""
    argument: A
    key: Hashable
    """Tasks with equal keys are computed together, by the ``compute`` of the first."""
    size: int = 1
    """Its share of `BATCH`."""


@dataclass(frozen=True, slots=True)
class Computed(Generic[T]):
    """A result, and how it came about."""

    value: T
    waited: float
    """Seconds in the queue."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What was taken from the queue at once."""

    waited: tuple[float, ...]
    """Seconds that each of its tasks was queued."""
    size: int
    """Sum of the tasks' sizes."""


@dataclass(eq=False, slots=True)
class _Job:
    task: Task[Any, Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Computed[Any]]"
    queued: float = field(default_factory=time.perf_counter)


class Worker:
    """Computes off the event loop, one batch at a time; each uses all threads by itself.

    A task whose request was cancelled before it began never begins. One that has begun can ask `wanted` and give up;
    else it ends unheard.
    """

    def __init__(
        self,
        queue_length: int,
        *,
        begin: Callable[[], None] = lambda: None,
        observe: Callable[[Batch], None] = lambda _: None,
    ) -> None:
        """Store; the thread starts with the first task.

        ``begin`` is called once in the thread, before anything is computed; ``observe`` with each batch taken.
        """
        self._queue_length = queue_length
        self._begin = begin
        self._observe = observe
        self._queue: dict[_Job, None] = {}
        self._busy = False
        self._current: list[_Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="kgtrace-compute", daemon=True)

    @property
    def waiting(self) -> int:
        """How many tasks are queued."""
        return len(self._queue)

    def wanted(self) -> bool:
        """Return whether anybody still waits for what is being computed."""
        return any(not job.future.done() for job in self._current)

    def require_room(self) -> None:
        """Raise `QueueFull` if a task would be refused now."""
        # A free thread takes the first at once, so that one does not count as waiting.
        if len(self._queue) >= self._queue_length + (not self._busy):
            raise QueueFull(f"{self._queue_length} requests are waiting already: try again shortly")

    async def run(self, task: Task[Any, T]) -> Computed[T]:
        """Queue a task and return its result; cancelling this takes the task out of the queue.

        Raises `QueueFull`, `NotReady` after `close`, and what the task's outcome is if that is an exception.
        """
        loop = asyncio.get_running_loop()
        job = _Job(task, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise _shutting_down()
            self.require_room()
            self._queue[job] = None
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()
        try:
            return await job.future
        except asyncio.CancelledError:
            with self._changed:
                self._queue.pop(job, None)
            raise

    def close(self) -> None:
        """Refuse what waits and what comes, and give what is being computed a moment to end."""
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, {}
            self._changed.notify()
        for job in dropped:
            _settle(job, _shutting_down())
        if self._thread.is_alive():
            self._thread.join(_GRACE)

    def _work(self) -> None:
        self._begin()
        while self._compute(self._take()):
            pass

    def _compute(self, jobs: list[_Job]) -> bool:
        """Compute a batch, unless it is empty. What it refers to, such as a replaced index, is let go at its end."""
        if not jobs:
            return False
        now = time.perf_counter()
        waited = tuple(now - job.queued for job in jobs)
        self._observe(Batch(waited, sum(job.task.size for job in jobs)))
        try:
            self._current = jobs
            outcomes = jobs[0].task.compute([job.task.argument for job in jobs])
        except Exception as e:
            outcomes = [e] * len(jobs)
        self._current = []
        self._busy = False  # before anybody is told: who asks again at once must find a free thread
        for job, outcome, seconds in zip(jobs, outcomes, waited, strict=True):
            _settle(job, outcome if isinstance(outcome, Exception) else Computed(outcome, seconds))
        return True

    def _take(self) -> list[_Job]:
        """Wait for work; take the oldest task and its like. Empty when closed."""
        with self._changed:
            self._busy = False
            while not self._queue and not self._closed:
                self._changed.wait()
            jobs = list(islice(self._queue, 1))
            size = sum(job.task.size for job in jobs)
            for job in islice(self._queue, 1, None):
                if job.task.key == jobs[0].task.key and size + job.task.size <= BATCH:
                    jobs.append(job)
                    size += job.task.size
            for job in jobs:
                del self._queue[job]
            self._busy = True
            return jobs


def _settle(job: _Job, outcome: Computed[Any] | Exception) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        job.loop.call_soon_threadsafe(_tell, job.future, outcome)


def _tell(future: "asyncio.Future[Computed[Any]]", outcome: Computed[Any] | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _shutting_down() -> NotReady:
    return NotReady("the service is shutting down")
