"""The documentation says what there is, and nothing else."""

import argparse
import re
import tomllib
from pathlib import Path

import pytest

from benchmarks import guide
from kgtrace_server.cli.parser import parser
from kgtrace_store import layout

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "docs", "docs/reference", "examples", "store")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))


VERBS = next(action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb: str) -> None:
    """A verb nobody reads about is not there."""
    assert re.search(rf"kgtrace (`, `)?{verb}\b|`{verb}`|make {verb}", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the project."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_exist(page: Path) -> None:
    """Every ``make`` target and every flag after ``kgtrace VERB`` that a page shows is a real one."""
    text = page.read_text().replace("\\\n", " ")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert (
        set(re.findall(r"\bmake ([a-z-]+)", re.sub(r"[^`\n]*\bmake it\b.*", "", text)))
        & set(re.findall(r"`make ([a-z-]+)", text))
        <= targets
    )
    for verb, rest in re.findall(r"\bkgtrace ([a-z-]+)((?: [^`\n]*)?)", text):
        if verb in VERBS:
            known = {flag for action in VERBS[verb]._actions for flag in action.option_strings}
            assert set(re.findall(r"(?<!\S)(--[a-z-]+)", rest)) <= known, f"kgtrace {verb}{rest}"


def test_equations_that_the_code_cites_exist() -> None:
    """Equations are numbered in their order, and every number cited in the code is one of these."""
    numbers = re.findall(r"(?m)(?:^    .*|\|) +\((\d+)\)(?: \|)?$", (ROOT / "docs" / "how-it-works.md").read_text())
    assert numbers == [str(i + 1) for i in range(len(numbers))]
    code = "\n".join(file.read_text() for file in (ROOT / "indexer").rglob("*.py"))
    cited = {number for line in re.findall(r"eq\. ([^:.;]*)", code) for number in re.findall(r"\((\d+)\)", line)}
    assert cited
    assert cited <= set(numbers)


def test_the_walks_name_functions_that_exist() -> None:
    """Every ``file.py:name`` in CONTRIBUTING is a function, a class or a method of that file of indexer or server."""
    steps = re.findall(r"`([a-z_/]+\.py):([\w.]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert steps
    for file, name in steps:
        homes = (ROOT / "indexer" / "kgtrace_indexer" / file, ROOT / "server" / "kgtrace_server" / file)
        text = next(home for home in homes if home.exists()).read_text()
        missing = [part for part in name.split(".") if not re.search(rf"(def|class) {part}\b", text)]
        assert missing == [], f"{file}:{name}"


def test_the_guide_shows_what_was_measured() -> None:
    """Its tables are those that follow from the results in the repository; nobody edits a figure."""
    _, shown, _ = guide.PAGE.read_text().split(guide.MARK)
    assert shown == f"\n{guide.measured()}"


def test_every_file_of_a_generation_is_documented() -> None:
    """FORMAT.md names every file that the layout names."""
    text = (ROOT / "store" / "FORMAT.md").read_text()
    names = [
        value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str) and "%" not in value
    ]
    assert [name for name in names if name.replace("{}", "N") not in text] == []


def test_every_extra_is_in_the_table_of_what_to_install() -> None:
    """But those of contributors; and `kgtrace[...]` names no other."""
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    table = (ROOT / "docs" / "using.md").read_text().partition("## What to install")[2].partition("\n## ")[0]
    assert {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)} == (
        extras - {"dev", "docs"}
    )
    shown = {
        name
        for page in PAGES
        for names in re.findall(r"kgtrace\[([\w,]+)\]", page.read_text())
        for name in names.split(",")
    }
    assert shown <= extras
