"""Where Chromium is, and how it is started so that it speaks to nobody but us."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Of the program, in the order in which they are looked for."""

_FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_path() -> str | None:
    """Return where Chromium is: what KGTRACE_CHROMIUM names, or the first of `NAMES` that is installed."""
    return os.environ.get("KGTRACE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched(playwright: Playwright) -> Iterator[Browser]:
    """Run the browser, without a window and with a profile of its own, for as long as the block runs."""
    browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(_FLAGS), chromium_sandbox=False)
    try:
        yield browser
    finally:
        browser.close()
