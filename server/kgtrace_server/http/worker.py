"""One thread that computes, and the queue before it.

No task waits for others: tasks that are queued when the thread gets free, and alike, are computed together. Under light
load that is one request at a time, under heavy load as many as fit. A free thread is woken when all requests of one
turn of the event loop are queued.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from kgtrace_server.problems import NotReady, QueueFull

BATCH = 64
"""Test triples computed together, unless one request has more: they share forward passes, and what does not hurry
waits for no more than these."""

_GRACE = 5.0
"""Seconds that `Worker.close` waits for a computation that nobody waits for any more."""

_log = logging.getLogger(__name__)

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

    The thread outlives faults outside of computations: the tasks concerned end with an error, and it begins anew.
    """

    def __init__(
        self,
        queue_length: int,
        *,
        begin: Callable[[], None] = lambda: None,
        observe: Callable[[Batch], None] = lambda _: None,
        queued: Callable[[int], None] = lambda _: None,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        """Store; the thread starts with the first task.

        ``begin`` is called in the thread before anything is computed, and again after a fault; ``observe`` with each
        batch taken, ``queued`` with the queue's length whenever it has changed, and ``restarted`` after each fault.
        """
        self._queue_length = queue_length
        self._begin = begin
        self._observe = observe
        self._queued = queued
        self._restarted = restarted
        self._queue: dict[_Job, None] = {}
        self._busy = False
        self._current: list[_Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._supervise, name="kgtrace-compute", daemon=True)

    @property
    def waiting(self) -> int:
        """How many tasks are queued."""
        return len(self._queue)

    def wanted(self) -> bool:
        """Return whether any client still waits for the running computation."""
        return any(not job.future.done() for job in self._current)

    def require_room(self) -> None:
        """Raise `QueueFull` if a task would be refused now."""
        # A free thread takes the first at once, so that one does not count as waiting.
        if len(self._queue) >= self._queue_length + (not self._busy):
            raise QueueFull(f"{self._queue_length} requests are waiting already: try again shortly")

    def submit(self, task: Task[Any, T]) -> "asyncio.Future[Computed[T]]":
        """Queue a task; return the future of its result, which takes it out of the queue when it is cancelled.

        Raises `QueueFull`, and `NotReady` after `close`. The future raises `NotReady` when the worker is closed before
        it is computed, the task's outcome if that is an exception, and `RuntimeError` after a fault of the thread.
        """
        loop = asyncio.get_running_loop()
        job = _Job(task, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise _shutting_down()
            self.require_room()
            self._queue[job] = None
            self._queued(len(self._queue))
        job.future.add_done_callback(partial(self._forget, job))
        loop.call_soon(self._wake)  # after all requests that arrived together are queued
        return job.future

    def _wake(self) -> None:
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()

    def _forget(self, job: _Job, future: "asyncio.Future[Computed[Any]]") -> None:
        if future.cancelled():
            with self._changed:
                self._queue.pop(job, None)
                self._queued(len(self._queue))

    def close(self) -> None:
        """Refuse waiting and new tasks, and give the running computation a moment to end."""
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, {}
            self._queued(0)
            self._changed.notify()
        for job in dropped:
            _settle(job, _shutting_down())
        if self._thread.is_alive():
            self._thread.join(_GRACE)

    def _supervise(self) -> None:
        """Work until closed, also after failures."""
        while True:
            try:
                self._work()
            except BaseException as e:  # SystemExit, too: a thread that ends by itself leaves all requests waiting
                self._fail(e)
            else:
                return

    def _work(self) -> None:
        """Compute batch after batch until closed."""
        begun = False
        while self._take():
            if not begun:
                self._begin()
                begun = True
            self._compute()

    def _fail(self, fault: BaseException) -> None:
        """Answer a fault to the batch that met it; if there was none, to all tasks that wait, for any may be the cause.

        So no task meets two faults, and nothing is tried again that nobody waits for.
        """
        _log.error("the computing thread failed and begins anew", exc_info=fault)
        with self._changed:
            failed, self._current = self._current or list(self._queue), []
            for job in failed:
                self._queue.pop(job, None)
            self._queued(len(self._queue))
            self._busy = False
        self._restarted()
        error = RuntimeError(f"the computing thread failed: {type(fault).__name__}")
        error.__cause__ = fault
        for job in failed:
            _settle(job, error)

    def _compute(self) -> None:
        """Compute the current batch. What it refers to, such as a replaced index, is let go at its end."""
        jobs, now = self._current, time.perf_counter()
        waited = tuple(now - job.queued for job in jobs)
        self._observe(Batch(waited, sum(job.task.size for job in jobs)))
        outcomes: Sequence[Any]
        try:
            outcomes = jobs[0].task.compute([job.task.argument for job in jobs])
        except Exception as e:
            outcomes = [e] * len(jobs)
        if len(outcomes) != len(jobs):
            raise RuntimeError(f"{len(jobs)} tasks had {len(outcomes)} outcomes")
        self._busy = False  # before clients get their answers: the next request must find a free thread
        for job, outcome, seconds in zip(jobs, outcomes, waited, strict=True):
            _settle(job, outcome if isinstance(outcome, Exception) else Computed(outcome, seconds))
        self._current = []

    def _take(self) -> bool:
        """Wait for work; make the oldest task and its like the current batch. False when closed."""
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
            self._queued(len(self._queue))
            self._current = jobs
            self._busy = True
            return bool(jobs)


def _settle(job: _Job, outcome: Computed[Any] | Exception) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        job.loop.call_soon_threadsafe(_tell, job.future, outcome)


def _tell(future: "asyncio.Future[Computed[Any]]", outcome: Computed[Any] | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, StopIteration):  # no future takes it
        future.set_exception(RuntimeError("the computation raised StopIteration"))
    elif isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _shutting_down() -> NotReady:
    return NotReady("the service is shutting down")
