"""Triples in Parquet and Arrow files."""

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, strategies as st

from kgtrace_indexer.inputs import columnar
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store.errors import (
    BadRequest,
    EmptyInput,
    IdOutOfRange,
    InputError,
    MalformedTriple,
    MissingExtra,
    UnknownEntity,
    UnknownRelation,
    UnreadableInput,
)
from kgtrace_store.vocabulary import Vocabulary
from tests.indexer.inputs.text import VOCABULARY

NAMES = ["head", "relation", "tail"]
LABELS = {"head": ["ann", "bob"], "relation": ["knows", "likes"], "tail": ["bob", "cid"]}
STRINGS = (pa.string(), pa.large_string(), pa.string_view())
INTEGERS = (pa.int8(), pa.uint16(), pa.int32(), pa.uint64())

Writer = Callable[[pa.Table, Path], None]


def write_parquet(table: pa.Table, path: Path) -> None:
    """Row groups of two rows."""
    pa.parquet.write_table(table, path, row_group_size=2)


def write_arrow(table: pa.Table, path: Path) -> None:
    """Record batches of two rows."""
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_stream(table: pa.Table, path: Path) -> None:
    """The same without an index of the batches, as Hugging Face's data sets are."""
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_feather(table: pa.Table, path: Path) -> None:
    """Compressed, as pandas writes it."""
    pa.feather.write_feather(table, path, chunksize=2)


WRITERS: dict[str, tuple[str, Writer]] = {
    "parquet": ("t.parquet", write_parquet),
    "arrow": ("t.arrow", write_arrow),
    "stream": ("t.ARROW", write_stream),
    "feather": ("t.feather", write_feather),
}


