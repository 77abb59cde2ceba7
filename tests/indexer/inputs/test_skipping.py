"""Triples that a file names are left out of the training triples; lines that name none are refused or counted."""

from pathlib import Path

import numpy as np
import pytest

from kgtrace_indexer.inputs.skipping import without
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_store.errors import BadRequest, EmptyInput, UnknownEntity
from kgtrace_store.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("ann", "bob", 'c "x"\ty'), ("knows", "likes"), {}, {})
TABLE = TripleTable(
    np.array([[0, 0, 1], [1, 0, 0], [0, 0, 1], [2, 1, 0], [0, 1, 2]], np.int32), np.array([0, 1, 3, 4, 6]), skipped=2
)


def listed(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_triples_are_left_out_with_all_their_copies(tmp_path: Path) -> None:
    """Others keep their rows; those left out are counted, also among the skipped lines. Quotes of CSV are undone."""
    skip = listed(tmp_path / "wrong.tsv", "ann\tknows\tbob", '"c ""x""\ty"\tlikes\tann')
    kept, warnings = without(TABLE, skip, VOCABULARY, skip_unknown=False)
    assert kept.ids.tolist() == [[1, 0, 0], [0, 1, 2]]
    assert kept.train_index.tolist() == [1, 6]
    assert (kept.left_out, kept.skipped, warnings) == (3, 5, [])


def test_a_line_that_names_no_training_triple_is_refused(tmp_path: Path) -> None:
    """With the labels, and how many there are: a list for other data must not pass."""
    skip = listed(tmp_path / "wrong.tsv", "ann\tknows\tbob", "bob\tlikes\tbob", "bob\tlikes\tann")
    with pytest.raises(BadRequest, match=r"names 'bob' 'likes' 'bob', which is no training triple \(2 of 3 are none\)"):
        without(TABLE, skip, VOCABULARY, skip_unknown=False)
    with pytest.raises(UnknownEntity, match=r"line 1.*'eve'"):
        without(TABLE, listed(skip, "eve\tlikes\tbob"), VOCABULARY, skip_unknown=False)


def test_such_lines_can_be_passed_over(tmp_path: Path) -> None:
    """They are counted, those of unknown labels as well."""
    skip = listed(tmp_path / "wrong.tsv", "eve\tlikes\tbob", "bob\tknows\tann", "bob\tlikes\tann")
    kept, (warning,) = without(TABLE, skip, VOCABULARY, skip_unknown=True)
    assert (len(kept.ids), kept.left_out) == (4, 1)
    assert warning == f"2 of 3 lines of {skip} name no training triple: they were passed over"


def test_something_must_be_left(tmp_path: Path) -> None:
    """An index of nothing is none."""
    one = TripleTable(TABLE.ids[:1], TABLE.train_index[:1], 0)
    with pytest.raises(EmptyInput, match="names all 1 training triples"):
        without(one, listed(tmp_path / "wrong.tsv", "ann\tknows\tbob"), VOCABULARY, skip_unknown=False)
