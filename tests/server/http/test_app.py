"""The service over HTTP, one test for each promise about statuses."""

import asyncio
import json
import keyword
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings, strategies as st

from kgtrace_server.http.app import create_app
from kgtrace_server.schema.answers import Influences
from kgtrace_server.schema.operation import IndexInfo
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import BadRequest, CorruptGeneration, NonFinite
from tests.server.conftest import ENTITIES, GENERATION, Client, assert_documented, patient
from tests.server.waiting import PATIENCE, Gate, run_hurried, until, wait_until

Check = Callable[..., dict[str, Any]]
TRIPLE = ["aspirin", "treats", "headache"]
INFLUENCES = "/v1/influences"


# Answers.


def test_influences_are_answered_as_documented(client: Client) -> None:
    """The body is what the service says, and has the published shape."""
    response = client.post(INFLUENCES, {"triples": [TRIPLE, {"head": 0, "relation": 0, "tail": 2}], "top_k": 3})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert_documented(Influences, body)
    assert body["generation"] == GENERATION
    assert body["results"][0] == body["results"][1]
    assert [len(result["influences"]) for result in body["results"]] == [3, 3]


def test_every_option_reaches_the_attributor(client: Client) -> None:
    """Order, filters and budgets change the answer."""
    body = {
        "triples": [TRIPLE],
        "top_k": 5,
        "order": "opponents",
        "max_candidates": 4,
        "filter": {"must": {"relation": ["treats", 1]}, "must_not": {"head": ["aspirin"], "tail": [4]}},
        "direction": "tail",
    }
    (result,) = client.post(INFLUENCES, body).json()["results"]
    assert result["certified"] is False
    assert result["bound_gap"] is None
    influences = [found["influence"] for found in result["influences"]]
    assert influences == sorted(influences)
    assert {found["triple"]["relation"]["id"] for found in result["influences"]} <= {0, 1}


def test_one_triple_can_be_asked_in_the_address(client: Client) -> None:
    """GET answers as POST does."""
    posted = client.post(INFLUENCES, {"triples": [TRIPLE], "top_k": 2, "order": "absolute"}).json()
    got = client.get(
        INFLUENCES,
        params={"head": "aspirin", "relation": "treats", "tail": "headache", "top_k": 2, "order": "absolute"},
    )
    assert got.json() == posted


@pytest.mark.parametrize("label", ENTITIES)
def test_labels_of_any_characters_can_be_asked(client: Client, label: str) -> None:
    """Slashes, question marks and umlauts survive the address."""
    response = client.get(INFLUENCES, params={"head": label, "relation": "treats", "tail": label})
    assert response.json()["results"][0]["triple"]["head"]["label"] == label


def test_lookups_and_index(client: Client) -> None:
    """Completion boxes and dashboards find entities, relations and what is served."""
    assert client.get("/v1/entities", params={"q": "asp"}).json()["entities"] == [
        {"id": 0, "label": "aspirin", "name": "Aspirin®"}
    ]
    assert [r["label"] for r in client.get("/v1/relations").json()["relations"]] == ["treats", "located in", "2"]
    info = client.get("/v1/index").json()
    assert_documented(IndexInfo, info)
    assert info["generation"] == GENERATION


def test_probes(client: Client) -> None:
    """A loaded service is alive and ready."""
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "generation": GENERATION, "draining": [], "reload": None}


# Headers.


def test_request_ids_are_echoed(client: Client) -> None:
    """A printable id comes back on success and failure; any other is replaced."""
    for path in ("/livez", "/nowhere", INFLUENCES):
        assert client.get(path, headers={"X-Request-Id": "job 7/e"}).headers["X-Request-Id"] == "job 7/e"
    for bad in ("x" * 129, b"caf\xe9", b"a\x01b", ""):
        replaced = client.get("/livez", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
        assert len(replaced) == 32
    first, second = (client.get("/livez").headers["X-Request-Id"] for _ in range(2))
    assert first != second


def test_every_answer_names_the_generation(client: Client) -> None:
    """Also errors do."""
    for path in ("/livez", "/nowhere", "/v1/index", INFLUENCES, "/docs"):
        assert client.get(path).headers["X-Kgtrace-Generation"] == GENERATION


# 400, 415, 422: bad bodies.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"triples=1", "not JSON"),
        (b'{"triples": [["a", "b", "c"]], "top_k": NaN}', "NaN"),
        (b'{"triples": [["a", "b", "c"]], "top_k": Infinity}', "Infinity"),
        (b'{"triples": [["a", "b", "c"]], "top_k": -Infinity}', "Infinity"),
        (b'{"top_k": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"triples": "\xff\xfe"}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"triples": []}'.encode("utf-16"), "not JSON"),
        (b"[" * 1_000, "nested too deeply"),
        (b'{"a":' * 1_000, "nested too deeply"),
        (b"[" * 100_000, "100000 lists and objects"),
        (b'{"a":' * 100_000, "100000 lists and objects"),
        (b"{} {}", "not JSON"),
    ],
)
def test_what_is_not_json_is_a_bad_request(client: Client, assert_problem: Check, content: bytes, words: str) -> None:
    """400, whatever the bytes are."""
    assert_problem(client.post_raw(INFLUENCES, content), 400, words)


