"""The dashboard in a real browser, against a real service."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from kgtrace_server.schema import answers
from kgtrace_server.schema.answer import from_json
from kgtrace_server.service import Service
from kgtrace_store.vocabulary import Vocabulary
from tests.server.conftest import ENTITIES, RELATIONS, FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, field, rows, settled


def same(shown: str, value: object) -> bool:
    if value is None:
        return shown == ""
    if isinstance(value, bool):
        return shown == str(value).lower()
    return float(shown) == value if isinstance(value, int | float) else shown == value


def test_from_a_head_and_a_relation_to_the_reasons(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Fields complete what is typed; tails, reasons, graph and sums are those that the API answers."""
    head, relation, chosen = triple.values()
    page = browse(site.url + "/")
    for name, label in (("Head", head), ("Relation", relation)):
        field(page, name).fill(label[:-1])
        page.get_by_role("option", name=label, exact=True).click()
    page.get_by_role("button", name="Explain").click()
    predicted = site.get("predictions", head=head, relation=relation)["predictions"]
    tails = card(page, "Best tails").locator("tbody tr")
    expect(tails).to_have_count(len(predicted))
    for row, found in zip(tails.all(), predicted, strict=True):
        assert row.get_by_role("link").inner_text() == found["entity"]["label"]
        assert row.locator(".known").count() == found["in_training"]

    tails.get_by_role("link", name=chosen, exact=True).click()
    expect(page).to_have_title(f"{head} {relation} {chosen} – kgtrace")
    for heading, order in (("Speaks for it", "proponents"), ("Speaks against it", "opponents")):
        expect(card(page, heading).locator(".certified")).to_have_text("✓ certified")
        shown = card(page, heading).locator("tbody tr")
        expected = site.get("influences", **triple, order=order)["results"][0]["influences"]
        expect(shown).to_have_count(len(expected))
        for row, found in zip(shown.all(), expected, strict=True):
            words = re.sub(r"\s+", " ", row.locator(".triple").inner_text())
            assert words == " ".join(found["triple"][field]["label"] for field in ("head", "relation", "tail"))
            assert f"row {found['train_index']:,}" in row.inner_text()
            number = row.locator(".influence .number").inner_text().replace("−", "-").replace(",", "")
            assert float(number) == pytest.approx(found["influence"], rel=1e-3)
    graph = page.get_by_role("img", name=f"Graph of {head} {relation} {chosen}")
    expect(graph.locator(".edge.prediction")).to_have_count(1)
    expect(graph.locator(".edge:not(.prediction, .step)")).to_have_count(14)
    expect(page.locator("details li")).to_have_count(14)

    summed = site.get("aggregate", **triple, by="relation", order="absolute")["groups"]
    expect(card(page, "Influence summed by relation").locator("tbody th .named")).to_have_text(
        [group["group"]["label"] for group in summed]
    )
    page.get_by_role("link", name="by tail").click()
    expect(card(page, "Influence summed by tail").locator("tbody tr")).to_have_count(10)
    expect(page.get_by_role("heading", name="Influence summed by tail")).to_be_focused()

    page.go_back()
    expect(card(page, "Influence summed by relation")).to_be_visible()
    page.go_back()
    expect(page.get_by_text("Choose a tail")).to_be_visible()
    page.go_forward()
    expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
    shared = browse(page.url)
    expect(field(shared, "Head")).to_have_value(head)
    expect(shared.get_by_role("heading", name="Speaks against it")).to_be_visible()


