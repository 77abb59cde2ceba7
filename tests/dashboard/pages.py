"""Addresses of views, and parts of a page."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Page, expect

from .conftest import Site

Browse = Callable[..., Page]


def address(site: Site, **parameters: str) -> str:
    return f"{site.url}/?{urlencode(parameters)}"


def card(page: Page, heading: str) -> Any:
    return page.locator("section", has=page.get_by_role("heading", name=heading, exact=True))


def field(page: Page, name: str) -> Any:
    return page.get_by_role("combobox", name=name)


def settled(page: Page) -> None:
    """Wait until everything that was asked is shown."""
    expect(page.locator("main .panel")).not_to_have_count(0)
    expect(page.locator("[aria-busy]")).to_have_count(0)


def downloaded(page: Page, link: Any) -> str:
    with page.expect_download() as download:
        link.click()
    return Path(download.value.path()).read_text()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