@pytest.mark.parametrize("content", [b'{"triples": [["aspirin", "treats", "headache"]]}', b"{"])
def test_the_content_type_may_be_left_out_but_not_be_another(
    client: Client, assert_problem: Check, content: bytes
) -> None:
    """JSON is assumed; anything else is refused by name."""
    assert client.post_raw(INFLUENCES, content, None).status_code == (200 if len(content) > 1 else 400)
    assert client.post_raw(INFLUENCES, content, "Application/JSON; charset=utf-8").status_code != 415
    for other in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "/"):
        assert_problem(client.post_raw(INFLUENCES, content, other), 415, "send application/json")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["triples: field required"]),
        ([], ["the body: "]),
        (None, ["the body"]),
        (7, ["the body"]),
        ({"triples": [["asprin", "treats", "headache"]]}, ["unknown entity 'asprin'", "'aspirin'"]),
        ({"triples": [["aspirin", "treat", "headache"]]}, ["unknown relation 'treat'", "'treats'"]),
        ({"triples": [[7, 0, 0]]}, ["entity id 7 is out of range"]),
        ({"triples": [[-1, 0, 0]]}, ["-1"]),
        ({"triples": [[0, 0, 10**40]]}, ["out of range"]),
        ({"triples": [["\ud800", "treats", "headache"]]}, ["unknown entity", "\\ud800"]),
        ({"triples": [["", "treats", "headache"]]}, ["unknown entity"]),
        ({"triples": [["\x00", "treats", "headache"]]}, ["unknown entity"]),
        ({"triples": [["x" * 100_000, "treats", "headache"]]}, ["unknown entity"]),
        ({"triples": [TRIPLE], "\ud800": 1}, ["the body", "unicode"]),
        ({"triples": [TRIPLE], "x" * 10_000: 1}, ["unknown field"]),
        ({"triples": [TRIPLE], "top_k": 0}, ["top_k"]),
        ({"triples": [TRIPLE], "top_k": 1001}, ["top_k", "1000"]),
        ({"triples": [TRIPLE], "top_k": 1e999}, ["top_k"]),
        ({"triples": [TRIPLE], "max_candidates": 10**400}, ["max_candidates"]),
        ({"triples": [[True, "treats", "headache"]]}, ["triples[0].head"]),
        ({"triples": [TRIPLE] * 257}, ["triples", "256"]),
        ({"triples": [[1.5, 0, 0]] * 256}, ["triples[4].head", "and 251 more"]),
        ({"triples": [TRIPLE], "filter": {"must": {"head": ["nobody"]}}}, ["unknown entity 'nobody'"]),
        ({"triples": [TRIPLE], "direction": "head"}, ["no inverse relations"]),
    ],
)
def test_wrong_fields_are_unprocessable(client: Client, assert_problem: Check, body: Any, words: list[str]) -> None:
    """422, naming in the detail what the caller can fix, in bounded length."""
    content = json.dumps(body, allow_nan=True).replace("Infinity", "1e999").encode()
    problem = assert_problem(client.post_raw(INFLUENCES, content), 422, *words)
    assert len(problem["detail"]) < 1000


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (INFLUENCES, "head: field required"),
        (INFLUENCES + "?head=aspirin&relation=treats&tail=nowhere", "unknown entity 'nowhere'"),
        (INFLUENCES + "?head=99&relation=treats&tail=0", "99"),
        (INFLUENCES + "?head=0&relation=0&tail=0&top_k=0", "top_k"),
        (INFLUENCES + "?head=0&relation=0&tail=0&top_k=" + "9" * 5000, "top_k"),
        (INFLUENCES + "?head=0&relation=0&tail=0&topk=3", "topk: unknown field"),
        (INFLUENCES + "?head=0&relation=0&tail=0&order=best", "order"),
        (INFLUENCES + "?head=%FF%FE&relation=0&tail=0", "unknown entity"),
        (INFLUENCES + "?head=" + "9" * 5000 + "&relation=0&tail=0", "unknown entity"),
        ("/v1/entities?limit=0", "limit"),
        ("/v1/entities?limit=x", "limit"),
        ("/v1/entities?query=x", "query: unknown field"),
        ("/v1/relations?limit=1001", "limit"),
    ],
)
def test_wrong_parameters_are_unprocessable(client: Client, assert_problem: Check, path: str, words: str) -> None:
    """422 for addresses as for bodies."""
    assert_problem(client.get(path), 422, words)


