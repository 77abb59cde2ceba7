"""The tools, asked by the SDK's own client."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client as Assistant
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from kgtrace_server.cli import parser as cli
from kgtrace_server.client import Client, LocalClient
from kgtrace_server.http.app import create_app
from kgtrace_server.mcp import pages
from kgtrace_server.mcp.tools import create_server
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from tests.server.conftest import FakeAttributor
from tests.server.test_client import URL, Bridge

TRIPLE = ("alga", "interacts_with", "human")
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("index_info", {}),
    ("search_entities", {"text": "alga"}),
    ("search_entities", {"text": "interacts", "kind": "relation", "limit": 1}),
    ("predict", {"head": "alga", "relation": "interacts_with", "top_k": 3, "only_new": True}),
    ("explain", {"head": "alga", "relation": "interacts_with", "tail": 68, "top_k": 3}),
    ("self_influence", {"relation": "interacts_with", "top_k": 2}),
]
"""Each tool, of UMLS."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from kgtrace_server.cli import main; sys.exit(main())", *arguments]


def asked(server: Any, calls: list[tuple[str, dict[str, Any]]], mode: str = "auto") -> list[tuple[str, bool]]:
    """Connect, call tools, and return their texts and whether each is an error."""

    async def ask() -> list[tuple[str, bool]]:
        async with Assistant(server, mode=mode) as assistant:
            answers = [await assistant.call_tool(name, arguments) for name, arguments in calls]
        assert all(len(answer.content) == 1 and answer.structured_content is None for answer in answers)
        return [(answer.content[0].text, answer.is_error) for answer in answers]  # type: ignore[union-attr]

    return asyncio.run(ask())


def expected(client: Client | LocalClient) -> list[tuple[str, bool]]:
    """The texts of `CALLS`, from the client's answers."""
    texts = [
        pages.index(client.index(), client.relations(limit=1000)),
        pages.named(client.entities("alga", 10)),
        pages.named(client.relations("interacts", 1)),
        pages.predictions(client.predictions(head="alga", relation="interacts_with", top_k=3, filtered=True)),
        pages.influences(client.influences([TRIPLE], top_k=3)),
        pages.self_influences(client.self_influence(top_k=2, must={"relation": ["interacts_with"]})),
    ]
    return [(text, False) for text in texts]


def test_an_assistant_asks_over_standard_input(umls_index: Path) -> None:
    """Every tool answers what the clients answer, and nothing but the protocol is on standard output."""
    program, *arguments = command("mcp", "--index", str(umls_index), "--device", "cpu")
    parameters = StdioServerParameters(command=program, args=arguments)
    answers = asked(parameters, CALLS)
    assert answers == expected(LocalClient(umls_index, device="cpu"))
    assert answers[4][0].startswith("alga | interacts_with | human: score ")
    assert "\nproved exact: " in answers[4][0]


@contextmanager
def listening(*arguments: str, **environment: str) -> Iterator[str]:
    """Run the tools over HTTP, and give their address."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KGTRACE_")}
    process = subprocess.Popen(
        command("mcp", "--http", "--port", "0", *arguments), env=clean | environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait() == 0
        process.stdout.close()


def test_an_assistant_asks_over_http(umls_index: Path) -> None:
    """The same answers, for those who send the key; others, and pages of other hosts, are refused."""

    async def ask(address: str, **headers: str) -> list[str]:
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Assistant(streamable_http_client(address, http_client=http)) as assistant,
        ):
            return [tool.name for tool in (await assistant.list_tools()).tools]

    with listening("--index", str(umls_index), "--device", "cpu", KGTRACE_READ_KEY="s3cret") as address:
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith("/mcp")
        assert set(asyncio.run(ask(address, Authorization="Bearer s3cret"))) == {name for name, _ in CALLS}
        assert httpx2.post(address, json={}).status_code == 401
        rebound = {"Authorization": "Bearer s3cret", "Host": "evil.example"}
        assert httpx2.post(address, json={}, headers=rebound).status_code == 421


@pytest.fixture
def server(service: Service) -> Any:
    """The tools on a service, over HTTP as far as they can tell."""
    return create_server(Client(URL, transport=Bridge(create_app(service, Settings()))))


def test_a_service_answers_as_an_index_does(
    server: Any, attributor: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text, whichever client is asked."""
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("search_entities", {"text": "in"}),
        ("predict", {"head": 0, "relation": "treats"}),
        ("explain", {"head": "aspirin", "relation": "treats", "tail": "7", "order": "absolute", "score": "tracin"}),
        ("self_influence", {}),
    ]
    assert asked(server, calls) == asked(create_server(LocalClient(root)), calls, mode="legacy")  # of older assistants
    assert asked(server, calls)[1][0].startswith(
        "Aspirin® [aspirin] | treats | ?: best tails; all entities were scored"
    )


def test_every_tool_and_argument_is_described(server: Any) -> None:
    """An assistant knows nothing else of kgtrace; and that nothing is changed, so that it may ask without leave."""

    async def listed() -> tuple[str | None, list[Any]]:
        async with Assistant(server) as assistant:
            return assistant.instructions, (await assistant.list_tools()).tools

    instructions, tools = asyncio.run(listed())
    assert "search_entities" in (instructions or "")
    for tool in tools:
        assert tool.description == tool.description.strip()
        assert "\n  " not in tool.description
        assert tool.annotations.read_only_hint
        assert all(argument["description"] for argument in tool.input_schema["properties"].values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            ("explain", {"head": "asprin", "relation": "treats", "tail": 2}),
            "unknown entity 'asprin'; nearest: 'aspirin'",
        ),
        (("explain", {"head": 0, "relation": "treat", "tail": 2}), "unknown relation 'treat'; nearest: 'treats'"),
        (("explain", {"head": 0, "relation": 0, "tail": 77}), "entity id 77 is out of range"),
        (("explain", {"head": "x" * 9000, "relation": 0, "tail": 2}), "none of the 7 entities is similar"),
        (("explain", {"head": 0, "relation": 0, "tail": 2, "direction": "head"}), "no inverse relations"),
        (("predict", {"relation": "treats"}), "exactly one of head and tail must be given"),
        (("predict", {"relation": "treats", "head": 0, "top_k": 51}), "less than or equal to 50"),
        (("self_influence", {"relation": "cures"}), "unknown relation 'cures'"),
    ],
)
def test_wrong_questions_are_errors_of_the_tool(server: Any, call: Any, words: str) -> None:
    """With the words that say what to ask instead, and no more of them than an answer may have."""
    ((text, failed),) = asked(server, [call])
    assert failed
    assert words in text
    assert len(text.encode()) <= pages.LIMIT


def test_our_faults_are_not_shown(server: Any, attributor: FakeAttributor, make_client: Callable[..., Any]) -> None:
    """A failure of the service tells the assistant its status alone."""

    def fail() -> None:
        raise ZeroDivisionError("secret")

    attributor.before_query = fail
    ((text, failed),) = asked(server, [("explain", {"head": 0, "relation": 0, "tail": 2})])
    assert failed
    assert "500" in text
    assert "secret" not in text


def test_without_the_sdk_the_extra_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    monkeypatch.delitem(sys.modules, "kgtrace_server.mcp.tools")
    assert cli.main(["mcp", "--index", str(root)]) == 1
    assert "pip install 'kgtrace[mcp]'" in capsys.readouterr().err
