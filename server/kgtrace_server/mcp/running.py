"""Running the tools over HTTP."""

import socket

from mcp.server.mcpserver import MCPServer
from starlette.types import ASGIApp

from kgtrace_server.http import serving
from kgtrace_server.http.middleware import RequireKey
from kgtrace_server.settings import Settings

PATH = "/mcp"
"""Of the address."""


def application(server: MCPServer, settings: Settings) -> ASGIApp:
    """Return what answers over HTTP, without sessions, and to those with the read key alone where there is one."""
    tools = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        stateless_http=True,
        max_request_body_size=settings.body_limit,
        host=settings.host,  # on loopback, requests that name another host are refused: pages of a browser send such
    )
    return RequireKey(tools, settings.read_key, None)


def serve(server: MCPServer, settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT."""
    serving.serve(application(server, settings), settings, listening)
