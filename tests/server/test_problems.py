"""From errors to statuses."""

import json
from collections.abc import Iterator

import pytest

import kgtrace_server.client
import kgtrace_server.dashboard
import kgtrace_server.http.app
import kgtrace_server.http.reload
import kgtrace_server.http.serving
from kgtrace_server import problems
from kgtrace_store import errors

OURS = (
    errors.ModelError,
    errors.StoreError,
    errors.MissingExtra,
    errors.RegistryUnavailable,
    errors.WorkerLost,
    kgtrace_server.client.ServiceError,
    kgtrace_server.dashboard.NoChartLibrary,
    kgtrace_server.http.reload.NotEnoughMemory,
    kgtrace_server.http.serving.CannotListen,
)
"""Faults of the server or of what it was given to serve, not of the request."""


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


@pytest.mark.parametrize("kind", sorted(set(subclasses(errors.KgtraceError)), key=lambda c: c.__name__))
def test_only_faults_of_the_server_are_internal_errors(kind: type[errors.KgtraceError]) -> None:
    """Every error reaches a status, and what a request can cause is never a 500."""
    status = problems.status_of(kind("message"))
    if kind is errors.MissingInverseRelations:
        assert status == 422
    elif issubclass(kind, OURS):
        assert status == 500
    elif issubclass(kind, errors.InputError):
        assert status == 422
    else:
        assert status in (409, 429, 500, 503, 504)
        assert (status == 500) == (kind is problems.Refused)


def test_a_problem_names_its_kind() -> None:
    """Programs compare the type, people read title and detail."""
    response = problems.error_response(errors.UnknownEntity("unknown entity 'x'"))
    assert json.loads(response.body) == {
        "type": "https://kgtrace.readthedocs.io/problems#unknown-entity",
        "title": "Unknown entity",
        "status": 422,
        "detail": "unknown entity 'x'",
    }


def test_overload_says_when_to_come_back() -> None:
    """429 and 503 carry Retry-After, others do not."""
    assert problems.error_response(problems.QueueFull("full")).headers["Retry-After"] == "1"
    assert problems.error_response(problems.NotReady("loading")).headers["Retry-After"] == "1"
    assert "Retry-After" not in problems.error_response(errors.BadRequest("no")).headers


def test_long_lists_of_errors_are_cut() -> None:
    """A detail names a few fields and says how many more there are."""
    errors_ = [{"type": "x", "loc": ("body", "triples", i), "msg": "Wrong"} for i in range(256)]
    detail = json.loads(problems.invalid_request(errors_).body)["detail"]
    assert detail.startswith("triples[0]: wrong; triples[1]: wrong")
    assert detail.endswith("and 251 more")