def test_every_table_can_be_had_as_json_and_csv(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """The link is the call behind the table; the file has the command line's columns and the API's numbers."""
    page = browse(site.url + "/")
    read: dict[str, Any] = {
        "predictions": lambda text: from_json(answers.Predictions, text).rows(),
        "influences": lambda text: from_json(answers.Influences, text).rows([0]),
        "aggregate": lambda text: from_json(answers.Aggregate, text).rows(),
        "self-influence": lambda text: from_json(answers.SelfInfluences, text).rows(),
    }
    seen = set()
    for view in (triple, {"view": "self-influence", "relation": triple["relation"]}):
        page.goto(address(site, **view))
        settled(page)
        for links in page.locator(".downloads:has(a)").all():
            call = urlsplit(str(links.get_by_role("link").get_attribute("href")))
            route = call.path.removeprefix("v1/")
            answer = site.get(route, **{name: value[0] for name, value in parse_qs(call.query).items()})
            expected = list(read[route](json.dumps(answer).encode()))
            got = rows(downloaded(page, links.get_by_role("button", name="CSV of")))
            assert len(got) == len(expected) > 0
            for line, row in zip(got, expected, strict=True):
                assert list(line) == list(row)
                assert all(same(line[column], value) for column, value in row.items())
            seen.add((route, parse_qs(call.query).get("order", [""])[0]))
    assert {route for route, _ in seen} == set(read)
    assert {("influences", "proponents"), ("influences", "opponents")} <= seen


def test_the_keyboard_is_enough(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Arrow keys choose, Escape closes, Enter asks; the focus goes to what has changed."""
    page = browse(site.url + "/")
    settled(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    head = field(page, "Head")
    expect(head).to_be_focused()
    page.keyboard.type(triple["head"])
    expect(head).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(head).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("ArrowDown")
    expect(head).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    active = head.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(head).to_have_value(triple["head"])
    page.keyboard.press("Tab")
    page.keyboard.type(triple["relation"])  # whole, and not chosen from the list
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Best tails")).to_be_focused()
    first = card(page, "Best tails").locator("tbody").get_by_role("link").first
    for _ in range(3):  # JSON, CSV, the first tail
        page.keyboard.press("Tab")
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h2:focus")).to_contain_text(" ".join((triple["head"], triple["relation"])))
    expect(page.get_by_role("status").filter(has_text="training triples for it")).to_have_count(1)


def test_suspicious_triples_lead_to_their_reasons(browse: Browse, site: Site) -> None:
    """They are ranked as the API ranks them, of one relation where asked; each row leads to its explanation."""
    page = browse(address(site, view="self-influence"))
    expect(page.locator("tbody tr")).to_have_count(25)
    field(page, "Relation").fill("isa")
    field(page, "Relation").press("Enter")
    expected = site.get("self-influence", relation="isa", top_k=25)["self_influences"]
    lines = [re.compile(rf"^row {found['train_index']:,}, TracIn \d") for found in expected]
    expect(page.locator("tbody .row")).to_have_text(lines)
    page.locator("tbody").get_by_role("link").first.click()
    expect(page.get_by_text("yes, a known fact")).to_be_visible()
    expect(field(page, "Tail")).to_have_value(expected[0]["triple"]["tail"]["label"])


def test_the_index_tells_its_age_and_its_drift(browse: Browse, site: Site) -> None:
    """Facts, a point for each night that can be compared, and all generations, the newest first."""
    page = browse(address(site, view="index"))
    told = site.get("generations")
    assert len(told["generations"]) == 2
    expect(card(page, "Generations on disk").locator("tbody code")).to_have_text(
        [generation["id"] for generation in reversed(told["generations"])]
    )
    agreement = told["generations"][1]["agreement"]["overlap"]
    expect(page.locator(".line circle")).to_have_count(1)
    expect(page.locator(".line .share")).to_have_text(f"{round(agreement * 100)} %")
    facts = card(page, "What is served")
    expect(facts).to_contain_text(told["serving"])
    expect(facts).to_contain_text(re.compile(r"built.*ago", re.I))
    expect(facts).to_contain_text("5,216")
    expect(page.locator("#served")).to_contain_text("ConvE, 5,216 triples, built")


def test_what_is_not_proved_says_so(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """An answer that was cut short shows how far it may be off, and offers the exact one."""
    searched = re.compile(r"/v1/influences\?(?!.*exact)")

    def cut_short(page: Page) -> None:
        page.route(searched, lambda route: route.continue_(url=route.request.url + "&max_candidates=0"))

    page = browse(address(site, **triple), cut_short)
    expect(card(page, "Speaks for it").locator(".uncertified")).to_have_text("≈ not certified")
    expect(card(page, "Speaks for it").locator(".certificate")).to_contain_text("more influence than the last")
    card(page, "Speaks for it").get_by_role("link", name="Compute exactly").click()
    expect(card(page, "Speaks for it").locator(".certified")).to_be_visible()
    assert "exact=true" in page.url


def test_notes_are_shown(browse: Browse) -> None:
    """Remarks on the answer stand beside the facts of the prediction, as text."""
    fake = FakeAttributor()
    fake.notes = ["entity '<b>x</b>' occurs in no training triple", "second"]
    with running(fake_service(fake)) as site:
        page = browse(address(site, head=ENTITIES[0], relation=RELATIONS[0], tail=ENTITIES[1]))
        for note in fake.notes:
            expect(page.get_by_text(f"Note: {note}.", exact=True)).to_be_visible()


def test_the_other_score_is_one_click_away(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Tables and sums are then of it, and there is a way back."""
    page = browse(address(site, **triple))
    preconditioned = card(page, "Speaks for it").get_by_role("columnheader", name="Preconditioned")
    expect(preconditioned).to_be_visible()
    with page.expect_request(lambda request: "aggregate" in request.url and "score=tracin" in request.url):
        page.get_by_role("link", name="Plain influence (TracIn)").click()
    expect(card(page, "Speaks for it").get_by_role("columnheader", name="Influence")).to_be_visible()
    expect(card(page, "Speaks for it").locator(".certified")).to_be_visible()
    page.get_by_role("link", name="Preconditioned score").click()
    expect(preconditioned).to_be_visible()


def test_another_generation_is_told_of(browse: Browse, site: Site) -> None:
    """When another one is published under an open page, the page says so and offers to be drawn anew."""
    page = browse(address(site, view="self-influence"))
    settled(page)
    new = site.get("index")["generation"]
    old = site.post("admin/rollback")["serving"]
    try:
        field(page, "Relation").fill("isa")
        expect(page.get_by_text("Another generation of the index answers now")).to_contain_text(old)
        page.get_by_role("button", name="Reload the view").click()
        expect(page.locator("#notice")).to_be_empty()
        expect(page.locator("#served")).to_have_attribute("title", f"generation {old}")
    finally:
        assert site.post("admin/publish", {"generation": new})["serving"] == new


def test_an_unknown_entity_is_suggested_its_neighbours(browse: Browse, site: Site) -> None:
    """What is nearest can be clicked; what the API says is shown word for word."""
    page = browse(address(site, head="algae", relation="isa", tail="human"))
    expect(page.locator(".problem")).to_have_count(1)
    expect(page.locator(".problem")).to_contain_text("unknown entity 'algae'; nearest: 'alga'")
    page.get_by_role("link", name="alga", exact=True).click()
    expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
    assert parse_qs(urlsplit(page.url).query)["head"] == ["alga"]


@pytest.fixture
def small() -> Service:
    return fake_service(FakeAttributor())


def test_a_service_that_is_gone_and_comes_back(browse: Browse, small: Service) -> None:
    """The page says that nobody answers, and goes on where it was once somebody does."""
    with running(small) as site:
        page = browse(address(site, head="aspirin", relation="treats"))
        expect(page.get_by_text("Choose a tail")).to_be_visible()
    field(page, "Tail").fill("headache")
    expect(page.get_by_role("option")).to_contain_text("The service does not answer")
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_contain_text("The service does not answer")
    with running(small, port=urlsplit(site.url).port):
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()


def test_a_view_that_cannot_be_loaded_says_so(browse: Browse, small: Service) -> None:
    """With a button that loads the page again."""
    with running(small) as site:
        page = browse(address(site), lambda page: page.route("**/views/ranking.js", lambda route: route.abort()))
        page.get_by_role("link", name="Suspicious triples").click()
        expect(page.get_by_text("The service sends no pages")).to_be_visible()
        page.unroute("**/views/ranking.js")
        page.get_by_role("button", name="Reload the page").click()
        expect(page.get_by_role("table")).to_be_visible()


def test_a_busy_service_can_be_asked_again(browse: Browse, small: Service) -> None:
    """429 shows what the problem document says, and a button."""

    def busy(route: Route) -> None:
        problem = '{"type": "about:blank", "title": "Queue full", "status": 429, "detail": "64 requests wait already"}'
        route.fulfill(status=429, headers={"Retry-After": "1"}, content_type="application/problem+json", body=problem)

    with running(small) as site:
        asked = address(site, head="aspirin", relation="treats")
        page = browse(asked, lambda page: page.route("**/v1/predictions?*", busy))
        expect(page.locator(".problem")).to_contain_text("64 requests wait already")
        page.unroute("**/v1/predictions?*")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("link", name="headache")).to_be_visible()


def test_before_the_first_generation(browse: Browse, tmp_path: Path) -> None:
    """503 says what is missing, on every view."""
    with running(lambda _: pytest.fail("there is nothing to load"), index=tmp_path) as site:
        page = browse(address(site, view="self-influence"))
        expect(page.locator(".problem")).to_contain_text("nothing has been published")
        page.goto(site.url + "/")
        expect(page.locator(".problem")).to_contain_text("nothing has been published")


def test_the_key_is_asked_for_and_kept_to_the_tab(browse: Browse, small: Service) -> None:
    """Without it a dialog asks; a wrong one is refused; the right one works, also for files, and is in no address."""
    with running(small, read_key="r3ad") as site:
        page = browse(address(site, view="self-influence"))
        dialog = page.get_by_role("dialog", name="This service asks for a key")
        expect(dialog).to_be_visible()
        assert not page.locator("tbody").count()
        page.get_by_role("textbox", name="Key").fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("textbox", name="Key")).to_have_value("")
        expect(dialog).to_be_visible()
        page.get_by_role("textbox", name="Key").fill("r3ad")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("tbody tr")).to_have_count(20)
        assert '"self_influences"' in downloaded(page, page.get_by_role("link", name="JSON of"))
        page.reload()
        expect(page.locator("tbody tr")).to_have_count(20)
        assert "r3ad" not in page.url
        assert page.evaluate("JSON.stringify(localStorage) + document.cookie").count("r3ad") == 0


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "a/b?c=d&head=7#x",
    "it's \"quoted\", 100%; 'twice'",
    "知识 graph ​ Zürich ‮RTL",
    "javascript:alert(1)",
    "  two  spaces ",
    "=1+1",
)


