"""Marks on suspicious triples in a real browser: kept, counted, shown, and read back by a build."""

import json
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from kgtrace_indexer import ModelFile, TripleTable
from kgtrace_indexer.inputs.skipping import without
from kgtrace_server.service import Service
from kgtrace_store.vocabulary import Vocabulary
from tests.server.conftest import RELATIONS, FakeAttributor, fake_service

from .conftest import Site, running
from .pages import Browse, address, downloaded, settled


@pytest.fixture
def small() -> Service:
    return fake_service(FakeAttributor())


def mark(page: Page, row: int, text: str) -> None:
    page.locator("tbody select").nth(row).select_option(label=text)


def tsv(page: Page, folder: Path) -> Path:
    path = folder / "wrong.tsv"
    folder.mkdir(exist_ok=True)
    path.write_text(downloaded(page, page.get_by_role("button", name="Wrong as TSV")))
    return path


def read_marks(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Read marks from a file").press("Enter")
    chooser.value.set_files(path)


def test_triples_marked_wrong_are_left_out_by_a_build(
    browse: Browse, site: Site, umls: tuple[ModelFile, Vocabulary, TripleTable], tmp_path: Path
) -> None:
    """The file that the page writes is one that ``--skip`` reads; marks outlive the page and other lists."""
    page = browse(address(site, view="self-influence"))
    settled(page)
    expect(page.get_by_role("button", name="Wrong as TSV (0)")).to_be_disabled()
    for row, text in enumerate(("wrong", "fine", "later", "wrong", "wrong")):
        mark(page, row, text)
    mark(page, 4, "no mark")
    ranked = site.get("self-influence", top_k=25)["self_influences"]
    page.goto(address(site, view="self-influence", order="ascending"))
    settled(page)
    page.goto(address(site, view="self-influence"))
    expect(page.get_by_role("button", name="Wrong as TSV (2)")).to_be_enabled()
    _, vocabulary, table = umls
    kept, warnings = without(table, tsv(page, tmp_path), vocabulary, skip_unknown=False)
    gone = set(table.train_index.tolist()) - set(kept.train_index.tolist())
    assert (gone, warnings) == ({ranked[0]["train_index"], ranked[3]["train_index"]}, [])

    marks = json.loads(downloaded(page, page.get_by_role("button", name="Marks as JSON")))
    assert [entry["mark"] for entry in marks] == ["wrong", "fine", "later", "wrong"]
    assert [marks[1][field] for field in ("head", "relation", "tail")] == [
        ranked[1]["triple"][field]["label"] for field in ("head", "relation", "tail")
    ]


def test_the_list_is_worked_through_by_keyboard(browse: Browse, site: Site) -> None:
    """Of triples without a mark, one that gets it goes away and the focus is on the next; the address says so."""
    page = browse(address(site, view="self-influence"))
    settled(page)
    page.get_by_label("Show", exact=True).select_option(label="no mark (25)")
    fields = page.locator("tbody tr:visible select")
    names = [field.get_attribute("aria-label") for field in fields.all()]
    fields.first.focus()
    page.keyboard.type("fine")
    expect(fields).to_have_count(24)
    expect(fields.first).to_be_focused()
    expect(fields.first).to_have_attribute("aria-label", str(names[1]))
    expect(page.get_by_label("Show", exact=True).locator("option")).to_have_text(
        ["all (25)", "no mark (24)", "wrong (0)", "fine (1)", "later (0)"]
    )
    page.reload()
    expect(fields).to_have_count(24)
    page.get_by_label("Show", exact=True).select_option(label="fine (1)")
    expect(fields).to_have_count(1)
    expect(fields).to_have_attribute("aria-label", str(names[0]))


def test_labels_survive_the_file(browse: Browse, tmp_path: Path) -> None:
    """Quotes and tabs too: labels that would break a line stand in the quotes of CSV."""
    fake = FakeAttributor()
    hostile = ("plain", 'has "quotes"', '"quoted"', "a\ttab", " 知识, spaces ", "x", "y")
    fake.vocabulary = Vocabulary(hostile, RELATIONS, {}, {})
    with running(Service(fake)) as site:  # type: ignore[arg-type]
        page = browse(address(site, view="self-influence"))
        settled(page)
        for row in range(20):
            mark(page, row, "wrong")
        listed = tsv(page, tmp_path)
        page.evaluate("localStorage.clear()")
        page.reload()
        settled(page)
        read_marks(page, listed)
        many = len(np.unique(fake.triples, axis=0))
        expect(page.locator("main").get_by_text(f"wrong.tsv: {many} marks, {many} of them new here.")).to_be_visible()
        assert tsv(page, tmp_path / "again").read_text() == listed.read_text()
    ids = np.vstack([fake.triples, [[6, 0, 6]]]).astype(np.int32)
    kept, warnings = without(TripleTable(ids, np.arange(21), 0), listed, fake.vocabulary, skip_unknown=False)
    assert (kept.ids.tolist(), warnings) == ([[6, 0, 6]], [])


def test_marks_are_read_back_and_merged(browse: Browse, site: Site, tmp_path: Path) -> None:
    """Those of the file replace others of the same triples; what it does not name stays as it is."""
    page = browse(address(site, view="self-influence"))
    settled(page)
    for row, text in enumerate(("wrong", "fine", "later")):
        mark(page, row, text)
    saved = tmp_path / "marks.json"
    saved.write_text(downloaded(page, page.get_by_role("button", name="Marks as JSON")))
    mark(page, 1, "later")
    mark(page, 2, "no mark")
    mark(page, 3, "fine")
    read_marks(page, saved)
    said = "marks.json: 3 marks, 2 of them new here."
    expect(page.get_by_text(said)).to_have_count(2)  # on the page, and to those who hear it
    expect(page.get_by_role("status").filter(has_text=said)).to_have_count(1)
    fields = page.locator("tbody select")
    for again in (False, True):
        if again:
            page.reload()
            settled(page)
        for row, value in enumerate(("wrong", "fine", "later", "fine", "")):
            expect(fields.nth(row)).to_have_value(value)
    expect(page.get_by_role("button", name="Wrong as TSV (1)")).to_be_enabled()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("marks.json", "[{", "it is not JSON"),
        ("marks.JSON", '{"head": "a"}', "it is not a list of marks"),
        ("marks.json", "[null]", "entry 1 has no head, relation and tail"),
        ("marks.json", '[{"head": "a", "relation": 1, "tail": "b", "mark": "fine"}]', "entry 1 has no head"),
        (
            "marks.json",
            '[{"head": "a", "relation": "r", "tail": "b", "mark": "toString"}]',
            "entry 1 is not marked wrong, fine or later",
        ),
        ("wrong.tsv", "a\tr\tb\na\tr\n", "line 2 is not head, relation and tail with tabs between"),
        ("picture.png", "\x89PNG", "line 1 is not head"),
        ("wrong.tsv", "\n", "it is empty"),
        ("wrong.tsv", f"{'a' * 6_000_000}\tr\tb\n", "it holds more than this browser keeps"),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_of_something_else_is_refused(
    browse: Browse, small: Service, tmp_path: Path, name: str, content: str, words: str
) -> None:
    """With the file's name and what is wrong with it; marks stay as they are."""
    path = tmp_path / name
    path.write_text(content)
    with running(small) as site:
        page = browse(address(site, view="self-influence"))
        settled(page)
        mark(page, 0, "fine")
        before = page.evaluate("JSON.stringify(localStorage)")
        read_marks(page, path)
        said = page.locator("main").get_by_text(f"{name} is no file of marks as this page saves them: {words}")
        expect(said).to_be_visible()
        assert page.evaluate("JSON.stringify(localStorage)") == before
