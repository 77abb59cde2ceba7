"""Facts that are ticked, and what the model is predicted to say without them, in a real browser."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from kgtrace_indexer.answers import WhatIf
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest
from tests.server.conftest import ENTITIES, RELATIONS, FakeAttributor, fake_service
from tests.server.explainer import FakeExplainer

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, rows, settled

PREDICTION = {"head": ENTITIES[0], "relation": RELATIONS[0], "tail": ENTITIES[1]}
HEADING = "Without the ticked facts"
ASK = "Without the ticked"


def ticked(page: Page) -> list[str]:
    """Return what the address holds."""
    return parse_qs(urlsplit(page.url).query).get("without", [""])[0].split(",")


def boxes(page: Page, train_index: int) -> Any:
    return page.locator(f"input.tick[value='{train_index}']")


def without(site: Site, triple: dict[str, str], *train_index: int) -> Any:
    return site.post("what-if", {"triple": triple, "without": train_index})


def test_facts_are_ticked_and_left_out_by_keyboard(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Space ticks, Enter asks; what is predicted is announced and has the focus; the address shows it again."""
    influences = site.get("influences", **triple)["results"][0]["influences"]
    chosen = [influences[i]["train_index"] for i in (0, 2)]
    page = browse(address(site, **triple))
    settled(page)
    expect(page.get_by_role("button", name=ASK, exact=True)).to_be_hidden()
    first, _, third = card(page, "Speaks for it").locator("input.tick").all()[:3]
    first.focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("status").filter(has_text="1 ticked")).to_have_count(1)
    for _ in range(4):  # its link, the next box and link, the box after
        page.keyboard.press("Tab")
    expect(third).to_be_focused()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=HEADING)).to_be_focused()
    found = without(site, triple, *chosen)
    ranks = found["rank"]
    place = (
        f"{ranks['after']}, as before" if ranks["after"] == ranks["before"] else f"about {ranks['after']} instead of"
    )
    sentence = f"Without these 2 ticked facts the model is predicted to rank it {place}"
    expect(page.get_by_role("status").filter(has_text=sentence)).to_have_count(1)
    assert sorted(ticked(page)) == sorted(map(str, chosen))
    low, high = (f"{found['score'][end]:#.3g}".replace("-", "−") for end in ("low", "high"))
    for again in (page, browse(page.url)):
        settled(again)
        shown = card(again, HEADING)
        expect(shown).to_contain_text(sentence)
        expect(shown).to_contain_text(f"is between {low} and {high}, calibrated on ConvE on UMLS.")
        expect(shown.locator("table").first.locator("tbody tr")).to_have_count(2)
        for row in chosen:
            expect(boxes(again, row).first).to_be_checked()
    table = rows(downloaded(page, page.get_by_role("button", name=f"CSV of {HEADING}")))
    assert {int(row["train_index"]): float(row["change"]) for row in table} == {
        fact["train_index"]: fact["change"] for fact in found["facts"]
    }
    assert json.loads(downloaded(page, page.get_by_role("button", name=f"JSON of {HEADING}"))) == found


