"""Listening, and running an application until it is told to stop."""

import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import KgtraceError

_BACKLOG = 2048
"""Connections that the system accepts while the event loop is busy."""

_GRACE = 5
"""Seconds beyond the deadline that requests in flight get to end when the service stops."""

_log = logging.getLogger(__name__)


class CannotListen(KgtraceError, OSError):
    """The address is taken, not permitted or not this machine's."""


def loader(root: Path, settings: Settings) -> Callable[[], Service]:
    """Return a function that opens the live generation of an index root, for `create_app`."""

    def load() -> Service:
        # Thread limits hold for the thread that sets them, so they are set here, where everything is computed.
        import torch

        from kgtrace_indexer.engine import open_attributor
        from kgtrace_store.search import set_search_threads

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        service = Service(open_attributor(root, device=settings.device))
        if settings.threads is not None:
            set_search_threads(settings.threads)
        return service

    return load


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket. Raises `CannotListen`.

    Logs a warning when other machines can reach it and no key is asked for.
    """
    if not settings.local and settings.read_key is None:
        _log.warning(
            "listening on %s without a key: whoever reaches this machine can query the index; "
            "set KGTRACE_READ_KEY or listen on 127.0.0.1",
            settings.host,
        )
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as e:
        raise CannotListen(
            f"cannot listen on {settings.host} port {settings.port}: {e.strerror or e}: choose another --host or --port"
        ) from e


def address(listening: socket.socket) -> str:
    """Return the address to open in a browser."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """Return a server for ``run(sockets=[...])``; setting its ``should_exit`` stops it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            # Its notices about starting and stopping say nothing that ours do not.
            log_level="debug" if settings.log_level == "debug" else "warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.deadline) + _GRACE,
        )
    )


def serve(app: FastAPI, settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered first."""
    # The server repeats the signal that stopped it once it is done, for whoever started it; being asked to
    # terminate and doing so is a success.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server(app, settings).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, previous)
