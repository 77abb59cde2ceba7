"""Id maps, names and triples: every layout that is met in practice, and a named error for every other."""

import gzip
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgtrace_indexer.triples import MAX_LINE_BYTES, read_training_folder, read_triples, read_vocabulary
from kgtrace_store.errors import (
    DuplicateId,
    EmptyInput,
    IdOutOfRange,
    InputError,
    MalformedTriple,
    MalformedVocabulary,
    UnknownEntity,
    UnknownRelation,
    UnreadableInput,
)
from kgtrace_store.vocabulary import Vocabulary

SHARED = Path(os.environ.get("KGTRACE_SHARED", Path(__file__).parents[2].parent / "shared"))
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no data under {SHARED}")

VOCABULARY = Vocabulary(["ann", "bob", "cid"], ["knows", "likes"])

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write text or bytes into a new file and give its path."""
    count = 0

    def write(content: str | bytes, name: str = "file.tsv") -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"{count}-{name}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def entities_of(write: Write, content: str | bytes) -> list[str]:
    """Entity labels that an id map gives, in the order of their ids."""
    return list(read_vocabulary(write(content), write("0\tr\n")).entities)


# Id maps.


@pytest.mark.parametrize(
    "content",
    [
        "ann\t0\nbob\t1\ncid\t2\n",
        "0\tann\n1\tbob\n2\tcid\n",
        "2\tcid\n0\tann\n1\tbob\n",
        "id\tlabel\n0\tann\n1\tbob\n2\tcid\n",
        "label\tid\nann\t0\nbob\t1\ncid\t2\n",
        "Entity\tID\nann\t0\nbob\t1\ncid\t2",
        "ann\t0\r\nbob\t1\r\ncid\t2\r\n",
        "\ufeffid\tlabel\n0\tann\n1\tbob\n2\tcid\n",
        "\n0\tann\n\n   \n1\tbob\n2\tcid\n\n",
        gzip.compress(b"id\tlabel\n0\tann\n1\tbob\n2\tcid\n", mtime=0),
    ],
    ids=["label id", "id label", "any order", "header", "other header", "named", "crlf", "bom", "blank", "gzip"],
)
def test_id_maps_of_every_layout_agree(write: Write, content: str | bytes) -> None:
    """Column order, header, line ends, byte-order mark, blank lines and gzip make no difference."""
    assert entities_of(write, content) == ["ann", "bob", "cid"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("00260881\t0\n00260622\t1\n", ["00260881", "00260622"]),
        ("0\t00260881\n1\t00260622\n", ["00260881", "00260622"]),
        ("17\t0\n3\t1\n", ["17", "3"]),
        ("1\t17\n0\t3\n", ["3", "17"]),
        ("0\t0\n1\t1\n", ["0", "1"]),
        ("00\t1\n01\t0\n", ["01", "00"]),
        ("id\tlabel\n0\t1\n1\t0\n", ["1", "0"]),
        ("label\tid\n0\t1\n1\t0\n", ["1", "0"]),
        ("id\tlabel\n0\t7\n1\tx\n", ["7", "x"]),
        ("id\t0\nlabel\t1\n", ["id", "label"]),
        ("0\t5\n1\tx\n", ["5", "x"]),
    ],
)
def test_labels_may_look_like_numbers(write: Write, content: str, expected: list[str]) -> None:
    """The header decides; without one, the ids are the column that holds 0..n-1."""
    assert entities_of(write, content) == expected


def test_pykeens_quoting_is_undone(write: Write) -> None:
    """Labels with quotes, which PyKEEN writes as CSV does, come back as they were; without header nothing is quoted."""
    assert entities_of(write, 'id\tlabel\n0\t"say ""hi"""\n1\tplain\n') == ['say "hi"', "plain"]
    assert entities_of(write, '"a"\t0\n') == ['"a"']


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("0\t1\n1\t0\n", MalformedVocabulary, "both columns hold the ids 0..1; add a first line id⇥label or label⇥id"),
        ("5\t7\n6\t8\n", MalformedVocabulary, "neither column holds the ids 0..1; add a first line"),
        ("a\tb\nc\td\n", MalformedVocabulary, "line 1: neither 'a' nor 'b' is an id"),
        ("a\t0\nb\tone\n", MalformedVocabulary, "line 2: id 'one' of 'b' is not an integer"),
        ("0\ta\n1O\tb\n", MalformedVocabulary, "line 2: id '1O' of 'b' is not an integer"),
        ("id\tlabel\n0\ta\nb\t1\n", MalformedVocabulary, "line 3: id 'b' of '1' is not an integer"),
        ("a\t0\tx\n", MalformedVocabulary, "line 1: expected label⇥id or id⇥label, found 3 tab-separated fields"),
        ("a\t0\nb 1\n", MalformedVocabulary, "line 2: expected label⇥id or id⇥label, found 1 tab-separated fields"),
        ("a\t0\n\t1\n", MalformedVocabulary, "line 2: id 1 has an empty label"),
        ("a\t0\n\nb\t0\n", DuplicateId, "lines 1 and 3: two entity labels have id 0"),
        ("a\t0\nb\t1\na\t2\n", DuplicateId, "lines 1 and 3: 'a' has two ids"),
        ("a\t0\nb\t2\n", IdOutOfRange, "line 2: id 2 of 'b' is not among 0..1"),
        ("a\t-1\nb\t0\n", IdOutOfRange, "line 1: id -1 of 'a' is not among 0..1"),
        ("a\t0\nb\t99999999999999\n", IdOutOfRange, "id 99999999999999 of 'b'"),
        ("", EmptyInput, "holds no entity"),
        ("\n\n", EmptyInput, "holds no entity"),
        ("id\tlabel\n", EmptyInput, "holds no entity"),
        (b"a\t0\nb\xff\t1\n", UnreadableInput, "line 2 is not UTF-8: invalid start byte at byte 1"),
        ("ab\t0\n".encode("utf-16"), UnreadableInput, "line 1 is not UTF-8"),
        (gzip.compress(b"a\t0\n" * 1000, mtime=0)[:-9], UnreadableInput, "truncated or damaged gzip file"),
        (b"\x1f\x8bnot gzip at all", UnreadableInput, "truncated or damaged gzip file after line 0"),
    ],
)
def test_unusable_id_maps_are_named(write: Write, content: str | bytes, error: type[InputError], message: str) -> None:
    """The message names the file, the line, what is there and what should be."""
    with pytest.raises(error) as caught:
        entities_of(write, content)
    assert message in str(caught.value)
    assert "file.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_relation_maps_are_read_alike(write: Write) -> None:
    """Errors in the relation map speak of relations."""
    assert list(read_vocabulary(write("a\t0\n"), write("likes\t1\nknows\t0\n")).relations) == ["knows", "likes"]
    with pytest.raises(DuplicateId, match="two relation labels have id 0"):
        read_vocabulary(write("a\t0\n"), write("r\t0\ns\t0\n"))


