"""Requests that the clients repeat, the pauses between, and deadlines."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from kgtrace_server.client import AsyncClient, Client, Retries, ServiceError
from kgtrace_server.problems import (
    DeadlineExceeded,
    NotReady,
    QueueFull,
    error_response,
    problem,
)
from tests.server.transports import RETRIES, URL, Scripted, ask_sync


def answer(status: int, **headers: str) -> httpx.Response:
    """A response as the service gives it."""
    if status == 200:
        return httpx.Response(200, json={"generation": "x", "relations": []})
    said = {429: error_response(QueueFull("full")), 503: error_response(NotReady("loading"))}
    response = said.get(status) or problem(status, "no")
    return httpx.Response(status, content=response.body, headers={**headers})


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses, which take no time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("kgtrace_server.client.time.sleep", pauses.append)
    monkeypatch.setattr("kgtrace_server.client.asyncio.sleep", sleep)
    return pauses


def ask_async(transport: Scripted) -> Any:
    async def ask() -> Any:
        async with AsyncClient(URL, retries=RETRIES, transport=transport) as client:
            return await client.relations()

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
def test_a_busy_service_is_asked_again_no_sooner_than_it_says(
    slept: list[float], ask: Callable[[Scripted], Any]
) -> None:
    """Pauses are those of Retry-After and a share of a growing one more; a lost connection is tried again, too."""
    transport = Scripted(answer(429, **{"Retry-After": "3"}), answer(503), httpx.ConnectError("refused"), answer(200))
    assert ask(transport) == []
    assert slept == [3.5, 1.0, 2.0]


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
@pytest.mark.parametrize(
    ("script", "error", "pauses"),
    [
        ([answer(429)] * 4, QueueFull, 3),
        ([answer(429, **{"Retry-After": "11"})], QueueFull, 0),
        ([answer(503)] * 4, NotReady, 3),
        ([answer(500)], ServiceError, 0),
        ([answer(404)], ServiceError, 0),
        ([httpx.Response(502, text="bad gateway")], ServiceError, 0),
        ([httpx.Response(502, json=["odd"])], ServiceError, 0),
        ([httpx.ReadTimeout("slow", request=httpx.Request("GET", URL))], ServiceError, 0),
    ],
)
def test_what_asking_again_would_not_help_is_raised(
    slept: list[float], ask: Callable[[Scripted], Any], script: list[Any], error: type, pauses: int
) -> None:
    """After the last attempt, when told to wait for longer than the cap, and at once for anything else."""
    transport = Scripted(*script)
    with pytest.raises(error):
        ask(transport)
    assert len(slept) == pauses
    assert transport.left == []


def test_what_is_not_repeatable_is_not_repeated(slept: list[float]) -> None:
    """A rollback whose answer was lost may have happened; one whose connection was refused has not."""
    lost = httpx.ReadError("reset", request=httpx.Request("POST", URL))
    with pytest.raises(ServiceError, match="reset"), Client(URL, retries=RETRIES, transport=Scripted(lost)) as client:
        client.rollback()
    assert slept == []
    switched = httpx.Response(200, json={"live": "a", "serving": "a", "reload": None})
    with Client(URL, retries=RETRIES, transport=Scripted(httpx.ConnectError("refused"), switched)) as client:
        assert client.rollback().live == "a"


def test_pauses_are_capped_and_spread() -> None:
    """They double up to the cap, and clients that were refused together come back apart."""
    retries = Retries(attempts=100)
    pauses = np.array([[retries.pause(attempt, 1.0) for attempt in range(99)] for _ in range(20)], float)
    assert pauses.min() >= 1.0
    assert pauses.max() <= retries.cap
    assert len(np.unique(pauses[:, 0])) == 20
    assert retries.pause(99, 0.0) is None


def test_deadlines_are_errors_of_their_own(slept: list[float]) -> None:
    """504 is not asked again: it would take as long."""
    late = error_response(DeadlineExceeded("no answer within 30 seconds"))
    with pytest.raises(DeadlineExceeded, match="30 seconds"):
        ask_sync(Scripted(httpx.Response(504, content=late.body)))
    assert slept == []
