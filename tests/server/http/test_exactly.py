"""Requests that name the generation that is to answer, live or not."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kgtrace_server.calls import AT_LEAST, EXACTLY
from kgtrace_server.client import Client as HttpClient, LocalClient
from kgtrace_server.http import backend, reload, serving
from kgtrace_server.http.app import create_app
from kgtrace_server.http.kept import Kept
from kgtrace_server.problems import GenerationUnavailable, NotReady
from kgtrace_store.generations import IndexRoot
from tests.server.conftest import GENERATION, Client, patient
from tests.server.http.questions import INFLUENCES, Check
from tests.server.http.test_at_least import generations, load, running
from tests.server.transports import URL, Bridge
from tests.server.waiting import PATIENCE, Gate, run_hurried, until

NEVER = "20200101T000000Z-ffffff"
TRIPLE = ["alga", "interacts_with", "human"]
QUESTIONS: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/influences", {"triples": [TRIPLE, ["virus", "causes", "fungus"]], "top_k": 20}),
    ("GET", "/v1/influences?head=alga&relation=interacts_with&tail=human&order=opponents", None),
    ("GET", "/v1/predictions?head=alga&relation=interacts_with", None),
    ("POST", "/v1/aggregate", {"triple": TRIPLE, "by": "relation"}),
    ("POST", "/v1/what-if", {"triple": TRIPLE, "without": [0, 1]}),
    ("POST", "/v1/explanations", {"triple": TRIPLE, "mode": "sufficient", "entities": 3}),
    ("GET", "/v1/self-influence", None),
    ("GET", "/v1/entities?q=al", None),
    ("GET", "/v1/index", None),
)


@pytest.fixture
def live(nights: Path, tmp_path: Path) -> Path:
    """An index root with two generations that tests may switch and prune."""
    shutil.copytree(nights, tmp_path / "index")
    return tmp_path / "index"


def app_of(root: Path) -> Any:
    settings = patient(index=root, device="cpu", threads=1)
    return create_app(serving.loader(settings), settings)


async def ask(client: httpx.AsyncClient, method: str, path: str, body: Any, **headers: str) -> Any:
    """Return an answer, without how long it took and how old the index is."""
    response = await client.request(method, path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert response.headers["X-Kgtrace-Generation"] == answer.get("generation", headers.get(EXACTLY))
    return {name: value for name, value in answer.items() if name not in ("seconds", "age_seconds")}


def test_it_answers_as_it_did_when_it_was_live(live: Path) -> None:
    """Every route that answers from an index; without the header the live generation answers."""
    old, new = generations(live)

    async def expected(client: httpx.AsyncClient) -> None:
        for question in QUESTIONS:
            answers[question[:2]] = await ask(client, *question)

    async def test(client: httpx.AsyncClient) -> None:
        for question in QUESTIONS:
            now = await ask(client, *question)
            assert await ask(client, *question, **{EXACTLY: new}) == now
            then = await ask(client, *question, **{EXACTLY: old})
            assert then == answers[question[:2]]
            assert then != now or "/entities" in question[1]
            assert await ask(client, *question, **{EXACTLY: old, AT_LEAST: new}) == then

    answers: dict[tuple[str, str], Any] = {}
    IndexRoot(live).publish(old)
    asyncio.run(running(app_of(live), expected))
    IndexRoot(live).publish(new)
    asyncio.run(running(app_of(live), test))


def test_from_python(live: Path) -> None:
    """The option of the clients, over HTTP and in process."""
    old, new = generations(live)
    app = app_of(live)

    async def test(_: httpx.AsyncClient) -> None:
        await asyncio.to_thread(compare)

    def compare() -> None:
        with HttpClient(URL, generation=old, transport=Bridge(app)) as client:
            over_http = client.influences([("alga", "interacts_with", "human")])
        with LocalClient(live, generation=old, device="cpu") as local:
            in_process = local.influences([("alga", "interacts_with", "human")])
            assert local.publish(new).serving == new
        assert over_http.generation == in_process.generation == old
        assert over_http.results == in_process.results

    asyncio.run(running(app, test))


def test_a_generation_that_is_gone_or_unreadable(live: Path, assert_problem: Check) -> None:
    """409 says which there are, or what is wrong, and not where; the live one goes on answering."""
    old, new = generations(live)

    async def test(client: httpx.AsyncClient) -> None:
        for wrong in (NEVER, "99991231T235959Z-ffffff"):
            answer = await client.get("/v1/index", headers={EXACTLY: wrong})
            body = assert_problem(answer, 409, wrong, old, new)
            assert body["type"].endswith("#generation-unavailable")
            assert str(live) not in answer.text
        damaged = live / "generations" / old / "gradients.h5"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        answer = await client.get("/v1/index", headers={EXACTLY: old})
        assert_problem(answer, 409, f"generations/{old}/gradients.h5")
        assert str(live) not in answer.text
        shutil.rmtree(live / "generations" / old)
        assert_problem(await client.get("/v1/index", headers={EXACTLY: old}), 409, old, new)
        assert (await client.get("/v1/index")).json()["generation"] == new

    asyncio.run(running(app_of(live), test))


def test_without_a_root_there_is_one_generation(make_client: Callable[..., Client], assert_problem: Check) -> None:
    """That is named, and any other is refused."""
    client = make_client()
    assert client.get("/v1/index", headers={EXACTLY: GENERATION}).status_code == 200
    assert_problem(client.get("/v1/index", headers={EXACTLY: NEVER}), 409, "without an index root")
    with (
        HttpClient(URL, generation=NEVER, transport=Bridge(client.app)) as asking,
        pytest.raises(GenerationUnavailable, match="without an index root"),
    ):
        asking.index()


@pytest.mark.parametrize("sent", ["", "live", f"{GENERATION}x", "../../etc"])
def test_anything_but_an_id_is_refused(client: Client, assert_problem: Check, sent: str) -> None:
    """The header is named, whether the question is in the address or in the body."""
    assert_problem(client.get("/v1/index", headers={EXACTLY: sent}), 422, EXACTLY)
    assert_problem(client.post(INFLUENCES, {"triples": [[0, 0, 0]]}, headers={EXACTLY: sent}), 422, EXACTLY)


def test_without_memory_it_is_not_opened(root: Path, assert_problem: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 says how much there is; a reload, which comes first, lets go of the one that is held."""
    old, new = generations(root)
    monkeypatch.setattr(backend, "open_warm", lambda _, generation, device: load(generation)._attributor)
    available = [1 << 40]
    defaults = reload.Reloader.__init__.__kwdefaults__
    monkeypatch.setattr(reload.Reloader.__init__, "__kwdefaults__", {**defaults, "memory": lambda: available[0]})
    monkeypatch.setattr(reload.Reloader, "_memory_by_file", lambda *_, **__: {"gradients.h5": 100})

    async def test(client: httpx.AsyncClient) -> None:
        available[0] = 199
        answer = await client.get("/v1/index", headers={EXACTLY: old})
        assert_problem(answer, 503, old, new, "199 are available")
        assert answer.headers["Retry-After"] == "1"
        available[0] = 200
        assert (await client.get("/v1/index", headers={EXACTLY: old})).status_code == 200
        kept = app.state.backend._kept
        assert kept._held is not None
        IndexRoot(root).publish(old)
        assert (await client.get("/v1/index", headers={AT_LEAST: old})).status_code == 200
        await until(lambda: app.state.backend.generation == old)
        assert kept._held is None

    app = create_app(load, patient(index=root))
    asyncio.run(running(app, test))


