"""The dashboard's main paths in Firefox as it is installed."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from .conftest import Site
from .firefox import NAMES, Firefox, firefox_path, launched
from .pages import address

pytestmark = pytest.mark.slow


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    """A tab in which no script may fail, and nothing break the page's policy."""
    if firefox_path() is None:
        pytest.skip(f"no Firefox: none of {', '.join(NAMES)} is installed, and KGTRACE_FIREFOX names none")
    with launched(tmp_path) as tab:
        yield tab
        assert tab.evaluate("globalThis.refused") == []
        assert tab.errors == []


def rows(firefox: Firefox, heading: str) -> int:
    """Return how many rows the tables below a heading have."""
    below = "[...document.querySelectorAll('section')].find((card) => card.querySelector('h2, h3').textContent === "
    found: int = firefox.evaluate(f"{below}'{heading}')?.querySelectorAll('tbody tr').length ?? 0")
    return found


def test_from_a_question_to_its_facts_graph_and_sets(firefox: Firefox, site: Site, triple: dict[str, str]) -> None:
    """With what the service answers, the graph as a picture, and what is predicted without a fact."""
    firefox.open(site.url + "/")
    firefox.click("input[role=combobox]")
    firefox.press(triple["head"], "Tab", triple["relation"], "Enter")
    firefox.until("document.activeElement.textContent === 'Best tails'")
    firefox.settle()
    assert rows(firefox, "Best tails") == 10
    firefox.click(f"section tbody a[href*='tail={triple['tail']}']")
    firefox.until("document.querySelector('.graph .scene')")
    firefox.settle()
    assert dict(parse_qsl(urlsplit(firefox.evaluate("location.href")).query)) == triple
    assert rows(firefox, "Speaks for it") == rows(firefox, "Speaks against it") == 10
    facts = site.post("explanations", {"triple": triple})["facts"]
    assert rows(firefox, "Necessary facts") == len(facts) > 0
    assert rows(firefox, "Influence summed by relation") > 0
    assert firefox.evaluate("document.querySelectorAll('.graph circle').length") > 2
    firefox.click("button[aria-label='PNG of The neighbourhood']")
    firefox.until("globalThis.made.some(({ type }) => type === 'image/png')")
    assert firefox.evaluate("globalThis.made.at(-1).size") > 10_000
    firefox.click(".influences input.tick")
    firefox.press("Enter")
    firefox.until("document.activeElement.textContent === 'Without the ticked facts'")
    assert rows(firefox, "Without the ticked facts") == 11  # the fact, and the best tails


@pytest.mark.parametrize("width", [1280, 360])
def test_every_view_is_shown_and_fits(firefox: Firefox, site: Site, triple: dict[str, str], width: int) -> None:
    """Nothing is wider than the window."""
    firefox.resize(width, 900)
    for view, heading in (
        ({"view": "self-influence"}, "Largest self-influence"),
        ({"view": "entity", "entity": triple["head"]}, "Predicted tails"),
        ({"view": "index"}, "Generations on disk"),
        ({**triple, "compare": "proponents", "sufficient": "1", "without": "0"}, "Sufficient facts"),
    ):
        firefox.open(address(site, **view))
        assert rows(firefox, heading) > 0, view
        assert firefox.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
