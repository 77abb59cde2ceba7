"""Bodies are read in a time that their size bounds."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st
from starlette.exceptions import HTTPException

from kgtrace_server.http.bodies import MAX_CONTAINERS, read_json
from kgtrace_server.schema import fields
from tests.server.conftest import Client

INFLUENCES = "/v1/influences"
MEGABYTE = 1 << 20
TEXT = st.text(st.sampled_from('[{"\\,:]} \n\u00fc'))
JSON = st.recursive(
    st.none() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20
)


@given(JSON, st.booleans())
def test_json_is_read_as_it_is(content: Any, ascii_: bool) -> None:
    """Whatever brackets, quotation marks and backslashes its strings hold."""
    assert read_json(json.dumps(content, ensure_ascii=ascii_).encode()) == content


def test_brackets_in_strings_do_not_count() -> None:
    """Labels may hold any number of them; what is not in a string may not."""
    label = '[{"\\' * MAX_CONTAINERS
    assert read_json(json.dumps([label] * 3).encode()) == [label] * 3
    most: list[Any] = [label] + [[]] * (MAX_CONTAINERS - 1)
    assert read_json(json.dumps(most).encode()) == most
    with pytest.raises(HTTPException, match=f"{MAX_CONTAINERS + 1} lists and objects"):
        read_json(json.dumps([*most, {}]).encode())


@pytest.mark.parametrize("body", [b'"' + b'\\"' * (MEGABYTE // 2), b'["' * (MEGABYTE // 2), b"\\" * MEGABYTE])
def test_no_byte_is_looked_at_twice(body: bytes) -> None:
    """Strings without end are refused at once: looking for the end from each quotation mark would take hours."""
    with pytest.raises(HTTPException, match=r"not JSON|lists and objects"):
        read_json(body + b"[" * (MAX_CONTAINERS + 1))


def test_the_largest_request_is_answered(client: Client) -> None:
    """As many triples and alternatives as are allowed, in objects, pass every bound."""
    condition = {field: [0] * fields.MAX_FILTER for field in fields.FIELDS}
    body = {
        "triples": [{"head": 0, "relation": 0, "tail": 2}] * fields.MAX_TRIPLES,
        "top_k": 1,
        "filter": {"must": condition, "must_not": {"head": [1] * fields.MAX_FILTER}},
    }
    assert client.post(INFLUENCES, body).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"triples": [[0, 0, 0]], "filter": {"must": {"head": [0] * 10_001}}}, ["filter.must.head", "10000"]),
        ({"triples": [[0, 0, 0]], "filter": {"must": {"head": [None] * 9_999}}}, ["filter.must.head[0]: must be"]),
        ({"triples": [[0, 0, 0]]} | {f"x{i}": 0 for i in range(100)}, ["has 101 fields"]),
        ({"triples": [{f"x{i}": 0 for i in range(100)}]}, ["triples[0]", "has 100 fields"]),
    ],
)
def test_what_is_wrong_a_thousandfold_is_told_once(
    client: Client, assert_problem: Callable[..., dict[str, Any]], body: Any, words: list[str]
) -> None:
    """Reporting every wrong value of a large body would take longer than answering."""
    problem = assert_problem(client.post(INFLUENCES, body), 422, *words)
    assert "more" not in problem["detail"].split()


def test_parameters_are_bounded_too(client: Client, assert_problem: Callable[..., dict[str, Any]]) -> None:
    """An address has room for thousands of them."""
    query = "&".join(f"x{i}=" for i in range(5_000))
    assert_problem(client.get(f"{INFLUENCES}?head=0&relation=0&tail=0&{query}"), 422, "has 5003 fields")
