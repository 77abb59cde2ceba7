"""Pages of entities in a real browser: facts in and out, what is predicted of them, and where else to read of them."""

from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import expect

from kgtrace_server.service import Service
from kgtrace_store.vocabulary import Vocabulary
from tests.server.conftest import RELATIONS, FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, rows, settled

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
        lines = card(page, heading).locator("tbody tr")
        expect(lines.locator("th")).to_have_text([each["triple"]["relation"]["label"] for each in found])
        expect(lines.locator("td:nth-child(2)")).to_have_text([each["triple"][other]["label"] for each in found])
    if max(counts) > 25:
        page.get_by_role("link", name="Show 1,000 each").click()
        expect(card(page, SIDES["head"]).locator("tbody tr")).to_have_count(counts[0])
    neighbour = card(page, SIDES["head"]).locator("td a").first
    name = neighbour.inner_text()
    neighbour.click()
    expect(page.get_by_role("heading", level=2, name=name)).to_be_focused()
    card(page, SIDES["tail"]).locator("th a").first.click()
    expect(page.get_by_text("yes, a known fact")).to_be_visible()


def test_an_entity_has_its_predictions(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """The best new tails and heads of its relations, as the API has them; each leads to its explanation, as a file."""
    page = browse(address(site, view="entity", entity=triple["head"]))
    settled(page)
    for side, missing, heading in (("head", "tail", "Predicted tails"), ("tail", "head", "Predicted heads")):
        answer = site.get("predictions", **{side: triple["head"]}, top_k=3, filtered=True)
        found = answer["predictions"]
        relations = list(dict.fromkeys(each["triple"]["relation"]["label"] for each in found))
        assert 1 < len(relations) <= min(10, answer["relations"])
        shown = card(page, heading)
        expect(shown.locator("tr.group")).to_have_text(relations)
        lines = shown.locator("tbody tr:not(.group)")
        expect(lines.locator("th")).to_have_text([each["entity"]["label"] for each in found])
        expect(lines.locator("td:last-child")).to_have_text([f"{each['rank']:g}" for each in found])
        scores = [float(text.replace("−", "-")) for text in lines.locator("td:nth-child(2)").all_inner_texts()]
        assert scores == pytest.approx([each["score"] for each in found], rel=1e-3)
        expect(shown).to_contain_text(f"for {len(relations)} of {answer['relations']} relations that it is {side} of")
        table = rows(downloaded(page, page.get_by_role("button", name=f"CSV of {heading}")))
        assert [row[f"{missing}_label"] for row in table] == [each["entity"]["label"] for each in found]
    page.get_by_role("link", name="What the model predicts of it").press("Enter")
    expect(card(page, "Predicted tails")).to_be_in_viewport()
    last = found[-1]["triple"]
    link = card(page, "Predicted heads").locator("tbody th a").last
    link.focus()
    page.keyboard.press("Enter")
    settled(page)
    expect(page.get_by_text("no, a prediction")).to_be_visible()
    assert {field: last[field]["label"] for field in last} == dict(parse_qsl(urlsplit(page.url).query))


def test_what_a_model_cannot_predict_is_said_in_the_place(browse: Browse) -> None:
    """Some models have no heads, some entities no facts; everything else is shown."""
    with running(fake_service(FakeAttributor())) as site:
        page = browse(address(site, view="entity", entity="aspirin"))
        settled(page)
        expect(card(page, "Predicted heads")).to_contain_text("None: the model has no inverse relations")
        expect(card(page, "Predicted tails").locator("tbody tr.group")).to_have_count(3)
        expect(card(page, SIDES["head"]).locator("tbody tr")).to_have_count(4)
        page.goto(address(site, view="entity", entity="Zürich"))
        settled(page)
        expect(card(page, "Predicted tails")).to_contain_text("None.")
        expect(page.locator(".facts dd")).to_have_text(["0", "0", "0"])


def test_a_hub_says_how_many_of_its_facts_are_listed(browse: Browse, site: Site) -> None:
    """Twenty-five of each side at first, of most self-influence; all of them if there are no more than a thousand."""
    sizes = {
        entity["label"]: [site.get("self-influence", **{side: entity["label"]}, top_k=1)["count"] for side in SIDES]
        for entity in site.get("entities", limit=20)["entities"]
    }
    hub, counts = max(sizes.items(), key=lambda size: min(size[1]))
    assert min(counts) > 25
    page = browse(address(site, view="entity", entity=hub))
    for heading, size in zip(SIDES.values(), counts, strict=True):
        expect(card(page, heading).locator("tbody tr")).to_have_count(25)
        expect(card(page, heading)).to_contain_text(f"The 25 of largest self-influence, of {size}.")
    page.get_by_role("link", name="Show 1,000 each").click()
    for heading, size in zip(SIDES.values(), counts, strict=True):
        expect(card(page, heading).locator("tbody tr")).to_have_count(size)
        expect(card(page, heading)).not_to_contain_text("of largest self-influence")


def test_an_unknown_entity_is_suggested_its_neighbours(browse: Browse, site: Site) -> None:
    """As in the fields of a question."""
    page = browse(address(site, view="entity", entity="algae"))
    expect(page.locator(".problem")).to_contain_text("unknown entity 'algae'")
    settled(page)
    expect(page.locator("main .card")).to_have_count(0)
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
