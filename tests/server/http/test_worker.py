"""One thread, a bounded queue, and what is alike computed together."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, NoReturn

import pytest

from kgtrace_server.http.worker import BATCH, Batch, Task, Worker, _settle
from kgtrace_server.problems import NotReady, QueueFull
from tests.server.waiting import PATIENCE, Gate, until


class Counted(Worker):
    """A worker that counts how often its thread began anew."""

    def __init__(self, queue_length: int, **arguments: Any) -> None:
        self.restarts = 0
        super().__init__(queue_length, restarted=self._count, **arguments)

    def _count(self) -> None:
        self.restarts += 1


def run(test: Callable[[Callable[..., Counted]], Coroutine[Any, Any, None]]) -> None:
    """Run a test that makes workers, and close them."""
    workers: list[Counted] = []

    def make(queue_length: int = 1000, **arguments: Any) -> Counted:
        workers.append(Counted(queue_length, **arguments))
        return workers[-1]

    asyncio.run(asyncio.wait_for(test(make), 2 * PATIENCE))
    for worker in workers:
        worker.close()


def task(argument: Any = 0, *, key: Hashable = None, size: int = 1, gate: Gate | None = None) -> Any:
    """A task whose results are the argument and all arguments of its batch."""

    def compute(arguments: Sequence[Any]) -> list[Any]:
        if gate is not None:
            gate.pass_through()
        return [(own, tuple(arguments)) for own in arguments]

    return Task(compute, argument, object() if key is None else key, size)


async def result(worker: Worker, task: Any) -> Any:
    """Queue a task, and wait for its result."""
    return await worker.submit(task)


async def held(worker: Worker, gate: Gate) -> "asyncio.Future[Any]":
    """Let the thread compute something that ends when the gate is opened."""
    computing = asyncio.ensure_future(result(worker, task(gate=gate)))
    await until(gate.reached.is_set)
    return computing


async def queued(worker: Worker, tasks: list[Any]) -> "list[asyncio.Future[Any]]":
    """Queue tasks, in this order, in a worker that is held."""
    waiting = [asyncio.ensure_future(result(worker, t)) for t in tasks]
    await until(lambda: worker.waiting == len(tasks))
    return waiting


async def behind(worker: Worker, tasks: list[Any]) -> list[Any]:
    """Queue tasks while the thread is held, then let it go on; return their results or exceptions."""
    gate = Gate()
    first = await held(worker, gate)
    waiting = await queued(worker, tasks)
    gate.opened.set()
    await first
    return await asyncio.gather(*waiting, return_exceptions=True)


def test_computations_run_one_after_the_other_in_one_thread() -> None:
    """Each uses all cores by itself: two at a time would be slower."""
    seen: list[str] = []

    async def test(make: Callable[..., Counted]) -> None:
        worker = make(begin=lambda: seen.append("begin"))
        for _ in range(3):
            await result(worker, Task(lambda _: [seen.append(threading.current_thread().name)], 0, object()))

    run(test)
    assert seen[0] == "begin"
    assert len(seen) == 4
    assert len(set(seen[1:])) == 1
    assert seen[1] != threading.main_thread().name


def test_what_is_alike_is_computed_together_and_in_order() -> None:
    """Tasks that queue up behind a computation are taken by kind, the oldest first; each gets its own part."""
    batches: list[Batch] = []

    async def test(make: Callable[..., Counted]) -> None:
        worker = make(observe=batches.append)
        tasks = [task(i, key="even" if i % 2 == 0 else "odd") for i in range(6)]
        results = await behind(worker, tasks)
        assert [r.value for r in results] == [(i, (0, 2, 4) if i % 2 == 0 else (1, 3, 5)) for i in range(6)]
        assert [tuple(r.waited for r in results[i::2]) for i in range(2)] == [batch.waited for batch in batches[1:]]

    run(test)
    assert [len(batch.waited) for batch in batches] == [1, 3, 3]


def test_what_arrives_together_is_computed_together() -> None:
    """The thread begins when all that the event loop hands over at once are queued, not with the first."""
    batches: list[Batch] = []

    async def test(make: Callable[..., Counted]) -> None:
        worker = make(observe=batches.append)
        first = worker.submit(task(key="alike"))
        if worker._thread.is_alive():
            worker._thread.join(0.05)  # time enough to take the first
        await asyncio.gather(first, *(worker.submit(task(key="alike")) for _ in range(BATCH - 1)))

    run(test)
    assert [batch.size for batch in batches] == [BATCH]


def test_the_time_in_the_queue_is_told() -> None:
    """From when a task is queued to when it is taken."""

    async def test(make: Callable[..., Counted]) -> None:
        worker, gate = make(), Gate()
        first = await held(worker, gate)
        before = time.perf_counter()
        (waiting,) = await queued(worker, [task()])
        after = time.perf_counter()
        await until(lambda: time.perf_counter() > after)
        opened = time.perf_counter()
        gate.opened.set()
        await first
        computed = await waiting
        assert opened - after <= computed.waited <= time.perf_counter() - before

    run(test)


def test_batches_are_bounded() -> None:
    """Sizes add up to no more than `BATCH`, but for a single task that is larger; smaller ones may overtake it."""

    async def test(make: Callable[..., Counted]) -> None:
        sizes = [BATCH - 1, 2, 1, 4 * BATCH, 1]
        tasks = [task(i, key="alike", size=size) for i, size in enumerate(sizes)]
        results = await behind(make(), tasks)
        assert [r.value[1] for r in results] == [(0, 2), (1, 4), (0, 2), (3,), (1, 4)]

    run(test)


def test_nothing_waits_for_company() -> None:
    """A lone task is computed at once, alone."""

    async def test(make: Callable[..., Counted]) -> None:
        computed = await result(make(), task(7, key="alike"))
        assert computed.value == (7, (7,))

    run(test)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_the_queue_is_bounded(length: int) -> None:
    """One computes, so many wait, the next is refused; then there is room again."""

    async def test(make: Callable[..., Counted]) -> None:
        worker, gate = make(length), Gate()
        first = await held(worker, gate)
        waiting = await queued(worker, [task(i) for i in range(length)])
        with pytest.raises(QueueFull, match=f"{length} requests are waiting"):
            worker.require_room()
        with pytest.raises(QueueFull):
            await result(worker, task())
        gate.opened.set()
        await asyncio.gather(first, *waiting)
        assert (await result(worker, task(7))).value[0] == 7

    run(test)


def test_a_burst_on_a_free_thread_is_bounded_too() -> None:
    """The one that the thread is about to take does not count as waiting; no more than that are let in."""

    async def test(make: Callable[..., Counted]) -> None:
        worker, gate = make(2), Gate()
        requests = [asyncio.ensure_future(result(worker, task(gate=gate))) for _ in range(9)]
        await until(lambda: sum(request.done() for request in requests) == 6)
        gate.opened.set()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert sum(isinstance(r, QueueFull) for r in results) == 6

    run(test)


def test_what_is_cancelled_before_it_began_never_begins() -> None:
    """A request that gave up costs nothing more, and its place is free at once."""

    async def test(make: Callable[..., Counted]) -> None:
        worker, gate, begun = make(1), Gate(), []
        first = await held(worker, gate)
        (dropped,) = await queued(worker, [Task(begun.extend, "dropped", object())])
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        assert worker.waiting == 0
        first.cancel()
        gate.opened.set()
        await result(worker, task())
        assert begun == []

    run(test)


def test_errors_come_back() -> None:
    """What the computation raises all of its batch get; an outcome that is an exception only one; the thread lives."""

    def fail(arguments: Sequence[int]) -> list[Any]:
        raise ZeroDivisionError

    def fail_one(arguments: Sequence[int]) -> list[Any]:
        return [KeyError(i) if i == 1 else i for i in arguments]

    async def test(make: Callable[..., Counted]) -> None:
        worker = make()
        results = await behind(worker, [Task(fail, i, "fail") for i in range(3)])
        assert [type(r) for r in results] == [ZeroDivisionError] * 3
        results = await behind(worker, [Task(fail_one, i, "fail") for i in range(3)])
        assert [type(r).__name__ for r in results] == ["Computed", "KeyError", "Computed"]

    run(test)


def test_closing_refuses_what_waits_and_what_comes() -> None:
    """What is being computed ends, the others are told that the service shuts down."""

    async def test(make: Callable[..., Counted]) -> None:
        worker, gate = make(), Gate()
        first = await held(worker, gate)
        (second,) = await queued(worker, [task()])
        closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
        with pytest.raises(NotReady, match="shutting down"):
            await second
        with pytest.raises(NotReady, match="shutting down"):
            await result(worker, task())
        assert not first.done()
        gate.opened.set()
        await first
        await closing

    run(test)


def test_nothing_is_held_while_idle() -> None:
    """An index that was replaced is let go with the last task that used it, not with the next one."""

    class Index:
        pass

    async def test(make: Callable[..., Counted]) -> None:
        worker, index = make(), Index()
        reference = weakref.ref(index)
        await result(worker, Task(lambda arguments, index=index: arguments, 0, (index, 1)))
        del index
        await until(lambda: gc.collect() >= 0 and reference() is None)

    run(test)


def test_a_request_whose_loop_is_gone_does_no_harm() -> None:
    """The thread goes on when nobody can be told."""
    worker, gate = Worker(10), Gate()

    async def leave() -> None:
        (await held(worker, gate)).cancel()

    asyncio.run(leave())
    gate.opened.set()
    assert asyncio.run(result(worker, task(7))).value[0] == 7
    worker.close()


class Odd:
    """A key that cannot be compared."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError


def failing(action: Callable[..., Any] = lambda *_: None, at: int = 1) -> Callable[..., Any]:
    """A function that fails when it is called for the first, second, ... time."""
    calls: list[Any] = []

    def called(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == at:
            raise ZeroDivisionError
        return action(*arguments)

    return called


def leave(_: Any) -> NoReturn:
    raise SystemExit


def stop(_: Any) -> NoReturn:
    raise StopIteration


@pytest.mark.parametrize(
    ("arguments", "compute"),
    [
        ({"begin": failing()}, None),
        ({"observe": failing()}, None),
        ({}, lambda arguments: arguments[1:]),
        ({}, lambda arguments: [*arguments, 0]),
        ({}, lambda _: None),
        ({}, leave),
    ],
    ids=["begin", "observe", "an outcome too few", "an outcome too many", "no outcomes", "the end of the program"],
)
def test_the_thread_outlives_faults(arguments: dict[str, Any], compute: Any) -> None:
    """Who waits for the batch gets an error at once, everybody else an answer; each fault is counted."""

    async def test(make: Callable[..., Counted]) -> None:
        worker = make(**arguments)
        first = task(1) if compute is None else Task(compute, 1, object())
        with pytest.raises(RuntimeError, match="the computing thread failed") as caught:
            await result(worker, first)
        assert caught.value.__cause__ is not None
        assert worker.restarts == 1
        assert [(await result(worker, task(i))).value[0] for i in range(3)] == [0, 1, 2]
        assert (worker.restarts, worker.waiting) == (1, 0)

    run(test)


def test_a_fault_concerns_its_batch_alone() -> None:
    """What is queued behind the batch is computed by the thread that began anew, which is set up again."""
    begun: list[str] = []

    async def test(make: Callable[..., Counted]) -> None:
        worker = make(begin=lambda: begun.append("begin"))
        tasks = [Task(leave, 0, "odd"), task(1, key="even"), Task(leave, 2, "odd"), task(3, key="even")]
        results = await behind(worker, tasks)
        assert [type(r).__name__ for r in results] == ["RuntimeError", "Computed", "RuntimeError", "Computed"]
        assert worker.restarts == 1

    run(test)
    assert len(begun) == 2


def test_tasks_that_cannot_be_compared_leave_nobody_waiting() -> None:
    """A fault before there is a batch may be any task's: all that wait get it, and the next one is computed."""

    async def test(make: Callable[..., Counted]) -> None:
        worker = make()
        results = await behind(worker, [task(0, key=Odd()), task(1, key=Odd()), task(2)])
        assert [type(r).__name__ for r in results] == ["RuntimeError"] * 3
        assert (worker.restarts, worker.waiting) == (1, 0)
        assert (await result(worker, task(7))).value[0] == 7

    run(test)


def test_what_no_future_takes_is_an_error_all_the_same() -> None:
    """`StopIteration` escapes from code that asks an iterator for too much."""

    async def test(make: Callable[..., Counted]) -> None:
        worker = make()
        with pytest.raises(RuntimeError, match="StopIteration"):
            await result(worker, Task(stop, 0, object()))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await result(worker, Task(lambda _: [StopIteration()], 0, object()))
        assert worker.restarts == 0

    run(test)


def test_who_cannot_be_told_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while outcomes are handed out reaches those that have none yet."""

    async def test(make: Callable[..., Counted]) -> None:
        worker = make()
        monkeypatch.setattr("kgtrace_server.http.worker._settle", failing(_settle, at=3))
        results = await behind(worker, [task(i, key="alike") for i in range(3)])
        assert [type(r).__name__ for r in results] == ["Computed", "RuntimeError", "RuntimeError"]
        assert worker.restarts == 1
        assert (await result(worker, task(7))).value[0] == 7

    run(test)


def test_a_thread_that_failed_can_be_closed() -> None:
    """Closing ends it as it ends any other."""

    async def test(make: Callable[..., Counted]) -> None:
        worker = make()
        with pytest.raises(RuntimeError):
            await result(worker, Task(leave, 0, object()))
        await asyncio.to_thread(worker.close)
        assert not worker._thread.is_alive()
        with pytest.raises(NotReady, match="shutting down"):
            await result(worker, task())

    run(test)