_REFS = st.one_of(st.sampled_from([*ENTITIES, "treats", 0, 1, 6, 7, -1]), st.text(max_size=5), st.integers())
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), _REFS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
_BODIES = st.fixed_dictionaries(
    {"triples": st.one_of(st.lists(st.lists(_REFS, min_size=3, max_size=3), max_size=3), _JSON)},
    optional={
        "top_k": st.one_of(st.integers(), _JSON),
        "order": st.one_of(st.sampled_from(["proponents", "opponents", "absolute"]), _JSON),
        "exact": st.one_of(st.booleans(), _JSON),
        "max_candidates": st.one_of(st.integers(), _JSON),
        "filter": st.one_of(st.dictionaries(st.sampled_from(["must", "must_not"]), _JSON), _JSON),
        "direction": st.one_of(st.sampled_from(["tail", "head"]), _JSON),
    },
)


@settings(max_examples=200)
@given(body=st.one_of(_BODIES, _JSON))
def test_no_body_is_our_fault(client: Client, body: Any) -> None:
    """Whatever JSON comes, the answer is a result or says what is wrong with it."""
    response = client.post_raw(INFLUENCES, json.dumps(body).encode())
    assert response.status_code in (200, 422)
    assert response.status_code == 200 or response.json()["detail"]


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/influences/", "/dashboard/", "/%FF", "//v1/index"])
def test_unknown_routes(client: Client, assert_problem: Check, path: str) -> None:
    """404 as a problem document."""
    assert_problem(client.get("http://kgtrace.test" + path), 404, "no route")


def test_wrong_methods(client: Client, assert_problem: Check) -> None:
    """405 says which methods there are."""
    for path, methods in (
        ("/v1/index", "GET"),
        ("/v1/aggregate", "GET, POST"),
        ("/", "GET"),
        ("/v1/influences", "GET, POST"),
    ):
        response = client.send("DELETE", path)
        assert_problem(response, 405, f"use {methods}")
        assert response.headers["Allow"] == methods


# 401: keys.


def test_requests_need_the_key(make_client: Callable[..., Client], assert_problem: Check) -> None:
    """Without the key, or with another, the answer is 401; either header may carry it."""
    client = make_client(read_key="s3cret")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer \xe9"},
        {"X-API-Key": "s3cre"},
        {"X-API-Key": ""},
    ):
        response = client.get("/v1/index", headers=headers)
        assert_problem(response, 401, "Authorization: Bearer KEY")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"Authorization": "Bearer s3cret"}, {"authorization": "bearer s3cret"}, {"X-API-Key": "s3cret"}):
        assert client.get("/v1/index", headers=headers).status_code == 200


def test_only_probes_and_documentation_are_open(make_client: Callable[..., Client]) -> None:
    """Whatever route is added needs the key unless it is listed as public."""
    client = make_client(read_key="s3cret")
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for path in ("/nowhere", "/v1/entities", INFLUENCES, "/v1/index/", "//v1/index", "/livez/"):
        assert client.get("http://kgtrace.test" + path).status_code == 401


def test_the_key_is_asked_for_before_the_body_is_read(service: Service) -> None:
    """A stranger cannot make the service parse anything."""
    status, reads = send_body(service, Settings(read_key="s3cret"), [b"x" * 10] * 5)
    assert (status, reads) == (401, 0)


# 413: large bodies.


def send_body(
    service: Service, settings: Settings, chunks: list[bytes], headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, int]:
    """Post a body in chunks; return the status and how many chunks were taken before it was known."""
    taken: list[bytes] = []
    statuses: list[tuple[int, int]] = []

    async def receive() -> dict[str, Any]:
        taken.append(chunks[len(taken)])
        return {"type": "http.request", "body": taken[-1], "more_body": len(taken) < len(chunks)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append((message["status"], len(taken)))
            assert (b"connection", b"close") in message["headers"] or message["status"] != 413

    scope = {
        "type": "http",
        "method": "POST",
        "path": INFLUENCES,
        "raw_path": INFLUENCES.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *(headers or [])],
        "server": ("kgtrace.test", 80),
        "scheme": "http",
        "root_path": "",
    }
    asyncio.run(create_app(service, settings)(scope, receive, send))
    (found,) = statuses
    return found


def test_announced_bodies_over_the_limit_are_not_read(service: Service) -> None:
    """413 before the first byte."""
    headers = [(b"content-length", b"50")]
    assert send_body(service, Settings(body_limit=20), [b"x" * 10] * 5, headers) == (413, 0)
    headers = [(b"content-length", b"9" * 5000)]
    assert send_body(service, Settings(body_limit=20), [b"x" * 10] * 5, headers) == (413, 0)


