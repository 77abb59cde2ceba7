"""Requests that name the generation that they know: no older one answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kgtrace_server.calls import AT_LEAST
from kgtrace_server.client import Client as HttpClient
from kgtrace_server.http.app import create_app
from kgtrace_server.http.reload import Reloader
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.generations import IndexRoot
from tests.server.conftest import GENERATION, Client, FakeAttributor, patient
from tests.server.http.questions import INFLUENCES, TRIPLE, Check
from tests.server.transports import URL, Bridge
from tests.server.waiting import PATIENCE, Gate, run_hurried, until

NEWER = "99991231T235959Z-ffffff"
BODY = {"triples": [TRIPLE]}


@pytest.fixture(autouse=True)
def _never_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service looks at ``CURRENT`` again unless it is told to."""
    defaults = Reloader.__init__.__kwdefaults__
    monkeypatch.setattr(Reloader.__init__, "__kwdefaults__", {**defaults, "interval": 1000 * PATIENCE})


def load(generation: str) -> Service:
    """Return a service of a generation."""
    attributor = FakeAttributor()
    attributor.manifest = replace(attributor.manifest, generation=generation)
    return Service(attributor)  # type: ignore[arg-type]


def generations(root: Path) -> list[str]:
    """Ids on disk, oldest first."""
    return [status.id for status in IndexRoot(root).generations()]


async def running(app: FastAPI, test: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run a test on an application that serves a generation."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client,
    ):
        await until(lambda: app.state.backend.generation is not None)
        await test(client)


def test_a_service_that_is_behind_loads_first(root: Path) -> None:
    """The generation asked for answers, or a later one; without the header the old one would."""
    old, new = generations(root)
    IndexRoot(root).publish(old)

    async def test(client: httpx.AsyncClient) -> None:
        IndexRoot(root).publish(new)
        assert (await client.post(INFLUENCES, json=BODY)).json()["generation"] == old
        for known in (new, old):
            answer = await client.post(INFLUENCES, json=BODY, headers={AT_LEAST: known})
            assert (answer.status_code, answer.json()["generation"]) == (200, new)
            assert answer.headers["X-Kgtrace-Generation"] == new

    asyncio.run(running(create_app(load, patient(index=root)), test))


def test_many_that_wait_share_one_load(root: Path) -> None:
    """As many requests as come while it lasts."""
    old, new = generations(root)
    IndexRoot(root).publish(old)
    loaded: list[str] = []

    def counted(generation: str) -> Service:
        loaded.append(generation)
        return load(generation)

    async def test(client: httpx.AsyncClient) -> None:
        IndexRoot(root).publish(new)
        asked = (client.post(INFLUENCES, json=BODY, headers={AT_LEAST: new}) for _ in range(20))
        assert {answer.json()["generation"] for answer in await asyncio.gather(*asked)} == {new}

    asyncio.run(running(create_app(counted, patient(index=root)), test))
    assert loaded == [old, new]


def test_the_wait_is_bounded(root: Path, assert_problem: Check) -> None:
    """Half the deadline, however long the load takes; afterwards the new generation answers."""
    old, new = generations(root)
    IndexRoot(root).publish(old)
    gate = Gate()

    def slow(generation: str) -> Service:
        if generation == new:
            gate.pass_through()
        return load(generation)

    def timed(skip: Callable[[float], None]) -> Awaitable[None]:
        async def test(client: httpx.AsyncClient) -> None:
            IndexRoot(root).publish(new)
            asked = asyncio.ensure_future(client.post(INFLUENCES, json=BODY, headers={AT_LEAST: new}))
            await asyncio.to_thread(gate.reached.wait, PATIENCE)
            skip(PATIENCE / 2 + 1)
            answer = await asked
            assert_problem(answer, 503, old, new, AT_LEAST)
            assert answer.headers["Retry-After"] == "1"
            assert (await client.post(INFLUENCES, json=BODY)).json()["generation"] == old
            gate.opened.set()
            await until(lambda: app.state.backend.generation == new)
            assert (await client.post(INFLUENCES, json=BODY, headers={AT_LEAST: new})).status_code == 200

        app = create_app(slow, patient(index=root))
        return running(app, test)

    run_hurried(timed)


def test_after_a_rollback_waiting_is_of_no_use(root: Path, assert_problem: Check) -> None:
    """The answer names both generations, and comes when the root has been looked at."""
    old, new = generations(root)

    async def test(client: httpx.AsyncClient) -> None:
        IndexRoot(root).publish(old)
        assert (await client.post(INFLUENCES, json=BODY, headers={AT_LEAST: new})).json()["generation"] == new
        answer = await client.post(INFLUENCES, json=BODY, headers={AT_LEAST: NEWER})
        assert_problem(answer, 503, old, NEWER, "rollback")

    asyncio.run(running(create_app(load, patient(index=root)), test))


def test_one_generation_without_a_root(make_client: Callable[..., Client], assert_problem: Check) -> None:
    """It never changes."""
    client = make_client()
    assert client.get("/v1/index", headers={AT_LEAST: GENERATION}).status_code == 200
    assert_problem(client.get("/v1/index", headers={AT_LEAST: NEWER}), 503, GENERATION)


@pytest.mark.parametrize("sent", ["", "newest", f"{GENERATION} ", f"{GENERATION}x", GENERATION.upper()])
def test_anything_but_an_id_is_refused(client: Client, assert_problem: Check, sent: str) -> None:
    """The header is named, on every route that answers from an index."""
    for path in ("/v1/index", "/v1/entities", "/v1/influences?head=0&relation=0&tail=0"):
        assert_problem(client.get(path, headers={AT_LEAST: sent}), 422, AT_LEAST)
    assert_problem(client.post(INFLUENCES, BODY, headers={AT_LEAST: sent}), 422, AT_LEAST)


def test_clients_send_it(service: Service) -> None:
    """With every request; the error of a service that is behind is that of one that is not ready."""
    app: Any = create_app(service, Settings())
    with HttpClient(URL, generation_at_least=GENERATION, transport=Bridge(app)) as client:
        assert client.index().generation == GENERATION
    answer = Client(app).get("/v1/index", headers={AT_LEAST: NEWER})
    assert answer.status_code == 503
