"""From the start page to whether a prediction is to be believed, in a real browser that counts clicks."""

from playwright.sync_api import expect

from .conftest import Site
from .newcomer import STEPS
from .pages import Browse, card, settled

COUNT = "clicks = 0; addEventListener('click', (event) => { clicks += event.isTrusted; }, true)"


def test_whether_to_believe_a_prediction_takes_five_clicks(browse: Browse, nightly: Site) -> None:
    """Why, how sure, what if, and since when: each answer stands on the page after the click that the docs name."""
    page = browse(nightly.url + "/", lambda page: page.add_init_script(COUNT))
    settled(page)
    answers = {
        "ask": lambda: expect(card(page, "Best tails").locator("tbody tr")).to_have_count(10),
        "choose": lambda: [
            expect(page.get_by_text("no, a prediction")).to_be_visible(),
            expect(page.locator(".certified").first).to_be_visible(),
            expect(card(page, "Speaks for it").locator("tbody .badge.known")).to_have_count(10),
            expect(card(page, "Speaks against it").locator("tbody .badge.known")).to_have_count(10),
        ],
        "doubt": lambda: expect(page.locator(".ticks")).to_contain_text("1 ticked"),
        "without": lambda: expect(card(page, "Without the ticked facts").locator("p:visible")).to_contain_text(
            ["the model is predicted to rank it", "The score is predicted to go from"]
        ),
        "overnight": lambda: expect(card(page, "Facts that changed").locator("tbody .triple").nth(9)).to_be_visible(),
    }
    for name, click in STEPS:
        click(page)
        settled(page)
        answers[name]()
    assert page.evaluate("clicks") == len(STEPS) <= 5
