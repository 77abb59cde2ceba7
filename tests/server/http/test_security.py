"""Who may do what, and what browsers may do with the answers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from tests.server.conftest import Client

Check = Callable[..., dict[str, Any]]

OPEN = {
    "/",
    "/dashboard/{version}/{path:path}",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/docs/{name}",
    "/openapi.json",
}
KEYS = {"none": {}, "wrong": "wrong", "read": "r3ad", "admin": "adm1n"}


def routes(app: Any) -> set[tuple[str, str]]:
    """Every method and path of an application, found in its routing table and in its document."""
    found = {(method, route.path) for route in _flat(app.routes) for method in route.methods or ()}
    documented = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert documented <= found
    return found


def _flat(found: Any) -> list[Any]:
    """Routes, also those within included routers."""
    flat = []
    for route in found:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        flat += _flat(inner) if inner and not isinstance(route, APIRoute) else [route]
    return flat


def ask(app: Any, method: str, path: str, key: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    path = path.replace("{name}", "start.js")
    if path.startswith("/dashboard/"):
        path = re.findall(r'"(dashboard/[^"]+)"', Client(app).get("/").text)[0]
    return Client(app).send(method, path, headers=headers)


def test_every_route_is_open_to_those_it_is_for(service: Service, root: Path) -> None:
    """Every route × no key, a wrong one, the read key, the admin key: refused, or not."""
    app = create_app(service, Settings(index=root, read_key="r3ad", admin_key="adm1n"))
    table = routes(app)
    assert len(table) >= 15
    for method, path in sorted(table):
        for name, key in KEYS.items():
            status = ask(app, method, path, key).status_code
            if path in OPEN:
                assert status == 200, (method, path, name)
            elif name in ("none", "wrong"):
                assert status == 401, (method, path, name)
            elif path.startswith("/v1/admin/") and name == "read":
                assert status == 403, (method, path, name)
            else:
                assert status not in (401, 403), (method, path, name)
                assert status < 500, (method, path, name)


@pytest.mark.parametrize(
    ("read_key", "admin_key", "expected"),
    [
        (None, None, {"none": (200, 403), "wrong": (200, 403)}),
        ("r3ad", None, {"none": (401, 401), "wrong": (401, 401), "read": (200, 403)}),
        (None, "adm1n", {"none": (200, 401), "wrong": (200, 401), "admin": (200, 409)}),
    ],
)
def test_keys_that_are_not_set_open_reading_and_close_administration(
    service: Service, read_key: str | None, admin_key: str | None, expected: dict[str, tuple[int, int]]
) -> None:
    """Without a read key everybody may read; without an admin key nobody may switch, whatever they send."""
    app = create_app(service, Settings(read_key=read_key, admin_key=admin_key))
    for name, (reading, switching) in expected.items():
        assert ask(app, "GET", "/v1/index", KEYS[name]).status_code == reading
        assert ask(app, "POST", "/v1/admin/rollback", KEYS[name]).status_code == switching
        assert ask(app, "POST", "/v1/admin/rollback", None).status_code in (401, 403)


@pytest.mark.parametrize(
    "path", ["//v1/admin/rollback", "/v1/admin/../admin/rollback", "/v1/./admin/rollback", "/V1/ADMIN/rollback"]
)
def test_no_spelling_of_a_path_gets_around_the_admin_key(service: Service, root: Path, path: str) -> None:
    """A path is an admin route with the admin key, or no route at all."""
    app = create_app(service, Settings(index=root, read_key="r3ad", admin_key="adm1n"))
    response = ask(app, "POST", "http://kgtrace.test" + path, "r3ad")
    assert response.status_code in (403, 404)


def test_answers_are_data_to_browsers(client: Client) -> None:
    """No sniffing, no framing, no scripts: on answers, errors and probes alike."""
    for path in ("/v1/index", "/nowhere", "/livez", "/metrics", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_the_documentation_page_loads_nothing_from_elsewhere(client: Client) -> None:
    """Its scripts and styles come from this server, and its policy allows no others."""
    page = client.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for path in loaded:
        assert not path.startswith(("http", "//"))
        asset = client.get(f"/{path}")
        assert asset.status_code == 200
        assert asset.headers["Content-Type"].split(";")[0] == (
            "text/css" if path.endswith(".css") else "text/javascript"
        )
    assert "<script>" not in page.text
    assert client.get("/docs/nowhere.js").status_code == 404
    assert client.get("/docs/..%2f__init__.py").status_code == 404


def test_generations_are_switched_with_the_admin_key(service: Service, root: Path, assert_problem: Check) -> None:
    """Publishing and rolling back change what is live; what cannot be done is 409 and names no folder."""
    client = Client(create_app(service, Settings(index=root, admin_key="adm1n")))
    key = {"X-API-Key": "adm1n"}
    listed = client.get("/v1/generations").json()
    old, new = (g["id"] for g in listed["generations"])
    assert (listed["live"], listed["serving"]) == (new, service.generation)
    assert client.post("/v1/admin/rollback", headers=key).json()["live"] == old
    assert_problem(client.post("/v1/admin/rollback", headers=key), 409, "no generation before")
    assert client.post("/v1/admin/publish", {"generation": new}, headers=key).json()["live"] == new
    for wrong in ("nowhere", "../" + new, "/etc", "\x00"):
        body = assert_problem(client.post("/v1/admin/publish", {"generation": wrong}, headers=key), 409)
        assert str(root) not in body["detail"]
    assert_problem(client.post("/v1/admin/publish", {"generation": 7}, headers=key), 422, "generation")
    assert_problem(client.post("/v1/admin/publish", {}, headers=key), 422, "generation")


def test_what_cannot_be_read_is_listed_without_its_place(service: Service, root: Path) -> None:
    """The reason is told, the folder is not."""
    client = Client(create_app(service, Settings(index=root)))
    first = client.get("/v1/generations").json()["generations"][0]["id"]
    (root / "generations" / first / "manifest.json").write_text("{")
    broken = client.get("/v1/generations").json()["generations"][0]
    assert "manifest.json" in broken["problem"]
    assert str(root) not in broken["problem"]
    assert broken["counts"] is None


def test_a_service_without_an_index_root_has_nothing_to_switch(client: Client, assert_problem: Check) -> None:
    """409 says so."""
    assert_problem(client.get("/v1/generations"), 409, "without an index root")
