"""Reasons in a real browser: beside each training triple, as a choice, as groups, and as paths in the graph."""

import pytest
from playwright.sync_api import expect

from .conftest import Site
from .pages import Browse, address, card, downloaded, rows, settled

SIDES = {"Speaks for it": "proponents", "Speaks against it": "opponents"}


@pytest.fixture(scope="module")
def influences(site: Site, triple: dict[str, str]) -> dict[str, list[dict[str, object]]]:
    """What the API answers, by heading."""
    return {
        heading: site.get("influences", **triple, order=order)["results"][0]["influences"]
        for heading, order in SIDES.items()
    }


def test_each_training_triple_has_its_reason(
    browse: Browse, site: Site, triple: dict[str, str], influences: dict[str, list[dict[str, object]]]
) -> None:
    """The tag and the words of the API, in its order."""
    page = browse(address(site, **triple))
    for heading, expected in influences.items():
        lines = card(page, heading).locator("tbody .row:has(.badge)")
        expect(lines).to_have_text([f"{found['reason']} {found['because']}" for found in expected])


def test_reasons_are_chosen_and_grouped_by_keyboard(
    browse: Browse, site: Site, triple: dict[str, str], influences: dict[str, list[dict[str, object]]]
) -> None:
    """Rows keep their places and the field its focus; the address says what is chosen, and shows it again."""
    page = browse(address(site, **triple))
    settled(page)
    reasons = [str(found["reason"]) for expected in influences.values() for found in expected]
    rarest = min(reasons, key=reasons.count)
    assert reasons.count(rarest) < len(reasons)
    choice = page.get_by_label("Reason", exact=True)
    choice.focus()
    page.keyboard.type(rarest)
    expect(choice).to_have_value(rarest)
    expect(choice).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("Group by reason")).to_be_checked()
    for again in (page, browse(page.url)):
        settled(again)
        for heading, expected in influences.items():
            places = [str(i) for i, found in enumerate(expected, 1) if found["reason"] == rarest]
            expect(card(again, heading).locator("tbody td:first-child")).to_have_text(places)
        expect(again.locator(".influences .group")).not_to_have_count(0)
        for name in again.locator(".influences .group").all_inner_texts():
            assert name.startswith(f"{rarest}: ")
    for heading, expected in influences.items():
        text = downloaded(page, page.get_by_role("button", name=f"CSV of {heading}"))
        places = [i for i, found in enumerate(expected, 1) if found["reason"] == rarest]
        assert [int(row["position"]) for row in rows(text)] == places
    page.get_by_role("link", name="by tail").click()
    expect(page.get_by_role("heading", name="Influence summed by tail")).to_be_focused()
    expect(choice).to_have_value(rarest)
    choice.select_option("")
    expect(card(page, "Speaks for it").locator("tbody tr:not(.group)")).to_have_count(10)
    shown = [reason for heading in SIDES for reason in groups_of(influences[heading])]
    expect(page.locator(".influences .group")).to_have_count(len(shown))


def groups_of(found: list[dict[str, object]]) -> set[object]:
    return {each["reason"] for each in found}


def test_paths_are_drawn(
    browse: Browse, site: Site, triple: dict[str, str], influences: dict[str, list[dict[str, object]]]
) -> None:
    """With the triples that complete them as thin lines, each once; none is drawn where no path is chosen."""
    drawn = [found for expected in influences.values() for found in expected[:7]]
    named = {ids(found["triple"]) for found in drawn} | {ids(site.get("influences", **triple)["results"][0]["triple"])}
    steps = {ids(step) for found in drawn for step in found["path"]} - named  # type: ignore[attr-defined]
    assert steps
    page = browse(address(site, **triple))
    expect(page.locator(".drawn .edge.step")).to_have_count(len(steps))
    expect(page.locator("details li").first).to_contain_text(str(drawn[0]["because"]))
    others = {str(found["reason"]) for found in drawn} - {"path"}
    page.get_by_label("Reason", exact=True).select_option(others.pop())
    expect(page.locator(".drawn .edge.prediction")).to_have_count(1)
    expect(page.locator(".drawn .edge.step")).to_have_count(0)


def ids(triple: object) -> tuple[int, ...]:
    assert isinstance(triple, dict)
    return tuple(triple[field]["id"] for field in ("head", "relation", "tail"))
