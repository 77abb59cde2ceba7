"""A full queue, the deadline, and clients that leave."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from tests.server.conftest import patient
from tests.server.http.questions import INFLUENCES, TRIPLE, Check
from tests.server.waiting import Gate, run_hurried, until, wait_until


@asynccontextmanager
async def asking(app: Any) -> AsyncIterator[Callable[[], "asyncio.Future[httpx.Response]"]]:
    """Give a function that sends a request about one triple, and returns at once."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kgtrace.test") as client:
        yield lambda: asyncio.ensure_future(client.post(INFLUENCES, json={"triples": [TRIPLE]}))


async def get(app: Any, path: str) -> httpx.Response:
    """Send another request."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kgtrace.test") as client:
        return await client.get(path)


def test_a_full_queue_is_told_at_once(service: Service, attributor: Any, assert_problem: Check) -> None:
    """One computes, two wait, the others get 429 with Retry-After."""
    gate = Gate()
    attributor.before_query = gate.pass_through

    async def test() -> list[httpx.Response]:
        async with asking(create_app(service, patient(queue_length=2))) as ask:
            requests = [ask()]
            await until(gate.reached.is_set)
            requests += [ask() for _ in range(4)]
            await until(lambda: sum(request.done() for request in requests) == 2)
            gate.opened.set()
            return await asyncio.gather(*requests)

    responses = asyncio.run(test())
    assert sorted(r.status_code for r in responses) == [200, 200, 200, 429, 429]
    refused = next(r for r in responses if r.status_code == 429)
    assert_problem(refused, 429, "2 requests are waiting")
    assert refused.headers["Retry-After"] == "1"


def test_the_deadline_ends_waiting(service: Service, attributor: Any, assert_problem: Check) -> None:
    """504, not a second sooner, and what had not begun is dropped."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    app = create_app(service, Settings(deadline=3600))
    worker = app.state.backend.worker

    async def test(skip: Callable[[float], None]) -> list[httpx.Response]:
        async with asking(app) as ask:
            requests = [ask()]
            await until(gate.reached.is_set)
            requests += [ask() for _ in range(3)]
            await until(lambda: worker.waiting == 3)
            skip(1800)
            assert (await get(app, "/livez")).status_code == 200
            assert not any(request.done() for request in requests)
            skip(1800)
            responses = await asyncio.gather(*requests)
            await until(lambda: worker.waiting == 0)
            return responses

    for response in run_hurried(test):
        assert_problem(response, 504, "3600 seconds")
    gate.opened.set()
    app.state.backend.close()
    assert len(attributor.calls) == 1


def test_what_has_begun_learns_that_nobody_waits(service: Service, attributor: Any, assert_problem: Check) -> None:
    """After the deadline a computation can tell that its answer is not wanted any more."""
    begun, given_up = threading.Event(), threading.Event()

    def compute() -> None:
        assert attributor.wanted()
        begun.set()
        wait_until(lambda: not attributor.wanted())
        given_up.set()

    attributor.before_query = compute

    async def test(skip: Callable[[float], None]) -> httpx.Response:
        async with asking(create_app(service, Settings(deadline=3600))) as ask:
            request = ask()
            await until(begun.is_set)
            skip(3600)
            return await request

    assert_problem(run_hurried(test), 504, "3600 seconds")
    wait_until(given_up.is_set)


def test_the_event_loop_is_free_while_something_computes(service: Service, attributor: Any) -> None:
    """Probes answer during a long query."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    app = create_app(service, patient())

    async def test() -> None:
        async with asking(app) as ask:
            query = ask()
            await until(gate.reached.is_set)
            for path in ("/livez", "/v1/entities"):
                assert (await get(app, path)).status_code == 200
            assert not query.done()
            gate.opened.set()
            assert (await query).status_code == 200

    asyncio.run(test())
