"""Transports of the clients that need no network: to an application in this process, or to a script."""

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

from kgtrace_server.client import Client, Retries

TRIPLE = ("aspirin", "treats", "headache")
URL = "http://kgtrace.test"


class Bridge(httpx.BaseTransport):
    """Lets a client without an event loop talk to an application in process."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def handle() -> httpx.Response:
            asynchronous = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            response = await httpx.ASGITransport(self._app).handle_async_request(asynchronous)
            return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

        return asyncio.run(handle())


class Scripted(httpx.MockTransport):
    """Answers or fails as told, once each, and counts."""

    def __init__(self, *script: httpx.Response | Exception) -> None:
        self.left = list(script)
        super().__init__(self._next)

    def _next(self, request: httpx.Request) -> httpx.Response:
        following = self.left.pop(0)
        if isinstance(following, Exception):
            raise following
        return httpx.Response(following.status_code, headers=following.headers, content=following.content)


RETRIES = Retries(attempts=4, base=1.0, cap=10.0, chance=lambda: 0.5)


def ask_sync(transport: Scripted) -> Any:
    with Client(URL, retries=RETRIES, transport=transport) as client:
        return client.relations()