def test_missing_files_are_named(tmp_path: Path, write: Write) -> None:
    """A path that cannot be opened is an input error with the system's reason."""
    with pytest.raises(UnreadableInput, match=r"cannot read .*gone\.tsv: No such file"):
        read_vocabulary(tmp_path / "gone.tsv", write("r\t0\n"))
    with pytest.raises(UnreadableInput, match="Is a directory"):
        read_triples(tmp_path, VOCABULARY)


def test_names_belong_to_entities_or_relations(write: Write) -> None:
    """Names are found by label; those of unknown labels, and empty ones, are left out."""
    names = write("ann\tAnn Example\nzoe\tZoe\nlikes\tlikes, as in 'enjoys'\nbob\t\n")
    vocabulary = read_vocabulary(write("ann\t0\nbob\t1\n"), write("knows\t0\nlikes\t1\n"), names)
    assert vocabulary.entity_names == {0: "Ann Example"}
    assert vocabulary.relation_names == {1: "likes, as in 'enjoys'"}


def test_names_of_nothing_known_are_refused(write: Write) -> None:
    """A names file of another data set, or without names, is a mistake."""
    for content, message in [("x\tX\ny\tY\n", "none of its 2 labels"), ("ann\n", "expected label⇥name, found 1")]:
        with pytest.raises(MalformedVocabulary, match=message):
            read_vocabulary(write("ann\t0\n"), write("r\t0\n"), write(content))


