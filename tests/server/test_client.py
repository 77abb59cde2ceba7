"""The clients: one question has one answer, or one error, over HTTP and in process."""

import asyncio
import errno
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest

from kgtrace_server.client import AsyncClient, Client, LocalClient, Retries, ServiceError
from kgtrace_server.http.app import create_app
from kgtrace_server.problems import (
    CannotSwitch,
    status_of,
)
from kgtrace_server.schema.answer import from_json
from kgtrace_server.schema.answers import Influences
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store import errors
from kgtrace_store.errors import BadRequest, IdOutOfRange, MissingExtra, MissingInverseRelations, UnknownEntity
from tests.server.conftest import FakeAttributor
from tests.server.test_problems import subclasses
from tests.server.transports import TRIPLE, URL, Bridge, Scripted, ask_sync


@pytest.fixture
def over_http(service: Service) -> Iterator[Client]:
    with Client(URL, transport=Bridge(create_app(service, Settings()))) as client:
        yield client


@pytest.fixture
def local(attributor: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> LocalClient:
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
    return LocalClient(root)


def everything(client: Any) -> list[Any]:
    """Ask everything that reads."""
    index = client.index()
    return [
        client.influences([TRIPLE, (0, 1, 2)], top_k=3),
        client.influences([TRIPLE], must={"relation": ["treats"]}, must_not={"head": [0]}, order="absolute"),
        client.influences([TRIPLE], exact=True, max_candidates=3),
        client.entities("in", 2),
        client.relations(),
        (index.generation, index.counts, index.projection),
    ]


def test_the_same_question_has_the_same_answer_everywhere(over_http: Client, local: LocalClient) -> None:
    """Over HTTP and in process."""
    assert everything(over_http) == everything(local)


def test_the_asynchronous_client_answers_the_same(over_http: Client, service: Service) -> None:
    """Each of its methods is awaited, and that is all the difference."""

    async def ask() -> list[Any]:
        transport = httpx.ASGITransport(create_app(service, Settings()))
        async with AsyncClient(URL, transport=transport) as client:
            return [
                await client.influences([TRIPLE], top_k=3),
                await client.entities("in", 2),
                await client.relations(),
                (await client.index()).fingerprint,
            ]

    assert asyncio.run(ask()) == [
        over_http.influences([TRIPLE], top_k=3),
        over_http.entities("in", 2),
        over_http.relations(),
        over_http.index().fingerprint,
    ]


def test_answers_become_data_frames(over_http: Client, service: Service) -> None:
    """One row for each influence, in the columns of the command line's files; without rows the columns stay."""
    frame = over_http.influences([TRIPLE, (1, 0, 2)], top_k=4).to_dataframe()
    assert tuple(frame.columns) == tuple(Influences.COLUMNS)
    assert len(frame) == 8
    assert frame["influence"].is_monotonic_decreasing is False
    assert frame.loc[0, "test_head_name"] == "Aspirin®"
    empty = over_http.influences([TRIPLE], must={"head": ["Zürich"]}).to_dataframe()
    assert (len(empty), tuple(empty.columns)) == (0, tuple(Influences.COLUMNS))


def test_without_pandas_the_extra_is_named(over_http: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"kgtrace\[dataframe\]"):
        over_http.influences([TRIPLE]).to_dataframe()


def test_fields_that_a_newer_service_adds_are_passed_over(service: Service) -> None:
    """Results are read by name."""
    answer = service.influences(InfluenceRequest.of(triples=[TRIPLE]))
    content: Any = asdict(answer)
    content["new"] = content["results"][0]["new"] = content["seconds"]["new"] = 1
    assert from_json(Influences, json.dumps(content).encode()) == answer


def test_fields_that_an_older_service_lacks_have_defaults(service: Service) -> None:
    """The first one knew neither notes nor scores."""
    answer = service.influences(InfluenceRequest.of(triples=[TRIPLE]))
    content: Any = asdict(answer)
    content["results"][0]["notes"] = ["one"]
    assert from_json(Influences, json.dumps(content).encode()).results[0].notes == ("one",)
    del content["score"], content["results"][0]["notes"]
    assert from_json(Influences, json.dumps(content).encode()) == answer


@pytest.mark.parametrize("content", [b"", b"[]", b"<html></html>", b'{"generation": "x"}'])
def test_what_is_no_answer_is_a_service_error(content: bytes) -> None:
    """Whatever lies between client and service may say that all is well."""
    with pytest.raises(ServiceError, match="200: this is no answer of the service"):
        ask_sync(Scripted(httpx.Response(200, content=content)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"triples": [("asprin", "treats", "headache")]}, UnknownEntity, "'aspirin'"),
        ({"triples": [(99, 0, 0)]}, IdOutOfRange, "99"),
        ({"triples": [TRIPLE], "direction": "head"}, MissingInverseRelations, "no inverse relations"),
        ({"triples": [TRIPLE], "top_k": 0}, BadRequest, "top_k"),
    ],
)
def test_errors_are_the_same_everywhere(
    over_http: Client, local: LocalClient, arguments: dict[str, Any], error: type, words: str
) -> None:
    """What the index raises in process comes back over HTTP as itself."""
    for client in (over_http, local):
        with pytest.raises(error, match=words):
            client.influences(**arguments)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda client: client.influences([(0.5, 0, 0)]), "label"),
        (lambda client: client.influences([(0, True, 0)]), "label"),
        (lambda client: client.influences([TRIPLE, TRIPLE[:2]]), "triple"),
        (lambda client: client.influences(("abc", "def", "ghi")), "triple"),
        (lambda client: client.influences((0, 1, 2)), "triple"),
        (lambda client: client.influences(np.array([0, 1, 2])), "triple"),
        (lambda client: client.aggregate("abc", "relation"), "triple"),
        (lambda client: client.influences([]), "triples"),
        (lambda client: client.influences([TRIPLE], top_k="5"), "top_k"),
        (lambda client: client.influences([TRIPLE], top_k=True), "top_k"),
        (lambda client: client.influences([TRIPLE], max_candidates=0.5), "max_candidates"),
        (lambda client: client.influences([TRIPLE], max_candidates=-1), "max_candidates"),
        (lambda client: client.influences([TRIPLE], within_hops="1"), "within_hops"),
        (lambda client: client.influences([TRIPLE], order="x"), "order"),
        (lambda client: client.influences([TRIPLE], direction="x"), "direction"),
        (lambda client: client.influences([TRIPLE], must={"foo": [0]}), "foo"),
        (lambda client: client.influences([TRIPLE], must_not={"head": [None]}), "label"),
        (lambda client: client.aggregate(TRIPLE, "x"), "by"),
        (lambda client: client.aggregate(TRIPLE[:2], "relation"), "triple"),
        (lambda client: client.aggregate(TRIPLE, "relation", top_k=0), "top_k"),
        (lambda client: client.aggregate(TRIPLE, "relation", order="x"), "order"),
        (lambda client: client.predictions(relation=0, head=0.5), "label"),
        (lambda client: client.predictions(relation=0.5, head=0), "label"),
        (lambda client: client.predictions(relation=0, head=0, top_k="5"), "top_k"),
        (lambda client: client.self_influence(order="x"), "order"),
        (lambda client: client.self_influence(score="x"), "score"),
        (lambda client: client.self_influence(top_k=2.0), "top_k"),
        (lambda client: client.self_influence(must={"foo": [0]}), "foo"),
        (lambda client: client.entities(limit=0), "limit"),
        (lambda client: client.relations(limit=-1), "limit"),
    ],
)
def test_bad_calls_are_refused_everywhere(
    over_http: Client, local: LocalClient, ask: Callable[[Any], Any], words: str
) -> None:
    """What the service would not answer over HTTP is not answered in process."""
    for client in (over_http, local):
        with pytest.raises(BadRequest, match=words):
            ask(client)


