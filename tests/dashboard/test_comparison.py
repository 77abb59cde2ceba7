"""Both scores side by side in a real browser: each training triple with its place by the other score."""

import re

from playwright.sync_api import expect

from .conftest import Site
from .pages import Browse, address, card, settled

HEADINGS = {"preconditioned": "By the preconditioned score", "tracin": "By TracIn"}


def test_each_list_says_the_places_in_the_other(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """On demand, as the API ranks them by either score; the other side, and away again, by links."""
    page = browse(address(site, **triple))
    settled(page)
    expect(page.get_by_role("heading", name="Both scores")).to_have_count(0)
    page.get_by_role("link", name="Compare both scores").click()
    expect(page.get_by_role("heading", name="Both scores")).to_be_focused()
    for link, order in (("for it", "proponents"), ("against it", "opponents")):
        page.get_by_role("link", name=link, exact=True).click()
        settled(page)
        assert f"compare={order}" in page.url
        ranked = {
            score: [
                found["train_index"]
                for found in site.get("influences", **triple, order=order, score=score, top_k=200)["results"][0][
                    "influences"
                ]
            ]
            for score in HEADINGS
        }
        shown = len(set(ranked["tracin"][:10]) & set(ranked["preconditioned"][:10]))
        expect(card(page, "Both scores")).to_contain_text(f"{shown} training triples are among the first 10")
        for (score, heading), other in zip(HEADINGS.items(), ("tracin", "preconditioned"), strict=True):
            expected = [
                str(ranked[other].index(row) + 1) if row in ranked[other] else "> 200" for row in ranked[score][:10]
            ]
            expect(card(page, heading).locator("tbody td:last-child")).to_have_text(expected)
            expect(card(page, heading).locator(".certified")).to_be_visible()
    page.get_by_role("link", name="by tail").click()
    expect(page.get_by_role("heading", name="Influence summed by tail")).to_be_focused()
    expect(page.get_by_role("heading", name="Both scores")).to_be_visible()
    page.get_by_role("link", name="Close").click()
    expect(page.get_by_role("heading", name="Both scores")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("compare"))