# Triples.


@pytest.mark.parametrize(
    "content",
    [
        "ann\tknows\tbob\nbob\tlikes\tcid\n",
        "ann\tknows\tbob\r\nbob\tlikes\tcid",
        "\ufeff\nann\tknows\tbob\n\n  \nbob\tlikes\tcid\n\n",
        "head\trelation\ttail\n0\t0\t1\n1\t1\t2\n",
        gzip.compress(b"ann\tknows\tbob\nbob\tlikes\tcid\n", mtime=0),
        gzip.compress(b"ann\tknows\tbob\n", mtime=0) + gzip.compress(b"bob\tlikes\tcid\n", mtime=0),
    ],
    ids=["plain", "crlf", "blank lines and bom", "ids", "gzip", "two gzip members"],
)
def test_triples_of_every_layout_agree(write: Write, content: str | bytes) -> None:
    """Labels, ids under PyKEEN's header, line ends and gzip give the same table."""
    table = read_triples(write(content), VOCABULARY)
    assert table.ids.tolist() == [[0, 0, 1], [1, 1, 2]]
    assert table.train_index.tolist() == [0, 1]
    assert (table.ids.dtype, table.train_index.dtype, table.skipped) == (np.int32, np.int64, 0)


def test_labels_that_are_the_header_are_labels(write: Write) -> None:
    """If head, relation and tail are in the vocabulary, that line is a triple."""
    vocabulary = Vocabulary(["tail", "head"], ["relation"])
    assert read_triples(write("head\trelation\ttail\n"), vocabulary).ids.tolist() == [[1, 0, 0]]


def test_labels_are_taken_as_they_are(write: Write) -> None:
    """Spaces, quotes, other separators and other alphabets belong to the label."""
    labels = [" a ", '"b"', "c\u2028d", "käse", "e\x0bf\x85", "0"]
    content = "".join(f"{a}\tr\t{b}\n" for a in labels for b in labels)
    table = read_triples(write(content), Vocabulary(labels, ["r"]))
    assert table.ids[:, [0, 2]].tolist() == [[i, j] for i in range(6) for j in range(6)]


