"""What the explanation of a triple asks the service for, in a real browser."""

from collections import Counter

from playwright.sync_api import Route, expect

from .conftest import Site
from .pages import Browse, address, card, settled

ASKED = {"predictions": 1, "influences": 2, "aggregate": 1, "explanations": 1}


def test_everything_is_asked_for_at_once(browse: Browse, site: Site, triple: dict[str, str]) -> None:
    """No answer is waited for before the others are asked for, and nothing is asked for twice."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)
        if len(held) == sum(ASKED.values()):
            for each in held:
                each.continue_()

    page = browse(
        address(site, **triple),
        lambda page: [page.route(f"**/v1/{name}*", hold) for name in ASKED],
    )
    settled(page)
    for heading in (
        "Best tails",
        "Necessary facts",
        "Speaks for it",
        "Speaks against it",
        "Influence summed by relation",
    ):
        expect(card(page, heading)).to_be_visible()
    assert Counter(route.request.url.split("/v1/")[1].split("?")[0] for route in held) == ASKED
