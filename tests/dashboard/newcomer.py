"""The way of somebody who has never seen the page, from its start to whether a prediction is to be believed."""

from collections.abc import Callable

from playwright.sync_api import Page

from .pages import card

STEPS: tuple[tuple[str, Callable[[Page], object]], ...] = (
    ("ask", lambda page: card(page, "Ask about a prediction").locator(".choices a").first.click()),
    ("choose", lambda page: page.locator("tr:not(:has(.known)) > th[scope=row] a").first.click()),
    ("doubt", lambda page: page.locator(".tick:visible").first.click()),
    ("without", lambda page: page.get_by_role("button", name="Without the ticked", exact=True).click()),
    ("overnight", lambda page: page.get_by_role("link", name="What changed overnight").click()),
)
"""Each is one click; the next one is made when everything that it asked for is shown."""
