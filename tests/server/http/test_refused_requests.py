"""Requests that are refused: bad bodies, wrong parameters, unknown routes, missing keys, large bodies."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from tests.server.conftest import ENTITIES, Client
from tests.server.http.questions import INFLUENCES, TRIPLE, Check

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