def test_skipped_lines_keep_their_place_in_the_numbering(write: Write) -> None:
    """train_index is the line without blank lines, whether or not lines were skipped."""
    content = "zoe\tknows\tbob\n\nann\tknows\tbob\nann\thates\tbob\nann\tknows\tzoe\nbob\tlikes\tcid\n"
    table = read_triples(write(content), VOCABULARY, skip_unknown=True)
    assert table.ids.tolist() == [[0, 0, 1], [1, 1, 2]]
    assert table.train_index.tolist() == [1, 4]
    assert table.skipped == 3


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("ann\tknows\tbob\nzoe\tknows\tbob\n", UnknownEntity, "line 2: unknown entity 'zoe'"),
        ("ann\tknows\tann2\n", UnknownEntity, "line 1: unknown entity 'ann2'; nearest: 'ann'"),
        ("\nann\tknow\tbob\n", UnknownRelation, "line 2: unknown relation 'know'; nearest: 'knows'"),
        ("x\ty\tz\n", UnknownEntity, "--skip-unknown leaves such lines out"),
        ("ann knows bob\n", MalformedTriple, "line 1: expected head⇥relation⇥tail, found 1 tab-separated fields"),
        ("ann\tknows\n", MalformedTriple, "found 2 tab-separated fields in 'ann\\tknows'"),
        ("ann\tknows\tbob\t\n", MalformedTriple, "found 4 tab-separated fields"),
        ("ann\tknows\tbob\n\t\t\n", MalformedTriple, "line 2: expected head⇥relation⇥tail, found an empty field"),
        ("", EmptyInput, "holds no triple"),
        ("\n \n", EmptyInput, "holds no triple"),
        (gzip.compress(b"", mtime=0), EmptyInput, "holds no triple"),
        (b"ann\tknows\tb\xc3\n", UnreadableInput, "line 1 is not UTF-8"),
        (gzip.compress(b"ann\tknows\tbob\n" * 9, mtime=0)[:-5], UnreadableInput, "truncated or damaged gzip file"),
        ("head\trelation\ttail\n", EmptyInput, "holds no triple"),
        ("head\trelation\ttail\n0\t0\n", MalformedTriple, "line 2: expected head⇥relation⇥tail, found 2"),
        ("head\trelation\ttail\nann\tknows\tbob\n", MalformedTriple, "for labels remove the header"),
        ("head\trelation\ttail\n0\t0\t\n", MalformedTriple, "is not three ids"),
        ("head\trelation\ttail\n0\t0\t3\n", IdOutOfRange, "line 2: ids 0, 0, 3 are out of range: there are 3 entities"),
        ("head\trelation\ttail\n\n0\t2\t1\n", IdOutOfRange, "line 3: ids 0, 2, 1 are out of range"),
        ("head\trelation\ttail\n-1\t0\t1\n", IdOutOfRange, "ids -1, 0, 1 are out of range"),
    ],
)
def test_unusable_triples_are_named(write: Write, content: str | bytes, error: type[InputError], message: str) -> None:
    """The message names the file, the line, what is there and what should be."""
    with pytest.raises(error) as caught:
        read_triples(write(content), VOCABULARY)
    assert message in str(caught.value)
    assert "file.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_skipping_everything_or_malformed_lines_is_refused(write: Write) -> None:
    """--skip-unknown forgives unknown labels, not a file of another data set and not broken lines."""
    with pytest.raises(EmptyInput, match="with known labels: all 2 were skipped"):
        read_triples(write("x\ty\tz\nx\ty\tz\n"), VOCABULARY, skip_unknown=True)
    with pytest.raises(MalformedTriple, match="line 2"):
        read_triples(write("x\ty\tz\nann\t\tbob\n"), VOCABULARY, skip_unknown=True)


def test_a_line_without_end_is_refused_early(write: Write) -> None:
    """A gigabyte of zeros in a small gzip file does not fill the memory."""
    path = write(gzip.compress(bytes(64 * MAX_LINE_BYTES), 1), "zeros.gz")
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableInput, match=r"line 1 is longer than 1048576 bytes"):
            read_triples(path, VOCABULARY)
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


LABELS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\ufeff"), min_size=1).filter(
    lambda s: s.strip(" ")
)


@given(st.lists(LABELS, min_size=1, unique=True), st.booleans())
def test_any_labels_survive(tmp_path_factory: pytest.TempPathFactory, labels: list[str], ids_first: bool) -> None:
    """Whatever labels there are, a map under a header and triples of them give back their ids."""
    folder = tmp_path_factory.mktemp("labels")
    quoted = ['"' + label.replace('"', '""') + '"' if '"' in label else label for label in labels]
    lines = ["id\tlabel" if ids_first else "label\tid"]
    lines += [f"{i}\t{label}" if ids_first else f"{label}\t{i}" for i, label in enumerate(quoted)]
    (folder / "e.tsv").write_bytes("\n".join(lines).encode())
    (folder / "r.tsv").write_bytes(b"r\t0\n")
    vocabulary = read_vocabulary(folder / "e.tsv", folder / "r.tsv")
    assert list(vocabulary.entities) == labels
    (folder / "t.tsv").write_bytes("".join(f"{label}\tr\t{labels[0]}\n" for label in labels).encode())
    assert read_triples(folder / "t.tsv", vocabulary).ids[:, 0].tolist() == list(range(len(labels)))


# PyKEEN's folder.


