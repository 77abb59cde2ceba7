"""What Prometheus and the log are told."""

import asyncio
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kgtrace_server.http import logs
from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from tests.server.conftest import GENERATION, Client, patient
from tests.server.waiting import Gate, until

INFLUENCES = "/v1/influences"
BODY = {"triples": [["aspirin", "treats", "headache"], [0, 0, 0]]}


def samples(client: Client) -> dict[str, float]:
    """Every sample by name and labels."""
    response = client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_requests_are_measured_by_route_and_status(make_client: Callable[..., Client]) -> None:
    """Paths that anybody can think of do not become labels."""
    client = make_client(read_key="s3cret")
    for path in ("/v1/index", "/nowhere", "/v1/nowhere/else"):
        client.get(path, headers={"X-API-Key": "s3cret"})
    client.get("/v1/index")
    client.send("BREW", "/livez")
    found = samples(client)
    assert found["kgtrace_request_seconds_count method=GET route=/v1/index status=200"] == 1
    assert found["kgtrace_request_seconds_count method=GET route=none status=404"] == 2
    assert found["kgtrace_request_seconds_count method=GET route=none status=401"] == 1
    assert found["kgtrace_request_seconds_count method=other route=/livez status=405"] == 1
    assert found["kgtrace_rejections_total reason=key"] == 1
    assert found["kgtrace_rejections_total reason=queue"] == 0


def test_computations_are_measured(make_client: Callable[..., Client]) -> None:
    """Waiting, batches, stages, candidates and what was certified."""
    client = make_client()
    client.post(INFLUENCES, BODY)
    client.post(INFLUENCES, BODY | {"max_candidates": 3})
    client.post(INFLUENCES, {"triples": [["nobody", 0, 0]]})
    found = samples(client)
    assert found["kgtrace_queue_seconds_count"] == 3
    assert found["kgtrace_queue_depth"] == 0
    assert found["kgtrace_batch_requests_sum"] == 3
    assert found["kgtrace_batch_triples_sum"] == 5
    for stage, seconds in (("gradient", 0.1), ("search", 0.2), ("rerank", 0.3)):
        assert found[f"kgtrace_stage_seconds_sum stage={stage}"] == pytest.approx(2 * seconds)
    assert found["kgtrace_candidates_count"] == 4
    assert found["kgtrace_explanations_total certified=true"] == 2
    assert found["kgtrace_explanations_total certified=false"] == 2