KINDS = sorted({errors.KgtraceError, *subclasses(errors.KgtraceError)}, key=lambda kind: kind.__name__)
SAMPLES = {
    "label": "Zür\ud800",
    "nearest": (("Zürich", None), ("a/b", "A or B")),
    "status": 502,
    "request_id": "7",
}
"""A value for each field that some error has beside its message."""


def sample(kind: type[errors.KgtraceError]) -> errors.KgtraceError:
    """An error of a kind, with all its fields."""
    try:
        parameters = list(inspect.signature(kind).parameters)[1:]
    except ValueError:  # that of the builtin exception
        parameters = []
    arguments = {name: SAMPLES[name] for name in parameters if name not in ("args", "kwargs")}
    return kind("what is wrong, and what to do", **arguments)


@pytest.fixture(scope="module")
def failing() -> Iterator[tuple[Any, list[Callable[[], Any]]]]:
    """An attributor, and one question to it in process, over HTTP, and over HTTP from an event loop."""
    attributor: Any = FakeAttributor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
        local = LocalClient(Path("unused"))
    app = create_app(Service(attributor), Settings())
    once = Retries(attempts=1)

    async def ask() -> Any:
        async with AsyncClient(URL, retries=once, transport=httpx.ASGITransport(app)) as client:
            return await client.influences([TRIPLE])

    with Client(URL, retries=once, transport=Bridge(app)) as client:
        yield (
            attributor,
            [
                lambda: local.influences([TRIPLE]),
                lambda: client.influences([TRIPLE]),
                lambda: asyncio.run(ask()),
            ],
        )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_with_all_its_fields(
    failing: tuple[Any, list[Callable[[], Any]]], kind: type[errors.KgtraceError]
) -> None:
    """From a service as from an index folder; of a fault of the service only that it is one is told."""
    raised = sample(kind)
    attributor, asked = failing

    def fail() -> NoReturn:
        raise raised

    attributor.before_query = fail
    caught = []
    for question in asked:
        with pytest.raises(errors.KgtraceError) as error:
            question()
        caught.append(error.value)
    assert caught[0] is raised
    for error in caught[1:]:
        if status_of(raised) == 500:
            assert (type(error), error.status) == (ServiceError, 500)
            assert error.request_id
        else:
            assert (type(error), str(error), vars(error)) == (kind, str(raised), vars(raised))


