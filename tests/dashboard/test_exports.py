"""What is on screen as files, and on paper."""

import io
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
from playwright.sync_api import Page, expect

from tests.server.conftest import FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, settled

SVG = "{http://www.w3.org/2000/svg}"


def written(page: Page, name: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return Path(download.value.path()).read_bytes()


def test_the_graph_as_a_picture_stands_alone(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Whole although it is zoomed, with the colours of the page in each shape; the PNG has twice its pixels."""
    page = browse(address(site, **triple))
    settled(page)
    page.get_by_role("button", name="Zoom in").click()
    expect(page.locator(".graph .scene[transform]")).to_have_count(1)
    picture = ElementTree.fromstring(written(page, "SVG of The neighbourhood"))
    width, height = (int(picture.attrib[name]) for name in ("width", "height"))
    assert picture.attrib["viewBox"] == f"0 0 {width} {height}"
    assert all("transform" not in group.attrib for group in picture.findall(f"{SVG}g"))
    lines = [path for path in picture.iter(f"{SVG}path") if path.attrib.get("marker-end")]
    assert len(lines) == page.locator(".drawn .edge").count()
    colours = page.locator(".drawn .edge").evaluate_all("edges => edges.map((edge) => getComputedStyle(edge).stroke)")
    assert [line.attrib["stroke"] for line in lines] == colours
    names = page.locator(".drawn .node text").all_text_contents()
    assert set(names) <= {text.text for text in picture.iter(f"{SVG}text")}

    png = written(page, "PNG of The neighbourhood")
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (2 * width, 2 * height)


def test_bars_as_pictures(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """A line for each row that is shown, with its name, its bar and its number."""
    page = browse(address(site, **triple))
    settled(page)
    for heading in ("Speaks for it", "Influence summed by relation"):
        picture = ElementTree.fromstring(written(page, f"SVG of {heading}"))
        shown = card(page, heading).locator("tbody tr")
        numbers = [row.locator(".number").last.inner_text().split(" ±")[0] for row in shown.all()]
        texts = [text.text for text in picture.iter(f"{SVG}text")]
        assert texts[0] == f"{' '.join(triple.values())}: {heading.lower()}"
        assert texts[2::2] == numbers
        bars = picture.findall(f"{SVG}svg")
        assert len(bars) == len(numbers)
        assert all(bar.find(f"{SVG}rect").attrib["fill"].startswith("rgb") for bar in bars)  # type: ignore[union-attr]
    assert written(page, "PNG of Speaks for it").startswith(b"\x89PNG")


def test_the_answer_as_graphml(browse: Browse) -> None:
    """The service's own, asked for with the key of the tab; what it says to a wrong one is announced."""
    with running(fake_service(FakeAttributor()), read_key="r3ad") as site:
        page = browse(address(site, head="aspirin", relation="treats", tail="headache"))
        page.get_by_role("textbox", name="Key").fill("r3ad")
        page.keyboard.press("Enter")
        settled(page)
        text = downloaded(page, page.get_by_role("button", name="GraphML of Speaks against it"))
        graph = nx.read_graphml(io.BytesIO(text.encode()), force_multigraph=True)
        named = [values for _, _, values in graph.edges(data=True) if not values["prediction"]]
        assert [values["influence"] < 0 for values in named].count(True) == 10
        page.evaluate("sessionStorage.setItem('kgtrace-key', 'wrong')")
        page.get_by_role("button", name="GraphML of Speaks for it").click()
        expect(page.locator("#live")).to_contain_text("key")


def test_on_paper_there_are_the_answers_alone(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Light, whatever the theme, without fields, buttons and other views."""
    page = browse(address(site, **triple), color_scheme="dark")
    settled(page)
    dark = page.evaluate("getComputedStyle(document.body).color")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") != dark
    for kept in ("table.influences", ".graph", "h2"):
        expect(page.locator("main").locator(kept).last).to_be_visible()
    for field in page.locator("button, select, input, nav").all():
        expect(field).to_be_hidden()
