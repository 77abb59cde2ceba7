"""Labels, names, and finding them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from kgtrace_store import layout
from kgtrace_store.errors import (
    CorruptGeneration,
    DuplicateId,
    IdOutOfRange,
    InputError,
    UnknownEntity,
    UnknownRelation,
)
from kgtrace_store.vocabulary import Vocabulary

TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\t\n\r\\")), max_size=8)
PLAIN = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
"""Texts without the character that stands for a line break in the text that is searched."""
ALIKE = st.text("abA", max_size=4)
"""Texts that contain each other."""


@st.composite
def vocabularies(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXT) -> Vocabulary:
    tables = []
    for _ in range(2):
        labels = draw(st.lists(texts, unique=True, max_size=12))
        names = draw(st.dictionaries(st.integers(0, len(labels) - 1), texts.filter(bool))) if labels else {}
        tables.append((tuple(labels), names))
    (entities, entity_names), (relations, relation_names) = tables
    return Vocabulary(
        entities, relations, entity_names, relation_names, draw(st.dictionaries(texts, texts.filter(bool)))
    )


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(
        ["Q76", "Q30", "Q7", "Paris", "paris hilton", "q"],
        ["P27", "P31"],
        {0: "Barack Obama", 1: "United States", 3: "capital of France"},
        {0: "country of citizenship"},
    )


@given(vocabularies())
def test_round_trip(vocabulary: Vocabulary) -> None:
    """Labels, names and prefixes come back as they were, whatever characters they are made of."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.write(Path(folder))
        assert Vocabulary.read(Path(folder)) == vocabulary


@given(st.one_of(vocabularies(PLAIN), vocabularies(ALIKE)), st.one_of(PLAIN, ALIKE), st.integers(1, 5))
def test_search_is_exact_then_prefix_then_substring(vocabulary: Vocabulary, q: str, limit: int) -> None:
    """The search over one long text finds what a loop over all labels and names finds, in the same order."""
    prefix, colon, local = q.partition(":")
    folded = (vocabulary.prefixes[prefix] + local if colon and prefix in vocabulary.prefixes else q).casefold()

    def rank(i: int) -> int:
        texts = [vocabulary.entities[i].casefold(), vocabulary.entity_names.get(i, "").casefold()]
        tests = (folded in texts, any(t.startswith(folded) for t in texts), any(folded in t for t in texts))
        return tests.index(True) if any(tests) else len(tests)

    wanted = [i for i in range(len(vocabulary.entities)) if rank(i) < 3]
    if q:
        wanted.sort(key=rank)
    assert vocabulary.search_entities(q, limit) == wanted[:limit]


def test_search_ignores_case_and_reads_names(vocabulary: Vocabulary) -> None:
    """A completion box finds labels and names in any case."""
    assert vocabulary.search_entities("q7", 10) == [2, 0]
    assert vocabulary.search_entities("PARIS", 10) == [3, 4]
    assert vocabulary.search_entities("obama", 10) == [0]
    assert vocabulary.search_relations("country", 10) == [0]
    assert vocabulary.search_entities("no\nsuch", 10) == []
    assert vocabulary.search_entities("\ud800", 10) == []
    assert vocabulary.search_entities("", 2) == [0, 1]


def test_better_matches_come_first() -> None:
    """What equals the text precedes what starts with it, and that what merely contains it, whatever the ids."""
    assert Vocabulary(["xab", "abx", "ab"], []).search_entities("ab", 3) == [2, 1, 0]
    assert Vocabulary(["x", "y", "z"], [], {0: "xab", 1: "abx", 2: "AB"}).search_entities("ab", 2) == [2, 1]


def test_prefixes_shorten_and_expand() -> None:
    """A prefix stands for its IRI where a label is looked up, and shows one without a name; labels go first."""
    wd = "http://www.wikidata.org/"
    prefixes = {"wd": f"{wd}entity/", "w": wd, "": "http://example.org/"}
    entities = [f"{wd}entity/Q42", f"{wd}entity/Q5", f"{wd}about", "http://example.org/x", "w:about"]
    vocabulary = Vocabulary(entities, [f"{wd}P31"], {0: "Douglas Adams"}).with_prefixes(prefixes)
    assert vocabulary.entity_names == {0: "Douglas Adams", 1: "wd:Q5", 2: "w:about", 3: ":x"}
    assert vocabulary.relation_names == {0: "w:P31"}
    assert [vocabulary.resolve_entity(ref) for ref in ("wd:Q42", entities[0], ":x", "w:entity/Q5")] == [0, 0, 3, 1]
    assert vocabulary.resolve_entity("w:about") == 4
    assert vocabulary.find("wd:Q42", "w:P31", ":x") == (0, 0, 3)
    assert vocabulary.find("wd:Q42", "w:P31", "wd:Q43") is None
    assert vocabulary.search_entities("wd:q", 9) == [0, 1]
    with pytest.raises(UnknownEntity, match=r"unknown entity 'wd:Q43'; nearest: 'http://www.wikidata.org/entity/Q42'"):
        vocabulary.entity_id("wd:Q43")
    assert Vocabulary(entities, []).with_prefixes({}) == Vocabulary(entities, [])


def test_resolve(vocabulary: Vocabulary) -> None:
    """Strings are labels and integers are ids."""
    assert vocabulary.resolve_entity("Q30") == vocabulary.resolve_entity(1) == vocabulary.entity_id("Q30") == 1
    assert vocabulary.resolve_relation("P31") == vocabulary.resolve_relation(1) == 1
    assert vocabulary.relation_id("P27") == 0


