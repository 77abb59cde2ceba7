"""Several processes that answer on one socket, and one that starts and watches them.

Each is the whole service: index files are mapped, so that the system holds one copy of them for all, and each follows
``CURRENT`` by itself. A connection goes to any of them, and stays there.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

from kgtrace_server.http import logs, serving, tracing
from kgtrace_server.http.app import create_app
from kgtrace_server.http.metrics import SHARED
from kgtrace_server.settings import Settings
from kgtrace_store.cpus import usable_cpus

_PAUSE = 1.0
"""Seconds before a process that ended is replaced: others that end at once, too, leave the machine time."""

_log = logging.getLogger(__name__)


def supervise(settings: Settings, listening: socket.socket) -> None:
    """Serve with ``settings.workers`` processes until SIGTERM or SIGINT; requests in flight are answered first.

    A process that ends before that is replaced; the new one loads the index before it takes connections. Raises
    `KeyboardInterrupt` at the end after SIGINT.
    """
    each = replace(settings, threads=threads_of_each(settings))
    told, tell = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="kgtrace-metrics-") as folder, _signals(tell.send):
        os.environ[SHARED] = folder
        processes = [_start(each, listening) for _ in range(settings.workers)]
        while told not in wait([told, *(process.sentinel for process in processes)]):
            for i, process in enumerate(processes):
                if not process.is_alive():
                    _log.warning("process %s ended with exit code %s: starting another", process.pid, process.exitcode)
                    mark_process_dead(process.pid, folder)
                    if not told.poll(_PAUSE):
                        processes[i] = _start(each, listening)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        if told.recv() == signal.SIGINT:
            raise KeyboardInterrupt


def threads_of_each(settings: Settings) -> int:
    """Return the part of the CPU threads that one process computes with: at least 1."""
    return max(1, (settings.threads or usable_cpus()) // settings.workers)


@contextmanager
def _signals(tell: Callable[[int], None]) -> Iterator[None]:
    """Tell of signals that stop, until the block ends."""
    kept = {number: signal.signal(number, lambda n, _: tell(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _start(settings: Settings, listening: socket.socket) -> SpawnProcess:
    """Start a process; not by fork, which libraries with threads of their own do not survive."""
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(settings, listening))
    process.start()
    return process


def _serve(settings: Settings, listening: socket.socket) -> None:
    """Serve, in a process of its own."""
    logs.configure(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with_supervisor, name="kgtrace-supervisor", daemon=True).start()
    app = create_app(serving.loader(settings), settings, tracing.provider_from(os.environ))
    with suppress(KeyboardInterrupt):  # a terminal sends it to all
        serving.serve(app, settings, listening)


def _end_with_supervisor() -> None:
    """Stop this process as a signal would once the supervisor has ended, even by SIGKILL: nobody else could."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
