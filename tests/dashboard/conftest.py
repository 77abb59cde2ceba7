"""A real browser, and real servers for it to ask."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build
from kgtrace_server.http import serving
from kgtrace_server.http.app import create_app
from kgtrace_server.settings import Settings
from kgtrace_store import Vocabulary
from tests.server.waiting import PATIENCE, wait_until

from .chromium import NAMES, chromium_path, launched

ADMIN = {"Authorization": "Bearer adm1n"}

expect.set_options(timeout=PATIENCE * 1000)


@dataclass
class Site:
    """A service that runs, and how to ask it without a browser."""

    url: str
    app: FastAPI

    def get(self, path: str, **parameters: Any) -> Any:
        response = httpx.get(f"{self.url}/v1/{path}", params=parameters, headers=ADMIN, timeout=PATIENCE)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: Any = None) -> Any:
        response = httpx.post(f"{self.url}/v1/{path}", json=body, headers=ADMIN, timeout=PATIENCE)
        response.raise_for_status()
        return response.json()


@contextmanager
def running(source: Any, **options: Any) -> Iterator[Site]:
    """Serve a service, or what a loader loads, for as long as the block runs."""
    settings = Settings(**{"port": 0, "deadline": PATIENCE, "log_level": "error", "admin_key": "adm1n", **options})
    app = create_app(source, settings)
    server = serving.server(app, settings)
    with serving.listen(settings) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Site(serving.address(listening), app)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def following(root: Path) -> Iterator[Site]:
    """Follow an index root, as `kgtrace serve` does, from when it answers to the end of the block."""
    settings = Settings(index=root, device="cpu", threads=1)
    with running(serving.loader(settings), index=root) as site:
        wait_until(lambda: httpx.get(f"{site.url}/readyz", timeout=PATIENCE).status_code == 200)
        yield site


@pytest.fixture(scope="package")
def root(
    umls: tuple[ModelFile, Vocabulary, TripleTable], umls_index: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An index root with two generations of UMLS, the newer one live."""
    root = tmp_path_factory.mktemp("dashboard") / "index"
    shutil.copytree(umls_index, root)
    build(root, *umls, BuildConfig(dim=16, landmarks=512, seed=1))
    return root


@pytest.fixture(scope="package")
def site(root: Path) -> Iterator[Site]:
    """A service that follows the index root, as `kgtrace serve` runs it."""
    with following(root) as site:
        yield site


@pytest.fixture(scope="package")
def nightly(nights: Path) -> Iterator[Site]:
    """A service whose generations are of different models."""
    with following(nights) as site:
        yield site


@pytest.fixture(scope="package")
def triple(site: Site) -> dict[str, str]:
    """A triple that the model predicts, and that is not known, where other tails that it predicts are."""
    for known in site.get("self-influence", top_k=1000)["self_influences"]:
        asked = {field: known["triple"][field]["label"] for field in ("head", "relation")}
        tails = site.get("predictions", **asked)["predictions"]
        news = [found["entity"]["label"] for found in tails if not found["in_training"]]
        if 0 < len(news) < len(tails):
            return {**asked, "tail": news[0]}
    pytest.fail("the model's best tails are all known, or none is")


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The browser. Not for the session: as long as it runs, Playwright's event loop counts as running, too."""
    if chromium_path() is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and KGTRACE_CHROMIUM names none")
    with sync_playwright() as playwright, launched(playwright) as browser:
        yield browser


@pytest.fixture
def browse(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that may ask their own server and nobody else, run without an error, and obey their own policy."""
    contexts: list[BrowserContext] = []
    strangers: list[str] = []
    errors: list[str] = []

    def open_page(url: str, prepare: Callable[[Page], object] = lambda page: None, **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE * 1000)
        own = "/".join(url.split("/")[:3])
        context.on("request", lambda request: request.url.startswith((own, "blob:")) or strangers.append(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
        page = context.new_page()
        prepare(page)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert strangers == []
    assert errors == []
