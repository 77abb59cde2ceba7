"""One thread, a bounded queue, deadlines."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kgtrace_server.problems import DeadlineExceeded, NotReady, QueueFull
from kgtrace_server.worker import Worker


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_computations_run_one_after_the_other_in_one_thread() -> None:
    """Each uses all cores by itself: two at a time would be slower."""

    async def test() -> None:
        worker = Worker(queue_length=10, deadline=10)
        names = await asyncio.gather(*(worker.run(lambda: threading.current_thread().name) for _ in range(5)))
        assert len(set(names)) == 1
        assert names[0] != threading.main_thread().name
        worker.close()

    run(test)


def test_a_full_queue_refuses_at_once() -> None:
    """One computes, ``queue_length`` wait, the next is refused; then there is room again."""

    async def test() -> None:
        worker = Worker(queue_length=1, deadline=10)
        gate = threading.Event()
        first, second = (asyncio.ensure_future(worker.run(gate.wait)) for _ in range(2))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull, match="1 requests are waiting"):
            await worker.run(gate.wait)
        gate.set()
        await asyncio.gather(first, second)
        assert await worker.run(lambda: 7) == 7
        worker.close()

    run(test)


def test_what_has_not_begun_at_its_deadline_never_begins() -> None:
    """A request that gave up costs nothing more, and its place is free."""

    async def test() -> None:
        worker = Worker(queue_length=1, deadline=0.1)
        gate, begun = threading.Event(), []
        first = asyncio.ensure_future(worker.run(gate.wait))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded, match=r"within 0\.1 seconds"):
            await worker.run(lambda: begun.append("dropped"))
        with pytest.raises(DeadlineExceeded):
            await first
        gate.set()
        await worker.run(lambda: begun.append("next"))
        assert begun == ["next"]
        worker.close()

    run(test)


def test_errors_come_back() -> None:
    """What the computation raises, the request gets, and the thread lives on."""

    async def test() -> None:
        worker = Worker(queue_length=1, deadline=10)
        for _ in range(4):
            with pytest.raises(ZeroDivisionError):
                await worker.run(lambda: 1 // 0)
        worker.close()
        with pytest.raises(NotReady, match="shutting down"):
            await worker.run(lambda: 1)

    run(test)
