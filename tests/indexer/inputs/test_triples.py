"""Id maps, names and triples: every layout that is met in practice, and a named error for every other."""

import bz2
import gzip
import io
import lzma
import os
import sys
import threading
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kgtrace_indexer.inputs.id_maps import read_vocabulary
from kgtrace_indexer.inputs.text_files import MAX_LINE_BYTES
from kgtrace_indexer.inputs.training_folder import check_against_folder, read_folder_vocabulary, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store.errors import (
    DuplicateId,
    EmptyInput,
    IdOutOfRange,
    InputError,
    MalformedTriple,
    MalformedVocabulary,
    MissingExtra,
    UnknownEntity,
    UnknownRelation,
    UnreadableInput,
    VocabularyMismatch,
)
from kgtrace_store.vocabulary import Vocabulary

zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

SHARED = Path(os.environ.get("KGTRACE_SHARED", Path(__file__).parents[3].parent / "shared"))
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
        "id\tlabel\r\n0\tann\r\n\r\n1\tbob\r\n2\tcid",
        'id\tlabel\r\n0\tann\r\n1\t"bob"\r\n2\tcid\r\n',
        gzip.compress(b"id\tlabel\n0\tann\n1\tbob\n2\tcid\n", mtime=0),
    ],
    ids=[
        *("label id", "id label", "any order", "header", "other header", "named", "crlf", "bom", "blank"),
        *("header, crlf, open end", "header, crlf, quotes", "gzip"),
    ],
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
    ("content", "expected"),
    [
        ('0\t"lung\tcancer"\n1\tx\n', ["lung\tcancer", "x"]),
        ('0\t"lung\n\n cancer"\n1\tx\n', ["lung\n\n cancer", "x"]),
        ('0\t"a\r\nb"\n1\tx\n', ["a\r\nb", "x"]),
        ('0\t"a ""b""\tc"\n1\t""""\n', ['a "b"\tc', '"']),
        ('0\t"""\n""\n"""\n1\tx\n', ['"\n"\n"', "x"]),
        ("0\ta\r\n1\tb\n", ["a\r", "b"]),
        ("0\ta\rb\n1\tx\n", ["a\rb", "x"]),
        ('0\t5" pipe\n1\t6" pipe\n', ['5" pipe', '6" pipe']),
        ('0\t"abc\n1\tx\n', ['"abc', "x"]),
        ('0\t"abc\n1\t"xyz\n', ['"abc', '"xyz']),
        ('0\t"abc"d\n1\tx\n', ['"abc"d', "x"]),
        ('0\t"abc\n\n1\tx\n2\t"y"z\n', ['"abc', "x", '"y"z']),
    ],
)
def test_labels_under_a_header_are_quoted_as_in_csv(write: Write, content: str, expected: list[str]) -> None:
    """Tabs and line breaks in quotes belong to the label, CR where not every line ends in it; odd quotes stay."""
    assert entities_of(write, f"id\tlabel\n{content}") == expected


def test_quoted_labels_may_come_first(write: Write) -> None:
    """Quotes mean the same in either column."""
    content = 'label\tid\n"lung\tcancer"\t0\n"a\n""b"""\t1\n5" pipe\t2\n"x\t3\n'
    assert entities_of(write, content) == ["lung\tcancer", 'a\n"b"', '5" pipe', '"x']


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": lambda content: zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1}),
    "zip": lambda content: zipped({"t/t.tsv": content, "t/": b"", "__MACOSX/t/._t.tsv": b"\x00"}),
}


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of some files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_files_are_read(write: Write, kind: str) -> None:
    """Maps, names and triples alike, whatever the name of the file; one that is cut short is named as such."""
    pack = COMPRESSIONS[kind]
    entities, relations = write(pack(b"ann\t0\nbob\t1\ncid\t2\n")), write(pack(b"knows\t0\nlikes\t1\n"))
    vocabulary = read_vocabulary(entities, relations, write(pack(b"ann\tAnn Example\n")))
    assert (vocabulary.entities, vocabulary.entity_names) == (("ann", "bob", "cid"), {0: "Ann Example"})
    content = b"ann\tknows\tbob\n" * 5000 + b"bob\tlikes\tcid\n"
    assert len(read_triples(write(pack(content)), vocabulary).ids) == 5001
    with pytest.raises(EmptyInput):
        read_triples(write(pack(b"")), vocabulary)
    for damaged in (pack(content)[:-20], pack(content)[:30] + b"damage" + pack(content)[36:]):
        with pytest.raises(UnreadableInput, match=rf"truncated or damaged {kind} file after line "):
            read_triples(write(damaged), vocabulary)