def test_a_training_folder_is_what_pykeen_wrote(tmp_path: Path) -> None:
    """Labels and triples of `training_triples` are those of the factory that wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pykeen.triples import TriplesFactory

        labelled = np.array([["a", 'says "hi"', "10"], ["10", "r", "NA"], ["NA", "r", "a"], ["käse", "r", "1"]])
        factory = TriplesFactory.from_labeled_triples(labelled, create_inverse_triples=True)
        factory.to_path_binary(tmp_path)
    vocabulary, table = read_training_folder(tmp_path)
    assert {label: i for i, label in enumerate(vocabulary.entities)} == dict(factory.entity_to_id)
    assert {label: i for i, label in enumerate(vocabulary.relations)} == dict(factory.relation_to_id)
    assert table.ids.tolist() == factory.mapped_triples.tolist()
    assert table.train_index.tolist() == [0, 1, 2, 3]


def test_an_incomplete_training_folder_says_what_to_pass(tmp_path: Path) -> None:
    """Missing files are listed with the flags that replace them."""
    with pytest.raises(UnreadableInput, match=r"lacks entity_to_id\.tsv\.gz, .*pass --train, --entity-to-id"):
        read_training_folder(tmp_path)


def test_a_training_folder_of_labels_is_refused(tmp_path: Path) -> None:
    """numeric_triples holds ids under a header."""
    for name, text in [
        ("entity_to_id", "id\tlabel\n0\ta\n"),
        ("relation_to_id", "id\tlabel\n0\tr\n"),
        ("numeric_triples", "a\tr\ta\n"),
    ]:
        (tmp_path / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(MalformedTriple, match="expected the header head⇥relation⇥tail, found"):
        read_training_folder(tmp_path)


@needs_shared
@pytest.mark.parametrize(("model", "data"), [("conve-codex-s", "CoDEx-S"), ("conve-fb15k-237", "FB15k-237")])
def test_labels_and_numbers_of_one_data_set_are_the_same_triples(model: str, data: str) -> None:
    """The TSV of a data set and PyKEEN's numeric triples of it agree."""
    vocabulary, numeric = read_training_folder(SHARED / "models" / model / "training_triples")
    labelled = read_triples(SHARED / "data" / data / "train.txt", vocabulary)
    assert np.array_equal(np.unique(labelled.ids, axis=0), np.unique(numeric.ids, axis=0))
    test = SHARED / "data" / data / "test.txt"
    table = read_triples(test, vocabulary, skip_unknown=True)
    lines = [line for line in test.read_text().splitlines() if line.strip()]
    assert len(table.ids) + table.skipped == len(lines)
    for i in (0, len(table.ids) - 1):
        head, relation, tail = lines[table.train_index[i]].split("\t")
        expected = [vocabulary.entity_id(head), vocabulary.relation_id(relation), vocabulary.entity_id(tail)]
        assert table.ids[i].tolist() == expected


@needs_shared
def test_a_large_file_is_read_in_little_memory() -> None:
    """Of the text of 272,115 triples no more than a line is ever held beside what is made of it."""
    vocabulary, _ = read_training_folder(SHARED / "models" / "conve-fb15k-237" / "training_triples")
    path = SHARED / "data" / "FB15k-237" / "train.txt"
    table = read_triples(path, vocabulary)
    assert len(table.ids) == 272_115
    tracemalloc.start()
    try:
        read_triples(path, vocabulary)
        assert (
            tracemalloc.get_traced_memory()[1] < 2 * (table.ids.nbytes + table.train_index.nbytes) + 4 * MAX_LINE_BYTES
        )
    finally:
        tracemalloc.stop()


@needs_shared
def test_wordnet_labels_stay_labels(write: Write) -> None:
    """Entities that are numbers with leading zeros are not taken for ids, in either layout."""
    text = (SHARED / "data" / "WN18RR" / "train.txt").read_text()
    labels = sorted({field for line in text.splitlines() for field in line.split("\t")[::2]})
    for lines in (
        [f"{label}\t{i}" for i, label in enumerate(labels)],
        [f"{i}\t{label}" for i, label in enumerate(labels)],
    ):
        assert entities_of(write, "\n".join(lines)) == labels
