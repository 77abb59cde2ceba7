"""``kgtrace mcp``: an index for assistants, by the Model Context Protocol."""

import argparse
import os
import sys
from dataclasses import fields

from kgtrace_server.cli.arguments import Verb, WrongCall
from kgtrace_server.settings import Settings, add_flags, variable
from kgtrace_store.errors import BadRequest

_SETTINGS = ("index", "device", "host", "port", "read_key", "read_key_file")
"""Names of the settings that are read from the environment."""


def register(verb: Verb) -> None:
    """Add the verb."""
    tools = verb("mcp", mcp, "give assistants tools that ask an index, by the Model Context Protocol")
    asked = tools.add_mutually_exclusive_group()
    add_flags(asked, ("index",))
    asked.add_argument("--url", help="ask a running service instead, with the key in KGTRACE_READ_KEY")
    add_flags(tools, ("device",))
    tools.add_argument(
        "--http",
        action="store_true",
        help="listen at http://HOST:PORT/mcp, instead of standard input; requires the key in KGTRACE_READ_KEY, if set",
    )
    add_flags(tools, ("host", "port"))


def mcp(args: argparse.Namespace) -> int:
    """Answer an assistant until it, or SIGTERM, ends the conversation."""
    if not args.http and (args.host, args.port) != (None, None):
        raise WrongCall("--host and --port say where --http listens: give it too")
    chosen = {variable(setting) for setting in fields(Settings) if setting.name in _SETTINGS}
    try:
        settings = Settings.resolve(vars(args), {name: os.environ.get(name, "") for name in chosen})
    except BadRequest as e:
        raise WrongCall(str(e)) from e
    if args.url is None and settings.index is None:
        raise WrongCall("nothing to ask: give --index ROOT, set KGTRACE_INDEX, or give --url URL")
    from kgtrace_server.client import Client, LocalClient
    from kgtrace_server.mcp.tools import create_server

    client: Client | LocalClient
    if args.url is not None:
        client = Client(args.url, key=settings.read_key)
    else:
        assert settings.index is not None
        client = LocalClient(settings.index, device=settings.device)
    server = create_server(client)
    if not args.http:
        server.run("stdio")
        return 0
    from kgtrace_server.http import serving
    from kgtrace_server.mcp import running

    with serving.listen(settings) as listening:
        sys.stdout.write(f"kgtrace's tools: {serving.address(listening)}{running.PATH}\n")
        sys.stdout.flush()
        running.serve(server, settings, listening)
    return 0