def test_zstandard_without_its_library_says_which_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library is optional before Python 3.14."""
    monkeypatch.setitem(sys.modules, zstd.__name__, None)
    with pytest.raises(MissingExtra, match=r"pip install 'kgtrace\[zstd\]', or decompress it"):
        read_triples(write(zstd.compress(b"ann\tknows\tbob\n")), VOCABULARY)


def test_a_pipe_is_read_as_a_file(tmp_path: Path) -> None:
    """A stream can be read once, and not from its beginning again."""
    for content in (b"ann\tknows\tbob\n", gzip.compress(b"head\trelation\ttail\n0\t0\t1\n")):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        assert read_triples(path, VOCABULARY).ids.tolist() == [[0, 0, 1]]
        writer.join()
        path.unlink()


def test_archives_and_encodings_that_are_not_read_are_named(write: Write) -> None:
    """The message says what the file is and what to do."""
    two = zipped({"a.tsv": b"ann\tknows\tbob\n", "b.tsv": b""})
    encrypted = bytearray(zipped({"a.tsv": b"ann\tknows\tbob\n"}))
    encrypted[6] |= 1  # the flag before the data, and that in the directory
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    for content, message in (
        (two, "is a zip archive of 2 files, not of one: unpack it"),
        (bytes(encrypted), "cannot be unpacked here: .*password"),
        ("ann\tknows\tbob\n".encode("utf-16"), "line 1 is not UTF-8: it is UTF-16; convert it: iconv"),
        ("änn\tknows\tbob\n".encode("latin-1"), "line 1 is not UTF-8: .*; convert the file"),
        (b"ann\tknows\tbob\rbob\tlikes\tcid\r", "its lines end in CR alone: end them with LF"),
        (b"ann\tknows\tbob\r" * 100_000, "longer than .* its lines end in CR alone: end them with LF"),
    ):
        with pytest.raises(InputError, match=message):
            read_triples(write(content), VOCABULARY)


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


# PyKEEN's folder.

ODD_LABELS = [
    *("nan", "NA", "null", "None", "007", "1e5", "TRUE", '"quoted"', 'say "hi"', "5' end", '"', "a,b", "back\\slash"),
    *(
        "caf\u00e9",
        "cafe\u0301",
        "\u00a0nbsp",
        " lead",
        "trail ",
        " ",
        "#hash",
        "-",
        "--help",
        "-1",
        "id",
        "label",
        "0",
    ),
    *("lung\tcancer", "lung\ncancer", "lung\r\ncancer", "lung\rcancer", "cancer\r", 'a "b"\tc', '"abc', '\n"\n\t"'),
    *(
        "a\u2028b",
        "a\x85b",
        "a\x0bb",
        "a\x00b",
        "\x1b[31mred\x1b[0m",
        "\ufeffbom",
        "zero\u200bwidth",
        "日本",
        "escaped",
    ),
]


def test_odd_labels_of_pykeen_are_read_and_stored(tmp_path: Path) -> None:
    """What spreadsheets, CSV readers and terminals trip over comes back from PyKEEN's folder and from an index."""
    from pykeen.triples import TriplesFactory

    labelled = np.array([(a, "-[treats]->", b) for a, b in pairwise([*ODD_LABELS, ODD_LABELS[0]])], dtype=object)
    factory = TriplesFactory.from_labeled_triples(labelled)
    factory.to_path_binary(tmp_path)
    vocabulary, table = read_training_folder(tmp_path)
    assert sorted(vocabulary.entities) == sorted(ODD_LABELS)
    assert {label: i for i, label in enumerate(vocabulary.entities)} == dict(factory.entity_to_id)
    assert (table.ids == factory.mapped_triples.numpy()).all()
    vocabulary.write(tmp_path / "vocabulary")
    assert Vocabulary.read(tmp_path / "vocabulary") == vocabulary
    assert all(vocabulary.search_entities(label, 100)[0] >= 0 for label in ODD_LABELS)