def test_one_is_opened_at_a_time() -> None:
    """Questions share it; another one's are refused meanwhile, and take its place afterwards."""
    gates = {"a": Gate(), "b": Gate()}
    opened: list[str] = []

    def open_(generation: str) -> str:
        opened.append(generation)
        gates[generation].pass_through()
        return generation.upper()

    async def test() -> None:
        kept = Kept(open_)
        first = [asyncio.ensure_future(kept.service("a")) for _ in range(3)]
        await asyncio.to_thread(gates["a"].reached.wait, PATIENCE)
        first.pop().cancel()  # its client is gone
        with pytest.raises(NotReady, match="generation a is being opened"):
            await kept.service("b")
        gates["a"].opened.set()
        assert await asyncio.gather(*first) == ["A", "A"]
        gates["b"].opened.set()
        assert [await kept.service(name) for name in "abba"] == ["A", "B", "B", "A"]

    asyncio.run(test())
    assert opened == ["a", "b", "a"]


def test_one_that_failed_is_tried_again() -> None:
    """By the next question, which gets its own outcome."""
    outcomes: list[str | Exception] = [GenerationUnavailable("damaged"), "fine"]

    def open_(_: str) -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def test() -> None:
        kept = Kept(open_)
        with pytest.raises(GenerationUnavailable, match="damaged"):
            await kept.service("a")
        assert await kept.service("a") == "fine"

    asyncio.run(test())


def test_one_that_nobody_asks_is_let_go() -> None:
    """Five minutes after the last question, or as soon after these as it has been opened."""
    gate = Gate()

    def open_(generation: str) -> str:
        gate.pass_through()
        return generation

    def timed(skip: Callable[[float], None]) -> Any:
        async def test() -> None:
            kept = Kept(open_)
            asked = asyncio.ensure_future(kept.service("a"))
            await asyncio.to_thread(gate.reached.wait, PATIENCE)
            skip(301)
            await asyncio.sleep(0)
            gate.opened.set()
            assert await asked == "a"
            skip(200)
            await asyncio.sleep(0)
            await kept.service("a")
            skip(200)
            await asyncio.sleep(0)
            assert kept._held is not None
            skip(101)
            await until(lambda: kept._held is None)

        return test()

    run_hurried(timed)
