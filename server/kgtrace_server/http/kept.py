"""A generation besides the one that answers, opened for the questions that name it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from kgtrace_server.problems import NotReady

_IDLE = 300.0
"""Seconds without a question after which the generation is let go: its memory, and its lock against pruning."""

S = TypeVar("S")


class Kept(Generic[S]):
    """Holds at most one generation, that of the last question. Questions that began with another keep that one.

    Its methods are called in the event loop; `release` may be called anywhere.
    """

    def __init__(self, open_: Callable[[str], S]) -> None:
        """Store. ``open_(generation)`` opens a generation; it is called in threads of its own, one at a time."""
        self._open = open_
        self._held: tuple[str, Future[S]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def service(self, generation: str) -> S:
        """Return the service of a generation; questions that come while it is being opened share it.

        Raises `NotReady` while another one is being opened, and the errors of ``open_``, which is then called again by
        the next question.
        """
        held = self._held
        if held is None or held[0] != generation or (held[1].done() and held[1].exception() is not None):
            if held is not None and not held[1].done():
                raise NotReady(f"generation {held[0]} is being opened, one at a time: try again shortly")
            held = self._held = None  # its memory is free before the other is opened
            held = self._held = generation, _in_thread(partial(self._open, generation))
        self._start_timer()
        return await asyncio.shield(asyncio.wrap_future(held[1]))

    def release(self) -> None:
        """Let the generation go, unless it is being opened."""
        if self._held is not None and self._held[1].done():
            self._held = None

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_IDLE, self._expire)

    def _expire(self) -> None:
        self.release()
        if self._held is not None:  # it is being opened
            self._start_timer()


def _in_thread(call: Callable[[], S]) -> Future[S]:
    """Call in a thread that no shutdown waits for."""
    future: Future[S] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run, name="kgtrace-open", daemon=True).start()
    return future
