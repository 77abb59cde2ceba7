"""Id maps and names."""

import gzip
import os
import sys
import threading
from pathlib import Path

import pytest

from kgtrace_indexer.inputs.id_maps import read_vocabulary
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store.errors import (
    DuplicateId,
    EmptyInput,
    IdOutOfRange,
    InputError,
    MalformedVocabulary,
    MissingExtra,
    UnreadableInput,
)
from tests.indexer.inputs.text import COMPRESSIONS, VOCABULARY, Write, entities_of, zipped, zstd


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
