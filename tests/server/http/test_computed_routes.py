"""Predictions and sums share the queue, the thread and the deadline of explanations."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import httpx
import pytest
from fastapi import FastAPI

from kgtrace_server.http.app import create_app
from kgtrace_server.http.worker import BATCH
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from tests.server.conftest import Client, patient
from tests.server.waiting import Gate, run_hurried, until, wait_until

Check = Callable[..., dict[str, Any]]
Ask = Callable[..., "asyncio.Task[httpx.Response]"]

REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/influences": {"triples": [["aspirin", "treats", "headache"]]},
    "/v1/predictions": {"head": "aspirin", "relation": "treats"},
    "/v1/aggregate": {"triple": ["aspirin", "treats", "headache"], "by": "relation"},
    "/v1/what-if": {"triple": ["aspirin", "treats", "headache"], "without": [100]},
    "/v1/explanations": {"triple": ["aspirin", "treats", "headache"]},
}
both = pytest.mark.parametrize("path", ["/v1/predictions", "/v1/aggregate"])


@asynccontextmanager
async def asking(app: FastAPI, path: str) -> AsyncIterator[Ask]:
    """Give a function that begins to send a request, with other fields where asked."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kgtrace.test") as client:
        yield lambda **fields: asyncio.create_task(client.post(path, json={**REQUESTS[path], **fields}))


@both
def test_answers_are_computed_in_the_computing_thread(service: Service, attributor: Any, path: str) -> None:
    """Not on the event loop, which answers probes meanwhile."""
    gate, threads = Gate(), []
    attributor.before_query = lambda: (threads.append(threading.current_thread().name), gate.pass_through())
    app = create_app(service, patient())

    async def test() -> None:
        async with asking(app, path) as ask:
            request = ask()
            await until(gate.reached.is_set)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client:
                assert (await client.get("/livez")).status_code == 200
            assert not request.done()
            gate.opened.set()
            assert (await request).status_code == 200

    asyncio.run(test())
    assert threads == ["kgtrace-compute"]


@pytest.mark.parametrize("path", list(REQUESTS))
def test_no_thread_but_the_computing_one_takes_part(client: Client, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Each change of threads costs a client that waits."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a thread of the pool")

    monkeypatch.setattr("anyio.to_thread.run_sync", refuse)
    assert client.post(path, REQUESTS[path]).status_code == 200


@both
def test_a_full_queue_is_told_at_once(service: Service, attributor: Any, assert_problem: Check, path: str) -> None:
    """One computes, one waits, the third gets 429."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    app = create_app(service, patient(queue_length=1))

    async def test() -> list[httpx.Response]:
        async with asking(app, path) as ask:
            requests = [ask()]
            await until(gate.reached.is_set)
            requests.append(ask())
            await until(lambda: app.state.backend.worker.waiting == 1)
            refused = await ask()
            gate.opened.set()
            return [refused, *await asyncio.gather(*requests)]

    refused, *answered = asyncio.run(test())
    assert_problem(refused, 429, "1 requests are waiting")
    assert [response.status_code for response in answered] == [200, 200]


@both
def test_the_deadline_ends_waiting(service: Service, attributor: Any, assert_problem: Check, path: str) -> None:
    """504; a sum, which may take long, learns that nobody waits for it."""
    begun, given_up = threading.Event(), threading.Event()

    def compute() -> None:
        begun.set()
        if path == "/v1/aggregate":
            wait_until(lambda: not attributor.wanted())
        given_up.set()

    attributor.before_query = compute
    gate = Gate()
    if path == "/v1/predictions":
        attributor.before_query = gate.pass_through

    async def test(skip: Callable[[float], None]) -> httpx.Response:
        async with asking(create_app(service, Settings(deadline=3600)), path) as ask:
            request = ask()
            await until(lambda: begun.is_set() or gate.reached.is_set())
            skip(3600)
            return await request

    assert_problem(run_hurried(test), 504, "3600 seconds")
    gate.opened.set()
    if path == "/v1/aggregate":
        wait_until(given_up.is_set)


def test_concurrent_requests_take_few_computations(service: Service, attributor: Any) -> None:
    """Sixty-four that come at once take one, and so do as many that come meanwhile: nobody waits for company."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    app = create_app(service, patient())
    worker = app.state.backend.worker

    async def test() -> list[httpx.Response]:
        async with asking(app, "/v1/influences") as ask:
            requests = [ask() for _ in range(BATCH)]
            await until(gate.reached.is_set)
            assert worker.waiting == 0
            requests += [ask() for _ in range(BATCH)]
            await until(lambda: worker.waiting == BATCH)
            gate.opened.set()
            return await asyncio.gather(*requests)

    assert {response.status_code for response in asyncio.run(test())} == {200}
    assert [len(call["triples"]) for call in attributor.calls] == [BATCH, BATCH]


def test_predictions_that_are_alike_are_computed_together(service: Service, attributor: Any) -> None:
    """In one forward pass, and each gets its own answer or its own error."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    app = create_app(service, patient())

    async def test() -> list[httpx.Response]:
        async with asking(app, "/v1/predictions") as ask:
            requests = [ask()]
            await until(gate.reached.is_set)
            requests += [ask(head="fever"), ask(head="nobody"), ask(relation=1), ask(top_k=3)]
            await until(lambda: app.state.backend.worker.waiting == 4)
            gate.opened.set()
            return await asyncio.gather(*requests)

    first, fever, nobody, other, three = asyncio.run(test())
    assert nobody.status_code == 422
    assert [len(call["triples"]) for call in attributor.calls] == [1, 2, 1]
    assert attributor.calls[1]["triples"][:, :2].tolist() == [[3, 0], [0, 1]]
    assert len(three.json()["predictions"]) == 3
    for response, head in ((first, 0), (fever, 3), (other, 0)):
        assert {found["triple"]["head"]["id"] for found in response.json()["predictions"]} == {head}