@pytest.fixture(params=WRITERS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Write a table, or columns by name, and give the path of the file."""
    name, write = WRITERS[request.param]

    def save(columns: Any) -> Path:
        write(columns if isinstance(columns, pa.Table) else pa.table(columns), tmp_path / name)
        return tmp_path / name

    return save


def test_labels_and_ids_are_the_same_triples(save: Callable[[Any], Path]) -> None:
    """A column of strings holds labels, one of integers ids; the two may stand side by side."""
    for columns, labelled in (
        (LABELS, True),
        ({"head": [0, 1], "relation": [0, 1], "tail": [1, 2]}, False),
        ({**LABELS, "relation": [0, 1]}, True),
    ):
        table = read_triples(save(columns), VOCABULARY)
        assert table.ids.tolist() == [[0, 0, 1], [1, 1, 2]]
        assert table.train_index.tolist() == [0, 1]
        assert (table.ids.dtype, table.train_index.dtype) == (np.int32, np.int64)
        assert (table.skipped, table.labelled) == (0, labelled)


@pytest.mark.parametrize(
    "names",
    [
        ["Subject", "PREDICATE", "object"],
        ["s", "p", "o"],
        ["h", "r", "t"],
        ["source", "relation", "target"],
        ["from", "kind", "to"],
        ["0", "1", "2"],
    ],
)
def test_columns_have_names_of_many_habits(save: Callable[[Any], Path], names: list[str]) -> None:
    """Known names count in any order, beside any others; three of unknown names are taken in their order."""
    columns = dict(zip(names, LABELS.values(), strict=True))
    assert read_triples(save(columns), VOCABULARY).ids.tolist() == [[0, 0, 1], [1, 1, 2]]
    if names[0] not in ("from", "0"):
        mixed = {
            "weight": [0.5, 0.25],
            names[2]: LABELS["tail"],
            names[0]: LABELS["head"],
            names[1]: LABELS["relation"],
        }
        assert read_triples(save(mixed), VOCABULARY).ids.tolist() == [[0, 0, 1], [1, 1, 2]]


def test_integers_are_labels_where_labels_are_digits(save: Callable[[Any], Path]) -> None:
    """Nothing else would tell that ids were meant; ``--ids`` does."""
    vocabulary = Vocabulary(["2", "0", "1"], ["r"])
    path = save({"head": [2, 0], "relation": [0, 0], "tail": [0, 1]})
    assert read_triples(path, vocabulary).ids.tolist() == [[0, 0, 1], [1, 0, 2]]
    assert read_triples(path, vocabulary, ids=True).ids.tolist() == [[2, 0, 0], [0, 0, 1]]


def test_skipped_rows_keep_their_place_in_the_numbering(save: Callable[[Any], Path]) -> None:
    """Rows count from 0, skipped ones as well."""
    columns = {"head": ["eve", "ann", "ann", "bob"], "relation": ["knows"] * 4, "tail": ["bob", "bob", "dan", "cid"]}
    table = read_triples(save(columns), VOCABULARY, skip_unknown=True)
    assert (table.ids.tolist(), table.train_index.tolist(), table.skipped) == ([[0, 0, 1], [1, 0, 2]], [1, 3], 2)


def test_prefixes_name_labels_here_too(save: Callable[[Any], Path]) -> None:
    """As in text."""
    iris = Vocabulary(["http://e/ann", "http://e/bob"], ["http://e/knows"], prefixes={"e": "http://e/"})
    columns = {"head": ["e:ann", "e:eve"], "relation": ["e:knows"] * 2, "tail": ["http://e/bob"] * 2}
    for relations in (columns["relation"], [0, 0]):
        path = save({**columns, "relation": relations})
        assert read_triples(path, iris, skip_unknown=True).ids.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({**LABELS, "tail": ["bob", "dan"]}, UnknownEntity, "row 1, counted from 0: unknown entity 'dan'.*--skip-unkn"),
        ({**LABELS, "relation": ["knows", "x"]}, UnknownRelation, "row 1, counted from 0: unknown relation 'x'"),
        ({**LABELS, "relation": [0, 1], "tail": ["x", "bob"]}, UnknownEntity, "row 0, .*: unknown entity 'x'"),
        ({**LABELS, "head": ["ann", None]}, MalformedTriple, "row 1, counted from 0: the head is null"),
        ({**LABELS, "head": ["", "ann"]}, MalformedTriple, "row 0, counted from 0: the head is empty"),
        ({**LABELS, "tail": [0, None]}, MalformedTriple, "row 1, counted from 0: the tail is null"),
        ({**LABELS, "tail": [0, 3]}, IdOutOfRange, "row 1, counted from 0: tail id 3 is out of range: there are 3"),
        ({**LABELS, "relation": [-1, 0]}, IdOutOfRange, "row 0, counted from 0: relation id -1 is out of range"),
        ({**LABELS, "tail": [0.0, 1.0]}, MalformedTriple, "column 'tail' holds double: strings are labels"),
        ({**LABELS, "tail": [["bob"], ["cid"]]}, MalformedTriple, "column 'tail' holds list<.*>: strings are labels"),
        ({"head": ["ann"], "relation": ["knows"]}, MalformedTriple, "no columns of 'head', 'relation' are named tail"),
        ({**LABELS, "S": ["ann", "bob"]}, MalformedTriple, "2 columns of .*'S' are named head or subject"),
        ({"a": ["ann"], "b": ["knows"], "c": ["bob"], "d": [1]}, MalformedTriple, "no columns of .*: name one of them"),
        ({name: pa.array([], pa.string()) for name in NAMES}, EmptyInput, "holds no triple"),
    ],
)
def test_unusable_rows_are_named(
    save: Callable[[Any], Path], columns: Any, error: type[InputError], message: str
) -> None:
    """File, row and what is wrong with it, in one line."""
    path = save(columns)
    with pytest.raises(error, match=message) as raised:
        read_triples(path, VOCABULARY)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_all_unknown_is_refused(save: Callable[[Any], Path]) -> None:
    """Skipping every row is a mistake."""
    with pytest.raises(EmptyInput, match="no triple with known labels: all 2 were skipped"):
        read_triples(save({**LABELS, "relation": ["x", "y"]}), VOCABULARY, skip_unknown=True)


def test_columns_of_one_name_are_refused(save: Callable[[Any], Path]) -> None:
    """Their order says nothing."""
    table = pa.table([pa.array(column) for column in LABELS.values()], names=["x", "x", "x"])
    with pytest.raises(MalformedTriple, match="no columns of 'x', 'x', 'x' are named head"):
        read_triples(save(table), VOCABULARY)


def test_labels_are_no_ids(save: Callable[[Any], Path]) -> None:
    """Whatever ``--ids`` says."""
    with pytest.raises(BadRequest, match="the head column holds labels, not ids: leave --ids out"):
        read_triples(save(LABELS), VOCABULARY, ids=True)


def test_damage_is_named(save: Callable[[Any], Path]) -> None:
    """At every length; a file that is empty, or something else, is no file of its kind."""
    path = save({name: column * 50 for name, column in LABELS.items()})
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableInput, match=rf"{path.name} is not an? .*damaged: [^\n]+\Z"):
            read_triples(path, VOCABULARY)
    path.write_text("ann\tknows\tbob\n")
    with pytest.raises(UnreadableInput, match=r"is not an? (Parquet|Arrow) file, or damaged: "):
        read_triples(path, VOCABULARY)
    path.unlink()
    with pytest.raises(UnreadableInput, match=r"cannot read .*: No such file or directory"):
        read_triples(path, VOCABULARY)


def test_text_that_is_not_unicode_is_named(save: Callable[[Any], Path]) -> None:
    """Nothing but pyarrow's own check would find it."""
    broken = pa.array([b"\xff", b"ann"], pa.binary()).view(pa.string())
    with pytest.raises(UnreadableInput, match=r"damaged: .*UTF8"):
        read_triples(save({**LABELS, "head": broken}), VOCABULARY)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kgtrace\[parquet\]'"):
        read_triples(tmp_path / "t.parquet", VOCABULARY)


@given(data=st.data())
def test_any_labels_and_ids_survive(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of whatever type, in batches of any length, in columns of any order."""
    label = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    entities = data.draw(st.lists(label, min_size=1, max_size=20, unique=True))
    relations = data.draw(st.lists(label, min_size=1, max_size=5, unique=True))
    vocabulary = Vocabulary(entities, relations)
    entity, relation = st.integers(0, len(entities) - 1), st.integers(0, len(relations) - 1)
    triples = data.draw(st.lists(st.tuples(entity, relation, entity), min_size=1, max_size=30))
    columns = {}
    for role, (name, labels) in enumerate(zip(NAMES, (entities, relations, entities), strict=True)):
        ids = [triple[role] for triple in triples]
        ids_may_be_told = vocabulary.entity_ref("0") == vocabulary.relation_ref("0") == 0
        if ids_may_be_told and data.draw(st.booleans()):
            columns[name] = pa.array(ids, pa.int64()).cast(data.draw(st.sampled_from(INTEGERS)))
        else:
            columns[name] = pa.array([labels[i] for i in ids], pa.string()).cast(data.draw(st.sampled_from(STRINGS)))
        if columns[name].type != pa.string_view() and data.draw(st.booleans()):
            columns[name] = columns[name].dictionary_encode()
    name, write = data.draw(st.sampled_from(list(WRITERS.values())))
    path = tmp_path_factory.mktemp("columns") / name
    write(pa.table({name: columns[name] for name in data.draw(st.permutations(NAMES))}), path)
    table = read_triples(path, vocabulary)
    assert list(map(tuple, table.ids.tolist())) == triples
    assert table.train_index.tolist() == list(range(len(triples)))


@contextmanager
def counted() -> Iterator[pa.MemoryPool]:
    """Count what pyarrow allocates in the block."""
    kept = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(kept)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield pool
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(kept)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_memory_holds_a_chunk_of_labels(tmp_path: Path, ending: str) -> None:
    """However long the file is, and although it is one row group or one batch."""
    count, length = 20 * columnar.CHUNK + 1, 100
    vocabulary = Vocabulary([f"{i:0{length}}e" for i in range(100)], ["r" * length])
    ids = np.arange(count, dtype=np.int32) % 100
    labels = pa.array(vocabulary.entities).take(pa.array(ids))
    table = pa.table({"head": labels, "relation": pa.array(list(vocabulary.relations) * count), "tail": labels})
    path = tmp_path / f"t{ending}"
    if ending == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=count)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    del labels, table
    lengths = [len(chunk.ids) for chunk in columnar.ColumnFile(path, vocabulary, False).chunks()]
    assert lengths == [columnar.CHUNK] * 20 + [1]
    with counted() as pool:
        found = read_triples(path, vocabulary)
        python = tracemalloc.get_traced_memory()[1]
    assert found.ids[:, 0].tolist() == ids.tolist()
    text = 3 * count * length
    print(f"{text:,} bytes of text, pyarrow held {pool.max_memory():,}, Python {python:,}")
    assert pool.max_memory() < 4 * text / 20
    assert python < 3 * (found.ids.nbytes + found.train_index.nbytes)