def test_a_fault_of_the_computing_thread_is_answered_and_counted(
    make_client: Callable[..., Client], assert_problem: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not left to the deadline; the next request is computed, and readiness tells the truth."""
    client = make_client()
    worker = client.app.state.backend.worker
    for faults, place in enumerate(("_begin", "_observe"), 1):
        with monkeypatch.context() as patch:
            patch.setattr(worker, place, lambda *_: 1 / 0)
            assert_problem(client.post(INFLUENCES, BODY), 500, "internal error")
        assert client.post(INFLUENCES, BODY).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert samples(client)["kgtrace_worker_restarts_total"] == faults


def test_the_index_is_described(client: Client) -> None:
    """Which one answers, how old it is, how large; the process, too."""
    found = samples(client)
    (info,) = [name for name in found if name.startswith("kgtrace_index_info")]
    assert f"generation={GENERATION}" in info
    assert "model=ConvE" in info
    assert 3600 <= found["kgtrace_index_age_seconds"] < 7200
    assert found["kgtrace_index_triples"] == 20
    assert found["process_resident_memory_bytes"] > 0
    assert found["kgtrace_reloads_total result=failed"] == 0


def test_applications_do_not_share_numbers(make_client: Callable[..., Client]) -> None:
    """Each has a registry of its own."""
    first, second = make_client(), make_client()
    first.get("/livez")
    assert "kgtrace_request_seconds_count method=GET route=/livez status=200" in samples(first)
    assert "kgtrace_request_seconds_count method=GET route=/livez status=200" not in samples(second)


def test_reloads_are_counted_and_shown(service: Service, root: Path) -> None:
    """Good ones and bad ones; the probe of readiness shows the last."""

    def load(generation: str) -> Service:
        if generation == first:
            raise ZeroDivisionError
        return service

    first, _ = sorted(path.name for path in (root / "generations").iterdir())
    app = create_app(load, Settings(index=root, admin_key="adm1n"))
    client = Client(app)
    key = {"X-API-Key": "adm1n"}
    assert client.get("/readyz").status_code == 503
    assert client.post("/v1/admin/publish", {"generation": first}, headers=key).json()["reload"]["ok"] is False
    found = samples(client)
    assert found["kgtrace_reloads_total result=failed"] == 1
    assert not [name for name in found if name.startswith("kgtrace_index_info")]
    second = sorted(path.name for path in (root / "generations").iterdir())[1]
    switched = client.post("/v1/admin/publish", {"generation": second}, headers=key).json()
    assert (switched["live"], switched["serving"], switched["reload"]["ok"]) == (second, GENERATION, True)
    assert samples(client)["kgtrace_reloads_total result=ok"] == 1
    assert client.get("/readyz").json()["reload"]["generation"] == second
    rolled = client.post("/v1/admin/rollback", headers=key).json()
    assert (rolled["serving"], rolled["reload"]["reason"]) == (GENERATION, "ZeroDivisionError; see the log")
    assert client.get("/readyz").json()["reload"]["ok"] is False
    assert client.post(INFLUENCES, BODY).status_code == 200


# Logs.


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """What is logged in JSON while something is done."""

    def logged(do: Callable[[], object], level: int = logging.INFO) -> list[dict[str, Any]]:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logs.JsonFormatter())
        ours = logging.getLogger("kgtrace_server")
        ours.addHandler(handler)
        before, _ = ours.level, ours.setLevel(level)
        try:
            do()
        finally:
            ours.removeHandler(handler)
            ours.setLevel(before)
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return logged


def test_each_request_is_one_line(client: Client, log: Callable[..., list[dict[str, Any]]]) -> None:
    """With id, route, status, duration, time in the queue and generation, and nothing of what was asked."""
    (line,) = log(lambda: client.post(INFLUENCES, BODY, headers={"X-Request-Id": "job-7"}))
    assert line["level"] == "info"
    assert line["request_id"] == "job-7"
    assert (line["method"], line["route"], line["status"]) == ("POST", INFLUENCES, 200)
    assert 0 <= line["queue_seconds"] <= line["seconds"]
    assert line["generation"] == GENERATION
    assert "aspirin" not in json.dumps(line)
    (line,) = log(lambda: client.get("/nowhere?q=secret", headers={"X-Request-Id": "job-8"}))
    assert (line["route"], line["status"], line["queue_seconds"]) == ("none", 404, None)
    assert "secret" not in json.dumps(line)


def test_probes_are_logged_for_those_who_debug(client: Client, log: Callable[..., list[dict[str, Any]]]) -> None:
    """They come every few seconds and say nothing new."""
    assert log(lambda: client.get("/livez")) == []
    assert len(log(lambda: client.get("/livez"), logging.DEBUG)) == 1


def test_failures_carry_their_stack_in_the_same_line(
    make_client: Callable[..., Client], attributor: Any, log: Callable[..., list[dict[str, Any]]]
) -> None:
    """What the caller is not shown, the log holds under the same request id."""

    def fail() -> None:
        raise ZeroDivisionError("two\nlines")

    attributor.before_query = fail
    failure, line = log(lambda: make_client().post(INFLUENCES, BODY, headers={"X-Request-Id": "job-7"}))
    assert failure["level"] == "error"
    assert "job-7" in failure["message"]
    assert "Traceback" in failure["exception"]
    assert line["status"] == 500


def test_the_format_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON for machines, lines for people."""
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        for format_, start in (("json", '{"time": "'), ("text", "20")):
            logs.configure("info", format_)
            logging.getLogger("kgtrace_server").warning("hello")
            assert capsys.readouterr().err.startswith(start)
            root.handlers = []
    finally:
        root.handlers = kept


# Together.


def test_requests_that_queue_up_are_computed_together(service: Service, attributor: Any) -> None:
    """Each gets its part, an unknown label only its own error, and other options a computation of their own."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    app = create_app(service, patient())
    worker = app.state.backend.worker
    bodies = [
        {"triples": [[0, 0, 0]]},
        {"triples": [[1, 0, 0]], "top_k": 5},
        {"triples": [[2, 0, 0], [3, 0, 0]], "top_k": 5},
        {"triples": [[4, 0, 0]], "top_k": 3},
        {"triples": [["nobody", 0, 0]], "top_k": 5},
        {"triples": [[5, 0, 0]], "top_k": 5, "filter": {"must": {"head": ["aspirin", 1]}}},
        {"triples": [[6, 0, 0]], "top_k": 5, "filter": {"must": {"head": [1, "aspirin"]}}},
    ]

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client:

            def ask(body: dict[str, Any]) -> "asyncio.Future[httpx.Response]":
                return asyncio.ensure_future(client.post(INFLUENCES, json=body))

            requests = [ask(bodies[0])]
            await until(gate.reached.is_set)
            for waiting, body in enumerate(bodies[1:], 1):
                requests.append(ask(body))
                await until(lambda waiting=waiting: worker.waiting == waiting)
            gate.opened.set()
            return await asyncio.gather(*requests)

    responses = asyncio.run(send())
    assert [r.status_code for r in responses] == [200, 200, 200, 200, 422, 200, 200]
    heads = [[t["triple"]["head"]["id"] for t in r.json()["results"]] for r in responses if r.status_code == 200]
    assert heads == [[0], [1], [2, 3], [4], [5], [6]]
    assert [call["triples"][:, 0].tolist() for call in attributor.calls] == [[0], [1, 2, 3], [4], [5, 6]]


def test_one_failure_in_a_batch_is_its_own(service: Service, attributor: Any) -> None:
    """When computing together fails, each is computed alone."""
    from kgtrace_server.schema.questions import InfluenceRequest

    def fail_for_two() -> None:
        if len(attributor.calls) in (0, 2):
            attributor.calls.append(None)
            raise ZeroDivisionError

    attributor.before_query = fail_for_two
    outcomes = service.together([InfluenceRequest.of(triples=[(i, 0, 0)]) for i in range(3)])
    assert [type(outcome).__name__ for outcome in outcomes] == ["Influences", "ZeroDivisionError", "Influences"]