def test_ids_are_the_labels_of_a_folder_without(tmp_path: Path, write: Write) -> None:
    """As a CoreTriplesFactory writes it; maps may be given for either kind, and names for both."""
    from pykeen.triples import CoreTriplesFactory

    triples = np.array([[0, 0, 1], [3, 1, 0]])
    CoreTriplesFactory.create(triples, num_entities=5, num_relations=2, create_inverse_triples=True).to_path_binary(
        tmp_path
    )
    vocabulary, table = read_training_folder(tmp_path)
    assert (vocabulary.entities, vocabulary.relations) == (("0", "1", "2", "3", "4"), ("0", "1"))
    assert table.ids.tolist() == triples.tolist()
    given = read_folder_vocabulary(tmp_path, relation_to_id=write("r\t0\ns\t1\n"), names=write("3\tthree\n"))
    assert (given.relations, given.entity_names) == (("r", "s"), {3: "three"})
    (tmp_path / "base.pth").write_bytes(b"")
    with pytest.raises(UnreadableInput, match="has no labels, and how many ids there are cannot be read"):
        read_training_folder(tmp_path)


def test_maps_that_contradict_the_folder_are_refused(tmp_path: Path, write: Write) -> None:
    """Labels with other ids; and where no label tells, or ids stand in the file, triples that are others."""
    from pykeen.triples import CoreTriplesFactory, TriplesFactory

    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(0, [30, 3, 30], (60, 3)), axis=0)
    labels = np.array([[f"e{h:02}", f"r{r}", f"e{t:02}"] for h, r, t in ids])
    labels = np.concatenate([labels, [[f"e{i:02}", f"r{i % 3}", f"e{i:02}"] for i in range(30)]])
    factory = TriplesFactory.from_labeled_triples(labels)
    factory.to_path_binary(tmp_path / "labelled")
    CoreTriplesFactory.create(factory.mapped_triples).to_path_binary(tmp_path / "core")
    train = write("".join("\t".join(row) + "\n" for row in labels.tolist()))
    entities, relations = list(factory.entity_to_id), list(factory.relation_to_id)

    def check(
        folder: str, entities: list[str], relations: list[str], source: Path = train, *, ids: bool = False
    ) -> None:
        vocabulary = Vocabulary(entities, relations)
        check_against_folder(tmp_path / folder, vocabulary, read_triples(source, vocabulary, ids=ids), source)

    for folder in ("labelled", "core"):
        check(folder, entities, relations)
        with pytest.raises(VocabularyMismatch, match=r"use the id maps .*it was trained with"):
            check(folder, entities[::-1], relations)
    with pytest.raises(
        VocabularyMismatch, match=r"relation 'r1' has id 0 in the id map given and 1 in .*\(2 of 3 differ"
    ):
        check("labelled", entities, ["r1", "r0", "r2"])
    swapped = write("".join(f"{29 - h}\t{r}\t{29 - t}\n" for h, r, t in factory.mapped_triples.tolist()))
    with pytest.raises(VocabularyMismatch, match=r"of the [0-9]+ triples of .* are among the"):
        check("labelled", entities, relations, swapped, ids=True)
    renamed = write("".join(f"x{h}\t{r}\tx{t}\n" for h, r, t in labels.tolist()))
    check("labelled", [f"x{label}" for label in entities], relations, renamed)
    part = write("".join("\t".join(row) + "\n" for row in labels[:20].tolist()))
    check("core", entities, relations, part)
    check("absent", entities[::-1], relations)


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
    with pytest.raises(MalformedTriple, match="is not three ids"):
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
