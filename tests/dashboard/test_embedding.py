"""The dashboard in a frame of another page, and in browsers that keep nothing for it."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlencode

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from tests.server.conftest import FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, settled

QUESTION = {"head": "aspirin", "relation": "treats", "tail": "headache"}


class Parent(BaseHTTPRequestHandler):
    """Answers every request with a page that shows, in a frame, the address in its query."""

    def do_GET(self) -> None:
        page = f'<iframe width="900" height="700" src="{unquote(self.path.partition("?")[2])}"></iframe>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    """Where `Parent` answers: on this machine, since browsers refuse frames from here in pages from elsewhere."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Parent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def framed(page: Page, site: Site, parent: str) -> FrameLocator:
    """Show an explanation in a frame of another origin's page."""
    page.goto(f"{parent}/?{quote(site.url + '/?' + urlencode({**QUESTION, 'embed': '1'}))}")
    return page.frame_locator("iframe")


def refused(page: Page, site: Site, parent: str) -> None:
    """See the browser show an error of its own in the frame."""
    with page.expect_event("framenavigated", lambda frame: frame.url.startswith("chrome-error:")):
        framed(page, site, parent)


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    yield context.new_page()
    context.close()


def test_a_page_that_is_named_may_show_it_in_a_frame(page: Page, port: int) -> None:
    """The explanation alone, whose links stay in the frame; pages that are not named show nothing."""
    named = f"http://localhost:{port}"
    with running(fake_service(FakeAttributor()), frame_ancestors=(named,)) as site:
        frame = framed(page, site, named)
        expect(frame.get_by_role("heading", name="Speaks for it")).to_be_visible()
        for hidden in ("header", "form.ask"):
            expect(frame.locator(hidden)).to_be_hidden()
        expect(frame.get_by_role("heading", name="Best tails")).to_be_hidden()
        whole = frame.get_by_role("link", name="Open in kgtrace")
        expect(whole).to_have_attribute("href", re.compile("head=aspirin(?!.*embed)"))
        frame.get_by_role("link", name="Show 50 each").click()
        expect(frame.get_by_role("link", name="Show 10 each")).to_be_visible()
        assert "embed=1" in page.frames[1].url

        refused(page, site, f"http://127.0.0.1:{port}")
    with running(fake_service(FakeAttributor())) as site:
        refused(page, site, named)


def test_a_browser_that_keeps_nothing_can_read_nevertheless(browse: Browse) -> None:
    """As browsers do in frames when they block the storage of others; key, theme and marks last as long as the page."""
    refuse = "{ get() { throw new DOMException('denied', 'SecurityError'); } }"
    script = f"for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name, {refuse});"
    with running(fake_service(FakeAttributor()), read_key="r3ad") as site:
        page = browse(address(site, view="self-influence"), lambda page: page.add_init_script(script))
        page.get_by_role("textbox", name="Key").fill("r3ad")
        page.keyboard.press("Enter")
        settled(page)
        page.locator("tbody select").first.select_option(label="wrong")
        expect(page.get_by_role("button", name="Wrong as TSV (1)")).to_be_enabled()