def test_new_best_tails_stand_beside_the_old(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """Each with its score, and those that moved with the place that they have now; they lead to their explanations."""
    asked = {field: triple[field] for field in ("head", "relation")}
    old = [tail["entity"]["label"] for tail in site.get("predictions", **asked, filtered=True)["predictions"]]
    influences = site.get("influences", **triple, top_k=4)["results"][0]["influences"]
    chosen = [influence["train_index"] for influence in influences]
    new = [tail["entity"]["label"] for tail in without(site, triple, *chosen)["completions"]]
    assert old != new
    page = browse(address(site, **triple, without=",".join(map(str, chosen))))
    settled(page)
    table = card(page, HEADING).locator("table").last
    for column, tails in ((2, old), (3, new)):
        expect(table.locator(f"tbody td:nth-child({column}) .named")).to_have_text(tails)
    for i, label in enumerate(new):
        place = old.index(label) + 1 if label in old else "beyond 10"
        note = table.locator(f"tbody tr:nth-child({i + 1}) td:nth-child(3) small")
        if place == i + 1:
            expect(note).not_to_contain_text("now")
        else:
            expect(note).to_contain_text(f", now {place}")
    table.get_by_role("link").first.click()
    settled(page)
    assert sorted(ticked(page)) == sorted(map(str, chosen))  # of the other tail, too
    expect(page.get_by_role("heading", name=HEADING)).to_be_visible()


def test_a_known_fact_stands_among_the_old_best(browse: Browse, site: Site) -> None:
    """Other known facts are no rivals of it; it is one of the tails that are compared."""
    known = site.get("self-influence", order="ascending", relation="isa", top_k=1)["self_influences"][0]
    triple = {field: known["triple"][field]["label"] for field in ("head", "relation", "tail")}
    row = known["train_index"]
    page = browse(address(site, **triple, without=str(row)))
    settled(page)
    rank = without(site, triple, row)["rank"]["before"]
    assert rank <= 10
    now = card(page, HEADING).locator("table").last.locator("td:nth-child(2) .named")
    expect(now.nth(rank - 1)).to_have_text(triple["tail"])
    expect(card(page, HEADING)).to_contain_text("is the prediction, which is a training triple")


@pytest.fixture
def fake() -> Service:
    return fake_service(FakeAttributor())


def test_ticks_of_one_fact_go_together_and_can_be_taken_back(browse: Browse, fake: Service) -> None:
    """Wherever it is listed; an answer about other facts than are ticked says so, and goes with the last tick."""
    with running(fake) as site:
        page = browse(address(site, **PREDICTION, without="102"))
        settled(page)
        stale = page.get_by_text("Other facts are ticked now")
        expect(stale).to_be_hidden()
        expect(card(page, HEADING)).to_contain_text(
            "Without this ticked fact the model is predicted to rank it about 2.5"
        )
        listed = boxes(page, 100)  # in the necessary set, and among those that speak for the prediction
        expect(listed).to_have_count(2)
        listed.first.check()
        expect(listed.last).to_be_checked()
        expect(stale).to_be_visible()
        assert ticked(page) == ["100", "102"]
        page.get_by_role("link", name="Show 50 each").click()
        settled(page)
        assert ticked(page) == ["100", "102"]
        expect(boxes(page, 100).last).to_be_checked()
        page.get_by_role("button", name=ASK, exact=True).click()
        expect(page.get_by_role("heading", name=HEADING)).to_be_focused()
        expect(stale).to_be_hidden()
        listed.last.uncheck()
        expect(listed.first).not_to_be_checked()
        page.get_by_role("button", name="Untick all").click()
        expect(page.locator("h2:focus")).to_contain_text("treats")
        expect(page.locator("input.tick:checked")).to_have_count(0)
        expect(page.get_by_role("heading", name=HEADING)).to_have_count(0)
        expect(page).not_to_have_url(re.compile("without"))
        page.go_back()
        settled(page)
        expect(page.locator("input.tick:checked")).not_to_have_count(0)


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ("9", "train_index 9 is of no indexed training triple"),
        ("no-number", "without[0]"),
        ("9007199254740993", "without[0]"),
        ("-1", "without[0]"),
    ],
)
def test_a_wrong_address_is_told_in_the_place(browse: Browse, fake: Service, without: str, words: str) -> None:
    """The rest is shown, and the ticks can be taken back."""
    with running(fake) as site:
        page = browse(address(site, **PREDICTION, without=without))
        expect(page.locator(".problem")).to_contain_text(words)
        expect(page.get_by_role("heading", name="Speaks for it")).to_be_visible()
        page.get_by_role("button", name="Untick all").click()
        expect(page.locator(".problem")).to_have_count(0)


class OfCheckpoints(FakeExplainer):
    """Refuses, as `SetExplainer` does where influences are sums over checkpoints."""

    def what_if(self, *_: object, **__: object) -> WhatIf:
        raise BadRequest("this index sums influences over checkpoints")


def test_a_refused_question_can_be_put_again(browse: Browse) -> None:
    """What the service says is shown in the place; a busy service can be asked again by the same button."""
    attributor = FakeAttributor()
    attempts = []

    def busy(route: Route) -> None:
        attempts.append(route)
        problem = '{"type": "about:blank", "title": "Queue full", "status": 429, "detail": "64 requests wait already"}'
        route.fulfill(status=429, headers={"Retry-After": "1"}, content_type="application/problem+json", body=problem)

    refusing = Service(attributor, OfCheckpoints(attributor.training))  # type: ignore[arg-type]
    with running(refusing) as site:
        page = browse(address(site, **PREDICTION), lambda page: page.route("**/v1/what-if", busy))
        settled(page)
        expect(card(page, "Necessary facts")).to_contain_text("None: this index sums influences over checkpoints.")
        boxes(page, 100).first.check()
        ask = page.get_by_role("button", name=ASK, exact=True)
        for count in (1, 2):
            ask.click()
            expect(page.locator(".problem")).to_contain_text("64 requests wait already")
            settled(page)
            assert len(attempts) == count
        page.unroute("**/v1/what-if")
        ask.click()
        expect(page.locator(".problem")).to_contain_text("this index sums influences over checkpoints")
        expect(page.get_by_role("status").filter(has_text="sums influences")).to_have_count(1)
