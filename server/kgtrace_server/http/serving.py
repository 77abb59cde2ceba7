"""Listening, and running an application until a signal stops it."""

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from kgtrace_server import engines
from kgtrace_server.http.memory import bound_heap
from kgtrace_server.http.protocol import BoundedProtocol
from kgtrace_server.http.reload import open_warm
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import BadRequest, KgtraceError

_BACKLOG = 2048
"""Connections that the system accepts while the event loop is busy."""

_GRACE = 5
"""Seconds beyond the deadline that requests in flight get to end when the service stops."""

_KEEP_ALIVE = 15
"""Seconds that a connection may be idle between requests: longer than clients keep theirs, so that it is not closed
under a request on its way."""

_log = logging.getLogger(__name__)


class CannotListen(KgtraceError, OSError):
    """The address is taken, not permitted or not this machine's."""


def loader(settings: Settings) -> Callable[[str], Service]:
    """Return a function that opens a generation of ``settings.index`` by its id, for `create_app`.

    Raises `BadRequest` where the settings name no index.
    """
    if settings.index is None:
        raise BadRequest("the settings name no index root to load generations from")
    root = settings.index.absolute()

    def load(generation: str) -> Service:
        from kgtrace_indexer.threads import limit_threads

        limit_threads(settings.threads)
        milvus = engines.milvus(settings)
        attributor = open_warm(root, generation, device=settings.device, milvus=milvus)
        if milvus is not None:
            milvus.switch(generation)
        return Service(attributor)

    return load


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket. Raises `CannotListen`.

    Logs a warning when other machines can reach it and no key is required.
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


def server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """Return a server for ``run(sockets=[...])``; setting its ``should_exit`` stops it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            proxy_headers=False,
            log_config=None,
            # Its notices about starting and stopping say nothing that ours do not.
            log_level="debug" if settings.log_level == "debug" else "warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(settings.deadline) + _GRACE,
        )
    )


def serve(app: ASGIApp, settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered first."""
    bound_heap()
    running = server(app, settings)

    def stop(*_: object) -> None:
        """Stop, if told so before the server itself listens to signals.

        Once it is done it repeats the signal that stopped it, for whoever started it; being asked to terminate and
        doing so is a success.
        """
        running.should_exit = True

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        running.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, previous)
