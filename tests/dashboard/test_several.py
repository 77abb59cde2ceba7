"""Several predictions at once in a real browser: pasted lines, a table, the way into one of them and back."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from kgtrace_store import Vocabulary
from tests.server.conftest import RELATIONS, FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, rows, settled

MOST = 50
LINES = "alga\tinteracts_with\thuman\n\nvirus causes 'fungus'\n\"tissue\"\tproduces\torganophosphorus_compound\r\n"
TRIPLES = [
    ("alga", "interacts_with", "human"),
    ("virus", "causes", "fungus"),
    ("tissue", "produces", "organophosphorus_compound"),
]


def explained(page: Page) -> Any:
    return card(page, "Explained at once").locator("tbody tr")


def explain(page: Page, text: str) -> None:
    page.get_by_label("Predictions").fill(text)
    page.get_by_role("button", name="Explain all").click()


def words(shown: Any) -> str:
    return re.sub(r"\s+", " ", shown.inner_text())


def test_a_table_of_what_the_api_says_of_each(browse: Browse, site: Site) -> None:
    """Tabs, blanks and both kinds of quotes; numbers, proof, best fact and reason; the address holds the lines."""
    page = browse(site.url + "/")
    page.get_by_role("link", name="Several", exact=True).click()
    explain(page, LINES)
    expect(page.get_by_role("heading", name="Explained at once")).to_be_focused()
    expected = site.post("influences", {"triples": TRIPLES, "top_k": 1})["results"]
    expect(explained(page)).to_have_count(len(expected))
    for row, result, place in zip(explained(page).all(), expected, (1, 3, 4), strict=True):
        number, score, rank, _, best = row.locator("td").all()
        [influence] = result["influences"]
        assert number.inner_text() == str(place)
        labels = " ".join(result["triple"][name]["label"] for name in ("head", "relation", "tail"))
        assert words(row.locator("th .triple")) == labels
        assert float(score.inner_text().replace("−", "-")) == pytest.approx(result["score"], rel=1e-3)
        assert rank.inner_text() == f"{result['rank']:g}"
        expect(row.locator(".certified")).to_have_text("✓ certified")
        labels = " ".join(influence["triple"][name]["label"] for name in ("head", "relation", "tail"))
        assert words(best.locator(".triple")) == labels
        assert words(best.locator(".row")) == f"{influence['reason']} {influence['because']}"
    shared = browse(page.url)
    expect(explained(shared)).to_have_text(explained(page).all_inner_texts(), use_inner_text=True)
    whole = json.loads(downloaded(page, page.get_by_role("button", name="JSON of Explained at once")))
    assert whole["results"] == expected
    lines = rows(downloaded(page, page.get_by_role("button", name="CSV of Explained at once")))
    assert [(line["head_label"], line["relation_label"], line["tail_label"]) for line in lines] == TRIPLES
    assert [float(line["score"]) for line in lines] == [result["score"] for result in expected]
    assert [int(line["train_index"]) for line in lines] == [
        result["influences"][0]["train_index"] for result in expected
    ]


def test_into_one_of_them_and_back(browse: Browse, site: Site) -> None:
    """A row leads to the whole explanation; the table is there again without a question."""
    page = browse(address(site, view="several", lines=LINES))
    explained(page).nth(1).get_by_role("link").click()
    expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
    expect(page).to_have_title("virus causes fungus – kgtrace")
    settled(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/influences" in request.url else None)
    page.go_back()
    expect(explained(page)).to_have_count(3)
    expect(page.get_by_role("heading", name="Explained at once")).to_be_focused()
    page.get_by_role("link", name="Explain", exact=True).click()
    page.get_by_role("link", name="Several", exact=True).click()
    expect(explained(page)).to_have_count(3)
    assert parse_qs(urlsplit(page.url).query)["lines"] == [LINES]
    assert asked == []


def test_a_line_that_is_wrong_leaves_the_others(browse: Browse, site: Site) -> None:
    """Each says what is wrong with it; a suggestion takes the place of the label, in that line alone."""
    wrong = ["algae isa plant", "alga\tis\tplant", "virus isa algae", "two fields", "alga\t\tplant", "a b c d"]
    page = browse(address(site, view="several", lines="\n".join([*wrong, LINES])))
    settled(page)
    shown = explained(page)
    expect(shown).to_have_count(len(wrong) + 3)
    expect(page.locator(".refused")).to_have_count(len(wrong))
    for i, message in enumerate(
        (
            "unknown entity 'algae'; nearest: 'alga'",
            "unknown relation 'is'",
            "unknown entity 'algae'; nearest: 'alga'",
            "has 2 fields",
            "A field of this line is empty",
            "has 4 fields",
        )
    ):
        expect(shown.nth(i)).to_contain_text(message)
    expect(page.get_by_role("status").filter(has_text="3 predictions explained, 6 not")).to_have_count(1)
    lines = rows(downloaded(page, page.get_by_role("button", name="CSV of Explained at once")))
    assert [line["line"] for line in lines] == ["1", "2", "3", "4", "5", "6", "7", "9", "10"]
    assert [bool(line["problem"]) for line in lines] == [True] * 6 + [False] * 3
    shown.nth(2).get_by_role("button", name="alga", exact=True).click()
    expect(page.locator(".refused")).to_have_count(len(wrong) - 1)
    expect(shown.nth(2).get_by_role("link")).to_contain_text("virus")
    assert "virus\tisa\talga" in page.get_by_label("Predictions").input_value()
    assert "algae\tisa\tplant" in page.get_by_label("Predictions").input_value()


def test_more_lines_than_are_explained_at_once(browse: Browse, site: Site) -> None:
    """Fifty are, blank lines beside; of more the page says how many there are, and keeps them."""
    page = browse(address(site, view="several"))
    line = "alga isa plant\n"
    explain(page, line * (MOST + 1))
    expect(page.locator(".problem")).to_contain_text("These are 51 predictions, and up to 50 are explained at once")
    expect(page.get_by_label("Predictions")).to_have_value(line * (MOST + 1))
    explain(page, line * MOST + "\n\n")
    expect(explained(page)).to_have_count(MOST)


def test_lines_too_long_for_an_address_stay_in_the_tab(browse: Browse, site: Site) -> None:
    """They survive the way into one of them and back, and a reload; another tab does not have them."""
    page = browse(address(site, view="several"))
    explain(page, "tissue produces organophosphorus_compound\n" * MOST)
    expect(page.get_by_text("too long for an address")).to_be_visible()
    assert "tissue" not in page.url
    explained(page).nth(7).get_by_role("link").click()
    expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
    page.go_back()
    expect(explained(page)).to_have_count(MOST)
    page.reload()
    expect(explained(page)).to_have_count(MOST)
    other = browse(page.url)
    settled(other)
    expect(other.get_by_label("Predictions")).to_have_value("")


HOSTILE = ("<img src=x onerror=alert(1)>", "a\tb", 'it\'s "quoted"', '"all quoted"', "知识 graph", "  blanks  ", "=1+1")


def test_any_label_can_be_pasted(browse: Browse) -> None:
    """Markup is text, and the quotes of CSV hold what would part a line."""
    fake = FakeAttributor()
    fake.vocabulary = Vocabulary(HOSTILE, RELATIONS, {}, {})
    with running(fake_service(fake)) as site:
        page = browse(address(site, view="several"))
        page.on("dialog", lambda dialog: pytest.fail(f"a label opened a dialog: {dialog.message}"))
        quoted = ['"{}"'.format(label.replace('"', '""')) for label in HOSTILE]
        explain(page, "\n".join(f"{label}\tlocated in\t{label}" for label in quoted))
        expect(explained(page)).to_have_count(len(HOSTILE))
        lines = rows(downloaded(page, page.get_by_role("button", name="CSV of Explained at once")))
        assert [line["head_label"] for line in lines] == list(HOSTILE)
        assert [line["tail_label"] for line in lines] == list(HOSTILE)
        assert page.locator("main img").count() == 0


def test_the_keyboard_is_enough(browse: Browse, site: Site) -> None:
    """From the field over the button to the table, and into a row."""
    page = browse(address(site, view="several"))
    settled(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to content
    page.keyboard.press("Tab")
    expect(page.get_by_label("Predictions")).to_be_focused()
    page.keyboard.type("alga isa plant")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Explained at once")).to_be_focused()
    for _ in range(4):  # JSON, CSV, the region that scrolls, the first row
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_title("alga isa plant – kgtrace")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(browse: Browse, site: Site, theme: str) -> None:
    """axe finds nothing to complain of, and nothing is wider than 360 pixels, in either theme."""
    page = browse(site.url + "/", color_scheme=theme, viewport={"width": 360, "height": 740})
    for lines in ("", LINES + "algae isa plant\nfields", "a b c\n" * (MOST + 1)):
        page.goto(address(site, view="several", lines=lines))
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, lines
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
