"""kgtrace's service and command line.

Names are imported when first used, so that ``kgtrace --help`` loads neither torch nor the web framework.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kgtrace_server.app import create_app
    from kgtrace_server.client import AsyncClient, Client, LocalClient
    from kgtrace_server.service import Service
    from kgtrace_server.settings import Settings

__all__ = ["AsyncClient", "Client", "LocalClient", "Service", "Settings", "create_app"]

_HOMES = {
    "AsyncClient": "client",
    "Client": "client",
    "LocalClient": "client",
    "Service": "service",
    "Settings": "settings",
    "create_app": "app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
