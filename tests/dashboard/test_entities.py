"""Pages of entities in a real browser: facts in and out, how many, and where else to read of them."""

from playwright.sync_api import expect

from kgtrace_server.service import Service
from kgtrace_store.vocabulary import Vocabulary
from tests.server.conftest import RELATIONS, FakeAttributor

from .conftest import Site, running
from .pages import Browse, address, card, settled

SIDES = {"head": "Facts out: it is the head", "tail": "Facts in: it is the tail"}


def test_an_entity_has_its_facts_and_their_number(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """As the API ranks them; from an explanation to the entity, on to a neighbour, and to a fact's explanation."""
    page = browse(address(site, **triple))
    page.get_by_role("heading", level=2).get_by_role("link", name=triple["head"]).click()
    expect(page.get_by_role("heading", level=2, name=triple["head"])).to_be_focused()
    answers = {side: site.get("self-influence", **{side: triple["head"]}, top_k=25) for side in SIDES}
    counts = [answer["count"] for answer in answers.values()]
    assert counts[0] > 0
    expect(page.locator(".facts dd")).to_have_text([str(sum(counts)), *map(str, counts)])
    for side, heading in SIDES.items():
        other = {"head": "tail", "tail": "head"}[side]
        found = answers[side]["self_influences"]
        rows = card(page, heading).locator("tbody tr")
        expect(rows.locator("th")).to_have_text([each["triple"]["relation"]["label"] for each in found])
        expect(rows.locator("td:nth-child(2)")).to_have_text([each["triple"][other]["label"] for each in found])
    if max(counts) > 25:
        page.get_by_role("link", name="Show 1,000 each").click()
        expect(card(page, SIDES["head"]).locator("tbody tr")).to_have_count(counts[0])
    neighbour = card(page, SIDES["head"]).locator("td a").first
    name = neighbour.inner_text()
    neighbour.click()
    expect(page.get_by_role("heading", level=2, name=name)).to_be_focused()
    card(page, SIDES["tail"]).locator("th a").first.click()
    expect(page.get_by_text("yes, a known fact")).to_be_visible()


def test_an_unknown_entity_is_suggested_its_neighbours(browse: Browse, site: Site) -> None:
    """As in the fields of a question."""
    page = browse(address(site, view="entity", entity="algae"))
    expect(page.locator(".problem")).to_contain_text("unknown entity 'algae'")
    page.get_by_role("link", name="alga", exact=True).click()
    settled(page)
    expect(page.get_by_role("heading", level=2, name="alga")).to_be_focused()


def test_entities_link_to_where_else_they_are_described(browse: Browse) -> None:
    """By the pattern of the settings, in which the label is quoted; a label that is an address is one without it."""
    fake = FakeAttributor()
    labels = ("Q1 & co/?", "https://example.org/Q2", "c", "d", "javascript:alert(1)", "e", "f")
    fake.vocabulary = Vocabulary(labels, RELATIONS, {}, {})
    for pattern, links in (
        (None, {labels[0]: None, labels[1]: labels[1], labels[4]: None}),
        (
            'https://x.example/wiki/{label}?"<',
            {
                labels[0]: 'https://x.example/wiki/Q1%20%26%20co%2F%3F?"<',
                labels[1]: labels[1],
                labels[4]: 'https://x.example/wiki/javascript%3Aalert(1)?"<',
            },
        ),
    ):
        with running(Service(fake), entity_url=pattern) as site:  # type: ignore[arg-type]
            page = browse(site.url)
            for label, link in links.items():
                page.goto(address(site, view="entity", entity=label))
                settled(page)
                outside = page.locator("main a[target=_blank]")
                if link is None:
                    expect(outside).to_have_count(0)
                else:
                    expect(outside).to_have_attribute("href", link)