@pytest.mark.parametrize("bad", [-1, 6])
def test_ids_out_of_range_are_refused(vocabulary: Vocabulary, bad: int) -> None:
    """The message holds the id and the number of entities."""
    with pytest.raises(IdOutOfRange, match=f"entity id {bad} is out of range: there are 6 entities"):
        vocabulary.resolve_entity(bad)


def test_unknown_labels_suggest_the_nearest(vocabulary: Vocabulary) -> None:
    """The message holds the label and what it may have been meant to be, found by label or by name."""
    with pytest.raises(UnknownEntity, match=r"'Pariss'; nearest: 'Paris' \(capital of France\)"):
        vocabulary.entity_id("Pariss")
    with pytest.raises(UnknownEntity, match=r"'Barak Obama'; nearest: 'Q76' \(Barack Obama\)"):
        vocabulary.resolve_entity("Barak Obama")
    with pytest.raises(UnknownRelation, match="unknown relation 'xyz'; none of the 2 relations is similar"):
        vocabulary.relation_id("xyz")


def test_labels_in_another_unicode_form_are_named() -> None:
    """Two labels that read the same are told apart in the message, whatever comes near besides."""
    composed, decomposed, ohm = "caf\u00e9", "cafe\u0301", "\u2126"
    with pytest.raises(UnknownEntity) as caught:
        Vocabulary(["cafes", decomposed, composed + "s"], []).entity_id(composed)
    assert r"form NFC, the label that reads the same is in Unicode form NFD: 'cafe\u0301'" in str(caught.value)
    assert caught.value.nearest == ((decomposed, None),)
    with pytest.raises(UnknownRelation, match=r"form NFD, .* is in Unicode form NFC: 'caf\\xe9'"):
        Vocabulary([], [composed]).relation_id(decomposed)
    with pytest.raises(UnknownEntity, match=r"is in no Unicode normal form: '\\u2126'"):
        Vocabulary([ohm], []).entity_id("\u03a9")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "b"], 3),
        (["a", "7b", "-3", "1e5", "٣", "³"], 3),
        (["a", "7"], "3"),
        (["007", "a"], "3"),
    ],
)
def test_digits_are_ids_unless_a_label_is_made_of_digits(labels: list[str], expected: str | int) -> None:
    """One rule for each of entities and relations: a label that is not known is not taken for an id."""
    assert Vocabulary(labels, ["r"]).entity_ref("3") == expected
    assert Vocabulary(["e"], labels).relation_ref("3") == expected
    assert Vocabulary(labels, ["r"]).relation_ref("3") == Vocabulary(["e"], labels).entity_ref("3") == 3
    for text in ("-1", "٣", "1" * 5000, "1.0", "", "³"):
        assert Vocabulary(labels, []).entity_ref(text) == text


def test_unknown_digits_say_that_they_are_no_id() -> None:
    """Who means an id is told why it is not taken for one."""
    with pytest.raises(UnknownEntity, match="unknown entity '3'; digits are labels here, not ids; nearest: '30'"):
        Vocabulary(["30", "a"], []).entity_id("3")


def test_messages_stay_short(vocabulary: Vocabulary) -> None:
    """A label of a million characters is not repeated."""
    with pytest.raises(UnknownEntity) as caught:
        vocabulary.entity_id("x" * 1_000_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "\n", "a\\tb\tc"])
def test_labels_that_break_lines_are_escaped(tmp_path: Path, text: str) -> None:
    """A tab or a line break in one label or name makes that file an escaped one, and leaves the other as it is."""
    written = Vocabulary((text, "back\\slash"), ("back\\slash",), {1: text})
    written.write(tmp_path)
    assert (tmp_path / layout.ENTITIES).read_bytes().startswith(b"escaped\n")
    assert (tmp_path / layout.RELATIONS).read_bytes() == b"back\\slash\t\n"
    assert Vocabulary.read(tmp_path) == written
    assert written.search_entities(text, 10)[0] == 0


def test_invalid_unicode_is_refused(tmp_path: Path) -> None:
    """Half of a surrogate pair has no UTF-8."""
    with pytest.raises(InputError, match="not valid Unicode"):
        Vocabulary(["\ud800"], []).write(tmp_path)


def test_duplicate_labels_are_refused(tmp_path: Path) -> None:
    """The message holds both ids and the label."""
    with pytest.raises(DuplicateId, match="entity ids 0 and 2 have the same label 'a'"):
        Vocabulary(["a", "b", "a"], []).write(tmp_path)


def test_names_beyond_the_labels_are_refused(tmp_path: Path) -> None:
    """A name must belong to somebody."""
    with pytest.raises(IdOutOfRange, match="relation id 1, but there are 1 relations"):
        Vocabulary([], ["r"], {}, {1: "x"}).write(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\t\nb\t", "truncated"),
        (b"a\t\nb\n", "line 2"),
        (b"a\tb\tc\n", "line 1"),
        (b"\xff\t\n", "not UTF-8"),
        (b"escaped\na\t\nb\n", "line 3: expected label and name"),
        (b"escaped\na\\x\t\n", "line 2: there is no escape"),
        (b"escaped\na\\\t\n", "line 2: there is no escape"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that write() cannot have written is named."""
    Vocabulary(["a"], ["r"]).write(tmp_path)
    (tmp_path / layout.ENTITIES).write_bytes(content)
    with pytest.raises(CorruptGeneration, match=message):
        Vocabulary.read(tmp_path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    """A vocabulary without its relations is not one."""
    Vocabulary(["a"], ["r"]).write(tmp_path)
    (tmp_path / layout.RELATIONS).unlink()
    with pytest.raises(CorruptGeneration, match=r"relations\.tsv is missing"):
        Vocabulary.read(tmp_path)
