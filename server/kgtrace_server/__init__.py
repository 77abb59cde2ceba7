"""kgtrace's service and command line."""

from typing import TYPE_CHECKING

from kgtrace_store.doors import door

if TYPE_CHECKING:
    from kgtrace_server.client import AsyncClient as AsyncClient, Client as Client, LocalClient as LocalClient
    from kgtrace_server.http.app import create_app as create_app
    from kgtrace_server.service import Service as Service
    from kgtrace_server.settings import Settings as Settings

__all__, __getattr__ = door(
    __name__,
    {
        "kgtrace_server.http.app": ["create_app"],
        "kgtrace_server.client": ["AsyncClient", "Client", "LocalClient"],
        "kgtrace_server.service": ["Service"],
        "kgtrace_server.settings": ["Settings"],
    },
)
