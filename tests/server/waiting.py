"""Waiting for what can be seen, however slow the machine, and a clock that tests set forward."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

PATIENCE = 120.0
"""Seconds after which a test gives up on something that ought to happen. No test depends on how soon it does."""

_LOOK = 0.005
"""Seconds between looks."""

T = TypeVar("T")


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(_LOOK)


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; meanwhile the event loop goes on."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(_LOOK)


class Gate:
    """Holds what is being computed until it is opened, and tells when something has come to it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


class Hurried(asyncio.SelectorEventLoop):
    """An event loop whose clock can be set forward: its timers fire when a test says so, not when time has passed."""

    _ahead = 0.0

    def time(self) -> float:
        return super().time() + self._ahead

    def skip(self, seconds: float) -> None:
        self._ahead += seconds


def run_hurried(test: Callable[[Callable[[float], None]], Coroutine[Any, Any, T]]) -> T:
    """Run a test that is given the means to skip seconds."""
    loop = Hurried()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(test(loop.skip))