def test_bodies_that_grow_over_the_limit_are_read_no_further(service: Service) -> None:
    """413 at the chunk that exceeds it; a body of exactly the limit passes."""
    assert send_body(service, Settings(body_limit=20), [b"x" * 10] * 5) == (413, 3)
    assert send_body(service, Settings(body_limit=50), [b"x" * 10] * 5) == (400, 5)


def test_a_large_body_is_a_problem(make_client: Callable[..., Client], assert_problem: Check) -> None:
    """The detail names the limit."""
    client = make_client(body_limit=100)
    assert_problem(client.post(INFLUENCES, {"triples": [TRIPLE] * 10}), 413, "larger than 100 bytes")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10

    assert_problem(client.post_raw(INFLUENCES, chunks()), 413, "larger than 100 bytes")


# 429, 504: overload.


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


# 503: loading.


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


# 500: our faults.


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), NonFinite("/srv/secret"), RecursionError("secret")])
def test_our_faults_are_logged_and_not_shown(
    make_client: Callable[..., Client],
    attributor: Any,
    assert_problem: Check,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """500 with the request's id and no cause; the log has both."""

    def fail() -> None:
        raise error

    attributor.before_query = fail
    with caplog.at_level(logging.ERROR):
        response = make_client().post(INFLUENCES, {"triples": [TRIPLE]}, headers={"X-Request-Id": "job-7"})
    problem = assert_problem(response, 500, "job-7")
    assert "secret" not in json.dumps(problem)
    assert "secret" in caplog.text
    assert "job-7" in caplog.text


# CORS and documentation.


def test_other_origins_are_refused_by_default(client: Client, make_client: Callable[..., Client]) -> None:
    """Only listed origins may read answers, and may read the headers that matter; errors are readable, too."""
    origin = {"Origin": "https://a.example"}
    assert "Access-Control-Allow-Origin" not in client.get("/v1/index", headers=origin).headers
    allowed = make_client(cors_origins=("https://a.example",), read_key="s3cret")
    response = allowed.get("/v1/index", headers=origin)
    assert response.status_code == 401
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "X-Kgtrace-Generation" in response.headers["Access-Control-Expose-Headers"]
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert allowed.send("OPTIONS", INFLUENCES, headers=preflight).status_code == 200


def test_the_documentation_is_complete(client: Client) -> None:
    """Every route has a summary, an example or a schema for its answer, and problem documents for its errors."""
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/admin/publish",
        "/v1/admin/rollback",
        "/v1/generations",
        "/v1/influences",
        "/v1/predictions",
        "/v1/aggregate",
        "/v1/self-influence",
        "/v1/index",
        "/v1/entities",
        "/v1/relations",
    }
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert schemas["InfluenceRequest"]["examples"]
    assert "anyOf" in schemas["TripleRef"]
    assert schemas["Influence"]["properties"]["influence"]["description"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                media_type, *others = response["content"]
                graphs = path == "/v1/influences" and status == "200"
                assert others == (["application/ld+json", "application/graphml+xml"] if graphs else [])
                fine = "text/plain" if path == "/metrics" else "application/json"
                assert media_type == (fine if status == "200" else "application/problem+json")
                if path.startswith("/v1"):
                    assert "example" in response["content"][media_type]
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps(document))
    assert set(references) <= {f"#/components/schemas/{name}" for name in schemas}


def test_operations_are_named_for_generated_clients(client: Client) -> None:
    """Names of functions in generated clients: fixed, one for each route and method, and without paths."""
    paths = client.get("/openapi.json").json()["paths"]
    names = {
        (method.upper(), path): operation["operationId"]
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    assert names == {
        ("POST", "/v1/influences"): "explain_influences",
        ("GET", "/v1/influences"): "get_influences",
        ("POST", "/v1/predictions"): "predict",
        ("GET", "/v1/predictions"): "get_predictions",
        ("POST", "/v1/aggregate"): "aggregate",
        ("GET", "/v1/aggregate"): "get_aggregate",
        ("POST", "/v1/self-influence"): "rank_self_influence",
        ("GET", "/v1/self-influence"): "get_self_influence",
        ("GET", "/v1/index"): "get_index",
        ("GET", "/v1/entities"): "search_entities",
        ("GET", "/v1/relations"): "search_relations",
        ("GET", "/v1/generations"): "get_generations",
        ("POST", "/v1/admin/publish"): "publish",
        ("POST", "/v1/admin/rollback"): "rollback",
        ("GET", "/livez"): "is_alive",
        ("GET", "/readyz"): "is_ready",
        ("GET", "/metrics"): "get_metrics",
    }
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert name.isidentifier()
        assert not keyword.iskeyword(name)
        assert not re.search("v1|_(post|get)$", name)
