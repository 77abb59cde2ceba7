"""Two generations side by side in a real browser: which predictions changed, and what of one of them."""

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from kgtrace_server.client import LocalClient
from kgtrace_server.http import serving
from kgtrace_server.settings import Settings
from kgtrace_store import IndexRoot
from tests.server.conftest import FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, field, rows, settled

FIRST, DEEP = 10, 200
FATES = ("Came", "Went", "Moved", "Stayed in its place")
NEVER = "20200101T000000Z-ffffff"


class Nights:
    """A service with two generations, and each of them opened without it."""

    def __init__(self, site: Site, root: Path) -> None:
        self.site = site
        self.ids = [status.id for status in IndexRoot(root).generations()]
        self.clients = [LocalClient(root, generation=id_, device="cpu") for id_ in self.ids]

    def explained(self, triple: dict[str, str], **options: Any) -> list[Any]:
        """Return what each generation answers."""
        asked = [(triple["head"], triple["relation"], triple["tail"])]
        return [client.influences(asked, **options).results[0] for client in self.clients]

    def fates(self, triple: dict[str, str], **options: Any) -> dict[str, dict[str, tuple[str, str]]]:
        """Return the facts of each fate with what stands in both columns, read from whole lists of influences."""
        answers = self.explained(triple, top_k=1000, **options)
        places = [
            {labels(influence.triple): i for i, influence in reversed(list(enumerate(answer.influences, 1)))}
            for answer in answers
        ]
        fates: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in FATES}
        for fact in {fact for side in places for fact, place in side.items() if place <= FIRST}:
            old, new = (side.get(fact, 10**6) for side in places)
            came, went = old > FIRST, new > FIRST
            fate = FATES[0] if came else FATES[1] if went else FATES[2] if old != new else FATES[3]
            fates[fate][fact] = (self.shown(0, fact, old), self.shown(1, fact, new))
        return fates

    def shown(self, side: int, fact: str, place: int) -> str:
        if place <= DEEP:
            return str(place)
        known = self.clients[side].influences([tuple(fact.split(" "))], top_k=1).results[0].in_training
        return f"beyond {DEEP}" if known else "not in the data"


def labels(triple: Any) -> str:
    return f"{triple.head.label} {triple.relation.label} {triple.tail.label}"


@pytest.fixture(scope="module")
def both(nightly: Site, nights: Path) -> Nights:
    """Two generations of different models, the older one of fewer triples."""
    return Nights(nightly, nights)


@pytest.fixture(scope="module")
def changed(both: Nights) -> dict[str, str]:
    """A triple that facts of every fate speak for but the last, one of them new in the data."""
    for ranked in both.clients[1].self_influence(top_k=300).self_influences:
        triple = dict(zip(("head", "relation", "tail"), labels(ranked.triple).split(" "), strict=True))
        fates = both.fates(triple)
        if all(fates[name] for name in FATES[:3]) and "not in the data" in str(fates["Came"]):
            return triple
    pytest.fail("no triple changed so")


def facts(page: Page) -> dict[str, dict[str, tuple[str, str]]]:
    """Return the facts of each fate as the page shows them, in the form of `Nights.fates`."""
    found: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in FATES}
    for body in card(page, "Facts that changed").locator("tbody").all():
        head, *members = body.locator("tr").all()
        fate, many = re.fullmatch(r"(.*) \((\d+)\)", head.inner_text().strip()).groups()  # type: ignore[union-attr]
        for row in members:
            words = re.sub(r"\s+", " ", row.locator(".triple").inner_text())
            before, after = (cell.inner_text().split("\n")[0] for cell in row.locator("td").all())
            found[fate][words] = (before, after)
        assert len(found[fate]) == int(many)
    return found


def test_a_point_of_the_drift_leads_to_what_changed(browse: Browse, both: Nights) -> None:
    """Ranks in both generations and facts in common are each one's own, most changed first; a row leads on."""
    old, new = both.ids
    page = browse(address(both.site, view="index"))
    page.locator(".line").get_by_role("link", name=re.compile(f"^{new}.*as in {old}$")).click()
    expect(page.get_by_role("heading", name="What changed most")).to_be_focused()
    assert page.url == address(both.site, view="changes", **{"from": old, "to": new})
    shown = card(page, "What changed most").locator("tbody tr")
    expect(shown).to_have_count(20)
    commons = []
    for row in shown.all():
        words = re.sub(r"\s+", " ", row.locator(".triple").inner_text())
        answers = both.explained(dict(zip(("head", "relation", "tail"), words.split(" "), strict=True)))
        known, now = ({labels(influence.triple) for influence in answer.influences} for answer in answers)
        commons.append(len(known & now))
        expected = [f"{answers[0].rank:g} → {answers[1].rank:g}", f"{commons[-1]} of 10"]
        assert row.locator("td").all_inner_texts() == expected
    assert commons == sorted(commons)
    assert commons[0] < commons[-1]
    shown.first.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Facts that changed")).to_be_visible()
    expect(page.locator("#notice")).to_be_empty()
    page.go_back()
    expect(page.get_by_role("heading", name="What changed most")).to_be_visible()


