"""Marks on suspicious triples in a real browser: kept, counted, shown, and read back by a build."""

import json
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from kgtrace_indexer import ModelFile, TripleTable
from kgtrace_indexer.inputs.skipping import without
from kgtrace_server.service import Service
from kgtrace_store.vocabulary import Vocabulary
from tests.server.conftest import RELATIONS, FakeAttributor

from .conftest import Site, running
from .pages import Browse, address, downloaded, settled


def mark(page: Page, row: int, text: str) -> None:
    page.locator("tbody select").nth(row).select_option(label=text)


def tsv(page: Page, folder: Path) -> Path:
    path = folder / "wrong.tsv"
    path.write_text(downloaded(page, page.get_by_role("button", name="Wrong as TSV")))
    return path


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
    ids = np.vstack([fake.triples, [[6, 0, 6]]]).astype(np.int32)
    kept, warnings = without(TripleTable(ids, np.arange(21), 0), listed, fake.vocabulary, skip_unknown=False)
    assert (kept.ids.tolist(), warnings) == ([[6, 0, 6]], [])
