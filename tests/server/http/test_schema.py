"""Requests made up from the OpenAPI document, and whether the answers are as it says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kgtrace_server.calls import AT_LEAST
from kgtrace_server.http.app import create_app
from kgtrace_server.settings import Settings
from tests.server.conftest import FakeAttributor, fake_service


def no_fault_of_ours(context: Any, response: Any, case: schemathesis.Case) -> None:
    """503 is right where a generation is asked for that is not there yet."""
    if response.status_code != 503 or AT_LEAST.lower() not in map(str.lower, response.request.headers):
        not_a_server_error(context, response, case)


PROMISES = (
    no_fault_of_ours,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)

APP = create_app(fake_service(FakeAttributor()), Settings(admin_key="adm1n"))


@asynccontextmanager
async def _endless(_: object) -> AsyncIterator[None]:
    """Schemathesis starts and stops the application with each request; stopped, it answers no more."""
    yield


APP.router.lifespan_context = _endless

schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_documented(case: schemathesis.Case) -> None:
    """No server error, and status, media type, headers and body are documented, whatever is asked."""
    case.call_and_validate(checks=list(PROMISES), headers={"X-API-Key": "adm1n"})


def test_every_operation_was_tried() -> None:
    """What is not in the document is not tested above."""
    paths = {operation.ok().path for operation in schema.get_all_operations()}
    assert paths == set(APP.openapi()["paths"])
    assert len(paths) >= 10