def test_one_prediction_in_both(browse: Browse, both: Nights, changed: dict[str, str]) -> None:
    """Rank, score, and each fact's place in either list, for it and against it; and the same as a file."""
    page = browse(address(both.site, view="changes", **changed))
    settled(page)
    assert page.url == address(both.site, view="changes", **changed, **dict(zip(("from", "to"), both.ids, strict=True)))
    answers = both.explained(changed)
    numbers = [row.locator("td").all_inner_texts() for row in page.locator(".numbers tbody tr").all()]
    assert numbers[0] == both.ids
    assert numbers[1] == [f"{answer.rank:g}" for answer in answers]
    scores = [float(text.replace("−", "-")) for text in numbers[2]]
    assert scores == pytest.approx([answer.score for answer in answers], rel=1e-3)
    assert facts(page) == both.fates(changed)
    expect(card(page, "Facts that changed").locator(".certified")).to_be_visible()
    lines = rows(downloaded(page, page.get_by_role("button", name="CSV of Facts that changed")))
    expected = {name: len(members) for name, members in both.fates(changed).items()}
    fates = [line["fate"] for line in lines]
    assert {name: fates.count(name.split(" ")[0].lower()) for name in FATES} == expected
    page.get_by_role("link", name="against it", exact=True).click()
    settled(page)
    assert "order=opponents" in page.url
    assert facts(page) == both.fates(changed, order="opponents")
    page.get_by_role("link", name="Explain it in the live generation").click()
    expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
    page.get_by_role("link", name="What changed overnight").click()
    expect(page.get_by_role("heading", name="Facts that changed")).to_be_visible()


def test_the_other_way_round(browse: Browse, both: Nights, changed: dict[str, str]) -> None:
    """Generations are chosen in fields, by keyboard, too; what came has then gone."""
    old, new = both.ids
    page = browse(address(both.site, view="changes", **changed))
    settled(page)
    there = facts(page)
    before, after = page.get_by_label("Before"), page.get_by_label("After")
    expect(before).to_have_value(old)
    expect(after).to_have_value(new)
    before.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    field(page, "Tail").press("Enter")
    expect(page.locator("h2:focus")).to_contain_text(" ".join(changed.values())[:10])
    assert page.url == address(both.site, view="changes", **{"from": new, "to": old}, **changed)
    back = facts(page)
    assert set(back["Went"]) == set(there["Came"])
    assert {fact: places[::-1] for fact, places in back["Moved"].items()} == there["Moved"]


def test_generations_that_cannot_be_compared(browse: Browse, both: Nights, changed: dict[str, str]) -> None:
    """Of one that was pruned the service says which there are; an unknown label names the generation that lacks it."""
    page = browse(address(both.site, view="changes", **{"from": NEVER}, **changed))
    problem = page.locator(".problem")
    expect(problem).to_contain_text(f"has no generation '{NEVER}'; it has {', '.join(both.ids)}")
    expect(page.get_by_label("Before")).to_have_value(NEVER)
    page.goto(address(both.site, view="changes", **{**changed, "head": "algae"}))
    expect(problem).to_contain_text(f"Unknown entity, generation {both.ids[0]}")
    page.get_by_role("link", name="alga", exact=True).click()
    expect(page.get_by_role("heading", name="Facts that changed")).to_be_visible()


def test_a_point_leads_nowhere_when_the_other_is_gone(browse: Browse, both: Nights) -> None:
    """The share stays, in plot and table."""
    told = both.site.get("generations")
    told["generations"][1]["agreement"]["generation"] = NEVER
    page = browse(
        address(both.site, view="index"),
        lambda page: page.route("**/v1/generations", lambda route: route.fulfill(json=told)),
    )
    expect(page.locator(".line circle")).to_have_count(1)
    expect(page.locator("a[href*='view=changes']")).to_have_count(0)
    share = str(page.locator(".line .share").text_content())
    expect(card(page, "Generations on disk").locator("tbody tr").first).to_contain_text(share)


def test_there_is_nothing_to_compare(browse: Browse, umls_index: Path) -> None:
    """With one generation on disk, or none."""
    settings = Settings(index=umls_index, device="cpu", threads=1)
    with running(serving.loader(settings), index=umls_index) as site:
        page = browse(address(site, view="changes"))
        expect(page.get_by_text("One generation is on disk")).to_be_visible()
    with running(fake_service(FakeAttributor())) as site:
        page = browse(address(site, view="changes"))
        expect(page.locator(".problem")).to_contain_text("without an index root")


def test_two_scores_are_not_compared(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Where the generations answer by different scores, both are asked by TracIn."""
    page = browse(address(site, view="changes", **triple))
    expect(card(page, "Facts that changed").locator(".certificate")).to_contain_text("Both lists by TracIn")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(browse: Browse, both: Nights, changed: dict[str, str], theme: str) -> None:
    """axe finds nothing to complain of, nothing is wider than 360 pixels, and a point can be reached by keyboard."""
    page = browse(both.site.url + "/", color_scheme=theme, viewport={"width": 360, "height": 740})
    for view in ({}, changed, {**changed, "head": "algae"}):
        page.goto(address(both.site, view="changes", **view))
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    page.goto(address(both.site, view="index"))
    settled(page)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.line') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="What changed most")).to_be_focused()