@pytest.mark.parametrize("label", ["asprin", "Zürih", "\ud800", "nothing like it"])
def test_unknown_labels_bring_the_nearest_ones(over_http: Client, local: LocalClient, label: str) -> None:
    """Whoever is corrected automatically needs them as data, in process and over HTTP."""
    caught = []
    for client in (over_http, local):
        with pytest.raises(UnknownEntity) as error:
            client.influences([(label, 0, 0)])
        caught.append(error.value)
    assert vars(caught[0]) == vars(caught[1])
    assert caught[0].label == label
    assert (caught[0].nearest == ()) == (label in ("\ud800", "nothing like it"))


@pytest.mark.parametrize("content", [b'{"type": [], "detail": ""}', b"[]", b"1", b'{"type": "x"}'])
def test_what_is_no_problem_document_is_a_service_error(content: bytes) -> None:
    """Whatever lies between client and service may answer."""
    with pytest.raises(ServiceError, match="502"):
        ask_sync(Scripted(httpx.Response(502, content=content)))


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_numbers_may_be_numpys(over_http: Client, local: LocalClient, service: Service, integer: Any) -> None:
    """Ids, counts, factors and switches that were computed need not be converted, whoever is asked."""
    zero, one, two = map(integer, range(3))

    def questions(client: Any) -> list[Any]:
        return [
            client.influences([(zero, one, zero)], top_k=two, max_candidates=two, exact=np.bool_(False)),
            client.influences(np.array([[0, 1, 0], [1, 1, 0]], integer), top_k=two),
            client.influences([TRIPLE], must={"head": np.array([0, 1], integer)}, must_not={"tail": [two]}),
            client.influences([TRIPLE], within_hops=one, score="preconditioned", damping=np.float32(2)),
            client.aggregate((zero, one, zero), "head", top_k=two),
            client.predictions(relation=one, head=zero, top_k=two, filtered=np.True_),
            client.predictions(relation=np.str_("treats"), head=np.str_("aspirin")),
            client.self_influence(top_k=two, must={"relation": [one]}),
            client.entities("in", two),
            client.relations(limit=one),
        ]

    async def ask() -> list[Any]:
        transport = httpx.ASGITransport(create_app(service, Settings()))
        async with AsyncClient(URL, transport=transport) as client:
            return [await question for question in questions(client)]

    plain = local.influences([(0, 1, 0)], top_k=2, max_candidates=2)
    assert questions(local) == questions(over_http) == asyncio.run(ask())
    assert questions(over_http)[0] == plain


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.influences([(np.float64(1), 0, 0)]),
        lambda client: client.influences([(np.bool_(True), 0, 0)]),
        lambda client: client.influences([(object(), 0, 0)]),
        lambda client: client.influences([TRIPLE], top_k=np.float32(2)),
        lambda client: client.influences([TRIPLE], top_k=np.bool_(True)),
        lambda client: client.influences([TRIPLE], must={("head",): [0]}),
    ],
)
def test_what_json_cannot_say_is_refused_everywhere(
    over_http: Client, local: LocalClient, ask: Callable[[Any], Any]
) -> None:
    """With the error of any other wrong call."""
    for client in (over_http, local):
        with pytest.raises(BadRequest):
            ask(client)