def test_labels_are_text_whatever_they_hold(browse: Browse) -> None:
    """Markup is shown and not obeyed; any label survives field, address and file."""
    fake = FakeAttributor()
    names = dict(enumerate(f"{label}<b>name</b>" for label in HOSTILE[:2]))
    fake.vocabulary = Vocabulary(HOSTILE, ("<script>alert(1)</script>", *RELATIONS[1:]), names, {})
    assert len(HOSTILE) == len(ENTITIES)
    with running(fake_service(fake)) as site:
        page = browse(site.url + "/")
        page.on("dialog", lambda dialog: pytest.fail(f"a label opened a dialog: {dialog.message}"))
        field(page, "Head").fill("<IMG")
        page.get_by_role("option").first.click()
        field(page, "Relation").fill("<script>")
        page.get_by_role("option").first.click()
        page.get_by_role("button", name="Explain").click()
        for label in HOSTILE:
            link = card(page, "Best tails").get_by_role("link").filter(has_text=label.strip()).first
            link.click()
            expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
            settled(page)
            assert parse_qs(urlsplit(page.url).query)["tail"] == [label]
        text = downloaded(page, page.get_by_role("button", name="CSV of Best tails"))
        assert {row["tail_label"] for row in rows(text)} == set(HOSTILE)
        assert page.locator("main img, main b, main script").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_is_accessible_and_fits_a_phone(
    browse: Browse, site: Site, triple: dict[str, str], theme: str
) -> None:
    """axe finds nothing to complain of, and nothing is wider than 360 pixels, in either theme."""
    page = browse(site.url + "/", color_scheme=theme, viewport={"width": 360, "height": 740})
    views = [
        {},
        {**triple, "group": "reason", "compare": "opponents"},
        {"view": "self-influence"},
        {"view": "index"},
        {"view": "entity", "entity": triple["head"]},
        {**triple, "embed": "1"},
        {**triple, "necessary": "both", "sufficient": "1", "without": "0,1", "compare": "proponents"},
        {**triple, "without": "no-number"},
        {**triple, "head": "algae"},
    ]
    for view in views:
        page.goto(address(site, **view))
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == theme
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(address(site, **triple))
    settled(page)
    field(page, "Head").fill("a")
    expect(page.get_by_role("option")).not_to_have_count(0)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_theme_can_be_chosen(browse: Browse, small: Service) -> None:
    """It begins as the system has it, and stays as chosen."""
    with running(small) as site:
        page = browse(site.url + "/", color_scheme="dark")
        page.get_by_role("button", name="Use the light theme").click()
        page.reload()
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
        expect(page.get_by_role("button", name="Use the dark theme")).to_be_visible()
