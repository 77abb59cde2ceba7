"""A service before its index is loaded."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import BadRequest, CorruptGeneration
from tests.server.conftest import GENERATION, patient
from tests.server.http.questions import INFLUENCES, TRIPLE, Check
from tests.server.waiting import PATIENCE, until


def test_until_the_index_is_loaded_the_service_is_not_ready(
    service: Service, root: Path, assert_problem: Check
) -> None:
    """The process is alive and answers 503; afterwards it answers."""
    gate = threading.Event()

    def load(_: str) -> Service:
        assert gate.wait(PATIENCE)
        return service

    async def test() -> None:
        app = create_app(load, patient(index=root))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client,
        ):
            for path in ("/readyz", "/v1/index", "/v1/entities", INFLUENCES + "?head=0&relation=0&tail=0"):
                response = await client.get(path)
                assert_problem(response, 503, "being loaded")
                assert response.headers["X-Kgtrace-Generation"] == "none"
                assert response.headers["Retry-After"] == "1"
            assert (await client.get("/livez")).status_code == 200
            gate.set()
            await until(lambda: app.state.backend.generation is not None)
            response = await client.get("/readyz")
            assert response.headers["X-Kgtrace-Generation"] == GENERATION
            assert (await client.post(INFLUENCES, json={"triples": [TRIPLE]})).status_code == 200

    asyncio.run(test())


def test_one_of_several_loads_before_it_takes_requests(service: Service, root: Path) -> None:
    """Others answer meanwhile; one that cannot load says so, as one alone does."""

    def fail(_: str) -> Service:
        raise ZeroDivisionError

    async def statuses(load: Callable[[str], Service]) -> int:
        app = create_app(load, patient(index=root, workers=2))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client,
        ):
            return (await client.get("/readyz")).status_code

    assert asyncio.run(statuses(lambda _: service)) == 200
    assert asyncio.run(statuses(fail)) == 503


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("{root}/generations/x is not sound: build anew", "generations/x is not sound: build anew"),
        (ZeroDivisionError("secret"), "ZeroDivisionError; see the log"),
    ],
)
def test_a_failed_load_is_shown(
    root: Path, assert_problem: Check, caplog: pytest.LogCaptureFixture, error: str | Exception, words: str
) -> None:
    """The probe says why there is no index, though not where it lies; the log says both."""
    raised = error if isinstance(error, Exception) else CorruptGeneration(error.format(root=root))

    def load(_: str) -> Service:
        raise raised

    async def test() -> None:
        app = create_app(load, patient(index=root))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client,
        ):
            async with asyncio.timeout(PATIENCE):
                while "being loaded" in (response := await client.get("/readyz")).text:
                    await asyncio.sleep(0)
            body = assert_problem(response, 503, words)
            assert "secret" not in body["detail"]
            assert str(root) not in body["detail"]

    asyncio.run(test())
    assert str(raised) in caplog.text


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "{root} does not exist"),
        (lambda root: root.mkdir(), "{root} holds no index"),
        (lambda root: root.touch(), "{root} is not a folder"),
    ],
)
def test_a_service_says_what_it_waits_for(
    tmp_path: Path,
    assert_problem: Check,
    caplog: pytest.LogCaptureFixture,
    prepare: Callable[[Path], None],
    words: str,
) -> None:
    """On start in the log, with the path; whenever it is asked in the probe, without it."""
    root = tmp_path / "mistyped"
    prepare(root)
    app = create_app(lambda _: pytest.fail("there is nothing to load"), patient(index=root))

    async def test() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client,
        ):
            return await client.get("/readyz")

    with caplog.at_level("WARNING"):
        response = asyncio.run(test())
    (record,) = [r for r in caplog.records if r.name == "kgtrace_server.http.backend"]
    assert record.levelname == "WARNING"
    assert words.format(root=root) in record.getMessage()
    assert "waiting" in record.getMessage()
    assert "check --index (KGTRACE_INDEX)" in record.getMessage()
    body = assert_problem(response, 503, words.format(root="the index root"), "check --index (KGTRACE_INDEX)")
    assert str(tmp_path) not in body["detail"]


def test_a_service_with_a_live_generation_warns_of_nothing(
    service: Service, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is being loaded."""
    app = create_app(lambda _: service, patient(index=root))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            await until(lambda: app.state.backend.generation is not None)

    asyncio.run(start())
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_loader_needs_something_to_load_from(service: Service) -> None:
    """A mistake of whoever writes the program is told at once."""
    with pytest.raises(BadRequest, match="index root"):
        create_app(lambda _: service, Settings())
