"""The site of the documentation: made from the code, whole, and in need of nothing from elsewhere."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from kgtrace_server import problems
from kgtrace_server.cli.completion import actions
from kgtrace_server.cli.parser import parser
from kgtrace_server.settings import Settings, variable
from kgtrace_store.errors import UnknownEntity

ROOT = Path(__file__).parents[1]
ADDRESS = "https://kgtrace.readthedocs.io/"
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
LOADING = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
"""Kinds of ``<link>`` that make a browser ask for something."""


class Links(HTMLParser):
    """Collects what a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.loads += [value for name, value in found.items() if (tag, name) in LOADED]
        if tag == "link" and set(found.get("rel", "").split()) & LOADING:
            self.loads.append(found["href"])
        if tag == "a" and "href" in found:
            self.targets.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it: any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # A default from the environment of whoever builds must not get into the pages.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "KGTRACE_INDEX": "/srv/somewhere/else"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    """Every page but the one for addresses that lead nowhere, whose links do not know where it stands."""
    return {page: Links(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"}


def inside(page: Path, site: Path, links: list[str]) -> Iterator[tuple[Path, str]]:
    """The file and the anchor that each link within the site means."""
    for link in links:
        parts = urlsplit(link.replace(ADDRESS, "/") if link.startswith(ADDRESS) else link)
        if not parts.scheme and not parts.netloc:
            path = unquote(parts.path)
            target = site / path.lstrip("/") if path.startswith("/") else page.parent / path if path else page
            yield (target / "index.html" if target.is_dir() else target).resolve(), unquote(parts.fragment)


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    """Every link within the site, those of the README included, names a file, and an anchor that it has."""
    found = {page.resolve(): links.anchors for page, links in pages.items()}
    for page, links in pages.items():
        for target, anchor in inside(page, site, links.targets):
            assert target.is_file(), f"{page.relative_to(site)} links to {target}"
            assert not anchor or anchor in found[target], f"{page.relative_to(site)}: no {anchor} in {target}"


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    """Scripts, styles, fonts and pictures come from the site itself."""
    for page, links in pages.items():
        assert len(list(inside(page, site, links.loads))) == len(links.loads), page
        assert all(target.is_file() for target, _ in inside(page, site, links.loads)), page
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*", style.read_text()) == []


def test_references_are_those_of_the_code(site: Path, pages: dict[Path, Links]) -> None:
    """Every verb, flag, route and kind of problem is there, and nothing of the machine that built them."""
    command_line = site / "reference" / "command-line" / "index.html"
    verbs = next(action.choices for action in actions(parser()) if isinstance(action.choices, dict))
    assert set(verbs) <= pages[command_line].anchors
    text = command_line.read_text()
    shown = [action for action in actions(parser()) if action.help != argparse.SUPPRESS]
    flags = {flag for action in shown for flag in action.option_strings if flag.startswith("--")}
    assert {flag for flag in flags if flag not in text} == set()
    assert "/srv/somewhere" not in text
    settings = (site / "reference" / "settings" / "index.html").read_text()
    assert all(variable(setting) in settings for setting in fields(Settings))
    assert "postv1influences" in {
        re.sub(r"\W", "", anchor) for anchor in pages[site / "reference" / "http" / "index.html"].anchors
    }
    kind = problems.type_of(UnknownEntity)
    assert kind.startswith(ADDRESS)
    (page, anchor) = next(inside(site / "index.html", site, [kind]))
    assert anchor in pages[Path(page)].anchors


def test_pictures_can_be_heard(pages: dict[Path, Links]) -> None:
    """Every picture has a text in its place."""
    for page in pages:
        assert re.findall(r'<img (?![^>]*alt="[^"]+)[^>]*>', page.read_text()) == []