def test_nan_is_refused_before_it_is_sent(over_http: Client) -> None:
    """JSON has none."""
    with pytest.raises(BadRequest, match="not JSON compliant"):
        over_http.influences([TRIPLE], score="preconditioned", damping=float("nan"))


def test_keys_are_sent_and_missing_ones_are_told(service: Service) -> None:
    """A refusal that stands for no error of the index is a `ServiceError` with status and request id."""
    app = create_app(service, Settings(read_key="s3cret"))
    assert Client(URL, key="s3cret", transport=Bridge(app)).index().model == "ConvE"
    with pytest.raises(ServiceError, match="401: send the service's key") as raised:
        Client(URL, key="wrong", transport=Bridge(app)).index()
    assert raised.value.status == 401
    assert len(raised.value.request_id or "") == 32


def test_generations_can_be_listed_and_switched(local: LocalClient, root: Path, service: Service) -> None:
    """With the admin key over HTTP, without one in process."""
    app = create_app(service, Settings(index=root, admin_key="s3cret"))
    with Client(URL, key="s3cret", transport=Bridge(app)) as client:
        old, new = client.generations()
        assert [g.live for g in (old, new)] == [False, True]
        assert client.rollback().live == old.id
        with pytest.raises(CannotSwitch, match="no generation before"):
            client.rollback()
        assert local.generations() == client.generations()
        assert client.publish(new.id).live == new.id
        assert local.rollback().live == old.id
        for either in (client, local):
            with pytest.raises(CannotSwitch, match="no generation before"):
                either.rollback()
            with pytest.raises(CannotSwitch, match="no generation 'x'"):
                either.publish("x")
        assert local.publish(new.id).serving == local.index().generation


def test_a_root_that_cannot_be_written_is_no_fault_of_the_service(
    local: LocalClient, root: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file system may have no locks: the reason is answered, without the path over HTTP."""

    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    app = create_app(service, Settings(index=root, admin_key="s3cret"))
    with Client(URL, key="s3cret", transport=Bridge(app)) as client:
        for asked, words in ((local, f"cannot lock {root}/publish.lock"), (client, "cannot lock publish.lock")):
            with pytest.raises(CannotSwitch, match=f"^{words}: No locks available"):
                asked.rollback()
