"""Files of training triples, of labels or ids."""

import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kgtrace_indexer.inputs.id_maps import read_vocabulary
from kgtrace_indexer.inputs.text_files import MAX_LINE_BYTES
from kgtrace_indexer.inputs.training_folder import read_folder_vocabulary, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store.errors import (
    EmptyInput,
    IdOutOfRange,
    InputError,
    MalformedTriple,
    UnknownEntity,
    UnknownRelation,
    UnreadableInput,
)
from kgtrace_store.vocabulary import Vocabulary
from tests.indexer.inputs.text import SHARED, VOCABULARY, Write, entities_of, needs_shared


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


def test_quotes_that_pykeen_undoes_are_undone(write: Write) -> None:
    """A label is taken as it is; where it is not known so, in the quotes of CSV, which may hold a tab."""
    vocabulary = Vocabulary(["ann", '"bob"', "c\td", 'say "hi"'], ["r"])
    content = 'ann\tr\t"bob"\n"ann"\t"r"\t"c\td"\n"say ""hi"""\tr\tsay "hi"\n'
    assert read_triples(write(content), vocabulary).ids.tolist() == [[0, 0, 1], [0, 0, 2], [3, 0, 3]]
    with pytest.raises(UnknownEntity, match="unknown entity '\"zoe\"'"):
        read_triples(write('"zoe"\tr\tann\n'), vocabulary)


def test_a_file_of_ids_is_read_when_its_header_or_the_caller_says_so(write: Write) -> None:
    """Without either ids are unknown labels, and the message says how to say that they are ids."""
    content = "0\t0\t1\n1\t1\t2\n"
    for table in (
        read_triples(write(content), VOCABULARY, ids=True),
        read_triples(write("head\trelation\ttail\n" + content), VOCABULARY, ids=True),
        read_triples(write("head\trelation\ttail\n" + content), VOCABULARY),
    ):
        assert (table.ids.tolist(), table.labelled) == ([[0, 0, 1], [1, 1, 2]], False)
    with pytest.raises(UnknownEntity, match="if the lines hold ids, say so with --ids"):
        read_triples(write(content), VOCABULARY)
    with pytest.raises(EmptyInput, match="if the lines hold ids, say so with --ids"):
        read_triples(write(content), VOCABULARY, skip_unknown=True)
    with pytest.raises(UnknownEntity, match=r"unknown entity '0'; digits are labels here, .* leaves such lines out"):
        read_triples(write(content), Vocabulary(["7", "ann"], ["0"]))
    with pytest.raises(IdOutOfRange, match="line 2: ids 3, 0, 0 are out of range"):
        read_triples(write("0\t0\t0\n3\t0\t0\n"), VOCABULARY, ids=True)


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
    vocabulary = read_folder_vocabulary(SHARED / "models" / "conve-fb15k-237" / "training_triples")
    tracemalloc.start()
    try:
        table = read_triples(SHARED / "data" / "FB15k-237" / "train.txt", vocabulary)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(table.ids) == 272_115
    assert peak < 2 * (table.ids.nbytes + table.train_index.nbytes) + 4 * MAX_LINE_BYTES


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
