"""Necessary and sufficient facts in a real browser: by themselves, by button, and where there are none."""

import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Request, Route, expect

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build
from kgtrace_indexer.answers import NecessarySet, WhatIf
from kgtrace_server.http import serving
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store import Vocabulary
from tests.conftest import Shared
from tests.server.conftest import ENTITIES, RELATIONS, FakeAttributor
from tests.server.explainer import FakeExplainer
from tests.server.waiting import PATIENCE, wait_until

from .conftest import Site, running
from .pages import Browse, address, card, downloaded, rows, settled

PREDICTION = {"head": ENTITIES[0], "relation": RELATIONS[0], "tail": ENTITIES[1]}
SMALLEST = "Find the smallest set of facts that it cannot do without"
SUFFICIENT = "Find facts that would give this tail to other entities"
ROUTE = "**/v1/explanations"


class Steadfast(FakeExplainer):
    """Has no necessary set among the facts of the head, and was not tried by training."""

    def what_if(self, triple: np.ndarray, without: np.ndarray, **options: Any) -> WhatIf:
        return replace(super().what_if(triple, without, **options), interval=None, measured_on=None, rank_after=1.0)

    def necessary(self, triple: np.ndarray, *, candidates: str, **options: Any) -> NecessarySet:
        found = super().necessary(triple, **options)
        return replace(found, suffices=candidates == "both", margin=0.5 if candidates == "both" else -0.25)


@pytest.fixture
def steadfast() -> Service:
    fake = FakeAttributor()
    return Service(fake, Steadfast(fake.training))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def falling(site: Site) -> tuple[dict[str, str], dict[str, Any]]:
    """A prediction that has a necessary set, and the set."""
    for known in site.get("self-influence", top_k=1000)["self_influences"]:
        asked = {field: known["triple"][field]["label"] for field in ("head", "relation")}
        best = site.get("predictions", **asked, filtered=True, top_k=1)["predictions"][0]
        question = {**asked, "tail": best["entity"]["label"]}
        if best["rank"] == 1 and (found := explained(site, question))["suffices"]:
            return question, found
    pytest.fail("no prediction of the model has a necessary set")


def explained(site: Site, triple: dict[str, str], **options: Any) -> Any:
    return site.post("explanations", {"triple": triple, **options})


def sets(request: Request) -> bool:
    return request.url.endswith("/v1/explanations")


def test_the_smallest_set_comes_by_itself(
    browse: Browse, site: Site, falling: tuple[dict[str, str], dict[str, Any]]
) -> None:
    """In words, with its interval and what this was measured on; facts with their reasons; as files."""
    question, found = falling
    page = browse(address(site, **question))
    settled(page)
    shown = card(page, "Necessary facts")
    many = "this fact" if len(found["facts"]) == 1 else f"these {len(found['facts'])} facts"
    expect(shown).to_contain_text(
        f"Without {many} the model is predicted to rank it about {found['rank']['after']} instead of 1; "
        f"{found['rival']['label']} is then first."
    )
    low, high = (f"{found['score'][end]:#.3g}".replace("-", "−") for end in ("low", "high"))
    expect(shown).to_contain_text(f"is between {low} and {high}, calibrated on ConvE on UMLS.")
    expect(shown.locator(".certified")).to_be_visible()
    influences = {
        each["train_index"]: each
        for each in site.get("influences", **question, order="absolute", top_k=1000)["results"][0]["influences"]
    }
    lines = shown.locator("tbody tr")
    expect(lines).to_have_count(len(found["facts"]))
    for line, fact in zip(lines.all(), found["facts"], strict=True):
        expect(line).to_contain_text(f"row {fact['train_index']:,}")
        expect(line.locator(".row:has(.badge)")).to_contain_text(influences[fact["train_index"]]["because"])
        change = line.locator(".influence .number").inner_text().replace("−", "-")
        assert float(change) == pytest.approx(fact["change"], rel=1e-3)
    written = json.loads(downloaded(page, page.get_by_role("button", name="JSON of Necessary facts")))
    assert written == explained(site, question)
    table = rows(downloaded(page, page.get_by_role("button", name="CSV of Necessary facts")))
    assert [int(row["train_index"]) for row in table] == [fact["train_index"] for fact in found["facts"]]
    assert [float(row["change"]) for row in table] == [fact["change"] for fact in found["facts"]]
    assert [row["because"] for row in table] == [fact["because"] for fact in found["facts"]]


