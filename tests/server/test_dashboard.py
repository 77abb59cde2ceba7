"""The dashboard's files: where they are, how long they are kept, and what they may do."""

import gzip
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from kgtrace_server import dashboard
from tests.server.conftest import Client


def page_of(client: Client) -> str:
    response = client.get("/")
    assert response.status_code == 200
    return response.text


def test_the_page_may_load_from_its_own_server_alone(client: Client) -> None:
    """Nothing inline, no stranger, no markup out of text, no frame, no guessing of types."""
    headers = client.get("/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("form-action") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("img-src") == "'self' blob:"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    for name, content in dashboard._read(files(dashboard.__name__) / "static"):
        assert not re.search(
            r"innerHTML|insertAdjacent|document\.write|eval\(|https?://(?!www\.w3\.org/)", content.decode()
        )
        assert not re.search(r"\son\w+=|\sstyle=|<script>", content.decode()), name


def test_everything_that_the_page_needs_is_there(client: Client) -> None:
    """Every address in the page and every import in a module leads to a file that may be kept for ever."""
    waiting = re.findall(r'"(dashboard/[^"]+)"', page_of(client))
    seen: set[str] = set()
    while waiting:
        path = urljoin("/", waiting.pop())
        if path in seen:
            continue
        seen.add(path)
        response = client.get(path)
        assert response.status_code == 200, path
        assert "immutable" in response.headers["Cache-Control"]
        if "/vendor/" not in path and path.endswith(".js"):
            assert response.headers["Content-Type"].startswith("text/javascript")
            imported = re.findall(r'^(?:import|.* from) "(\..*)";$|import\("(\.[^"]*)"\)', response.text, re.M)
            waiting += [urljoin(path, at_once or later) for at_once, later in imported]
    assert {name for name, _ in dashboard._read(files(dashboard.__name__))} - {"static/index.html"} == {
        path.split("/", 3)[3] for path in seen
    }


def test_the_page_names_all_modules_of_its_first_view_and_no_others(client: Client) -> None:
    """They are loaded at once: each that is named imports none that is not, and other views are not among them."""
    named = [urljoin("/", path) for path in re.findall(r'"modulepreload" href="([^"]+)"', page_of(client))]
    assert {path.rsplit("/", 1)[1] for path in named} >= {"main.js", "explain.js", "d3.js"}
    assert not any(path.endswith(("/ranking.js", "/several.js", "/changes.js")) for path in named)
    imported = {
        urljoin(path, name)
        for path in named
        for name in re.findall(r'^(?:import|.* from) "(\..*)";$', client.get(path).text, re.M)
    }
    assert imported - set(named) == set()
    assert set(named) - imported == {path for path in named if path.endswith(("/main.js", "/explain.js"))}


def test_the_page_is_asked_for_again_and_sent_only_when_changed(client: Client) -> None:
    """An entity tag, 304, and files below an address of their version; another version's are not there."""
    first = client.get("/")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "Content-Security-Policy" in again.headers
    assert client.get("/", headers={"If-None-Match": 'W/"other"'}).status_code == 200
    path = re.findall(r'"(dashboard/[^"]+)"', first.text)[0]
    version = path.split("/")[1]
    for wrong in (
        path.replace(version, "other"),
        f"dashboard/{version}/__init__.py",
        f"dashboard/{version}/../../app.py",
    ):
        assert client.get("/" + wrong).status_code == 404


def test_files_are_compressed_where_that_is_understood(client: Client) -> None:
    """The same bytes, fewer on the way."""
    path = "/" + re.findall(r'"(dashboard/[^"]+\.js)"', page_of(client))[0]
    plain = client.get(path, headers={"Accept-Encoding": "identity"})
    packed = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.content == plain.content  # the client unpacked it
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert len(gzip.compress(plain.content)) < len(plain.content)


def test_the_page_is_small() -> None:
    """Phones load it, too: compressed, all of it is at most 200 kB."""
    built = dashboard._built()
    sizes = [len(gzip.compress(built.page.encode())), *(len(file.zipped) for file in built.files.values())]
    assert 100_000 < sum(sizes) <= 200_000


def test_an_installation_without_the_chart_library_says_so(
    make_client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The API answers; the page does not, and the log says what to do."""
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "index.html").write_text("VERSION")
    monkeypatch.setattr(dashboard, "files", lambda _: tmp_path)
    dashboard._built.cache_clear()
    client = make_client()
    assert client.get("/").status_code == 500
    assert "install the package again" in caplog.text
    assert client.get("/v1/index").status_code == 200
    dashboard._built.cache_clear()


def test_what_is_unknown_is_named_apart_from_the_sentence_about_it(
    client: Client, assert_problem: Callable[..., dict[str, Any]]
) -> None:
    """Programs can offer the nearest labels without reading prose."""
    response = client.get("/v1/predictions", params={"head": "asprin", "relation": "treats"})
    body = assert_problem(response, 422, "unknown entity 'asprin'; nearest: 'aspirin'")
    assert body["unknown"] == "asprin"
    assert body["nearest"][0] == {"label": "aspirin", "name": "Aspirin®"}
    body = assert_problem(client.post("/v1/predictions", {"head": "7", "relation": 99}), 422, "99")
    assert "unknown" not in body