def test_where_no_set_is_enough_the_page_says_so(browse: Browse, steadfast: Service) -> None:
    """With the largest drop, that nothing is calibrated, and a button for the tail's facts, which the address keeps."""
    with running(steadfast) as site:
        page = browse(address(site, **PREDICTION))
        settled(page)
        shown = card(page, "Necessary facts")
        expect(shown).to_contain_text(
            "No set of up to 4 of the 20 facts of Aspirin® is predicted to take it from rank 1."
        )
        expect(shown).to_contain_text("The largest drop is without these 2 facts: fever comes within 0.250.")
        expect(shown).to_contain_text("The score is predicted to go from 7.50 to 5.50. Not calibrated")
        expect(shown.locator("tbody")).to_be_hidden()
        shown.get_by_text("The 2 facts and their reasons").click()
        expect(shown.locator("tbody tr")).to_have_count(2)
        shown.get_by_role("button", name="Search the facts of ibuprofen, too").click()
        expect(page.get_by_role("heading", name="Necessary facts")).to_be_focused()
        sentence = "Without these 2 facts the model is predicted to rank it 1, as before; fever is then first."
        expect(page.get_by_role("status").filter(has_text=sentence)).to_have_count(1)
        for again in (page, browse(page.url)):
            expect(card(again, "Necessary facts")).to_contain_text(sentence)
            expect(again.get_by_role("button", name="Search the facts of ibuprofen, too")).to_have_count(0)
        page.get_by_role("link", name="headache").first.click()
        expect(card(page, "Necessary facts")).to_contain_text("No set of up to 4")


def test_a_set_that_takes_long_is_found_on_demand(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """The page does not wait for what nobody asked for: it offers a button, and shows the rest."""
    held: list[Route] = []
    page = browse(address(site, **triple), lambda page: page.route(ROUTE, lambda route: held.append(route)))
    button = page.get_by_role("button", name=SMALLEST)
    expect(button).to_be_visible()
    assert len(held) == 1
    settled(page)
    page.unroute(ROUTE)
    with page.expect_request(sets):
        button.click()
    expect(page.get_by_role("heading", name="Necessary facts")).to_be_focused()
    found = explained(site, triple)
    expect(card(page, "Necessary facts").locator("tbody tr")).to_have_count(len(found["facts"]))
    expect(page.get_by_role("status").filter(has_text="The score is predicted to go from")).to_have_count(1)


def test_facts_that_suffice_for_others_by_button(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """By keyboard: each fact, and each entity with its ranks; the address keeps it, for this tail alone."""
    page = browse(address(site, **triple))
    settled(page)
    expect(page.get_by_role("heading", name="Sufficient facts")).to_have_count(0)
    page.get_by_role("button", name=SUFFICIENT).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sufficient facts")).to_be_focused()
    found = explained(site, triple, mode="sufficient")
    first = sum(entity["rank"]["after"] == 1 for entity in found["entities"])
    for again in (page, browse(page.url)):
        shown = card(again, "Sufficient facts")
        expect(shown).to_contain_text(f"{first} of {len(found['entities'])} other entities are predicted to have")
        expect(shown).to_contain_text("Not calibrated")
        expect(shown.locator("tbody tr")).to_have_count(len(found["facts"]))
        expect(shown.locator("details li")).to_have_text(
            [
                f"{entity['entity']['label']}: rank {entity['rank']['before']} → {entity['rank']['after']}"
                for entity in found["entities"]
            ]
        )
    card(page, "Best tails").locator("tbody tr:not(.chosen)").get_by_role("link").first.click()
    settled(page)
    expect(page.get_by_role("heading", name="Sufficient facts")).to_have_count(0)
    assert "sufficient" not in page.url


def test_what_is_not_ranked_first_is_told_so(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """In the service's words, without a box that looks like a failure."""
    asked = {field: triple[field] for field in ("head", "relation")}
    tails = site.get("predictions", **asked, filtered=True, top_k=5)["predictions"]
    assert tails[4]["rank"] == 5
    page = browse(address(site, **asked, tail=tails[4]["entity"]["label"]))
    settled(page)
    expect(card(page, "Necessary facts")).to_contain_text("None: the model ranks this tail 5, and a necessary set")
    expect(page.locator(".problem")).to_have_count(0)


def test_an_index_without_sets_says_so_in_the_place(
    browse: Browse, umls: tuple[ModelFile, Vocabulary, TripleTable], made_once: Shared, triple: dict[str, str]
) -> None:
    """Everything else is shown; what was asked for is refused in the service's words, which are announced."""
    config = BuildConfig(dim=8, landmarks=64, loss="bce")
    index = made_once("umls-bce", lambda root: build(root, *umls, config))
    settings = Settings(index=index, device="cpu", threads=1)
    with running(serving.loader(settings), index=index) as site:
        wait_until(lambda: httpx.get(f"{site.url}/readyz", timeout=PATIENCE).status_code == 200)
        page = browse(address(site, **triple, without="0"))
        words = "the preconditioned score of this index is of the loss bce"
        expect(card(page, "Necessary facts")).to_contain_text(f"None: {words}")
        expect(page.locator(".problem")).to_have_count(1)  # of the ticked fact, which the address asks for
        expect(page.locator(".problem")).to_contain_text(words)
        expect(page.get_by_role("status").filter(has_text=words)).to_have_count(1)
        for heading in ("Speaks for it", "Speaks against it", "Best tails"):
            expect(card(page, heading).locator("tbody tr")).not_to_have_count(0)
        page.get_by_role("button", name=SUFFICIENT).click()
        expect(page.locator(".problem")).to_have_count(2)
