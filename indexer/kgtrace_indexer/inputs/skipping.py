"""Training triples that are left out of an index because a file names them: wrong ones, as people found them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from kgtrace_indexer.inputs.triples import TripleTable, read_triples
from kgtrace_store.errors import BadRequest, EmptyInput
from kgtrace_store.vocabulary import Vocabulary


def without(
    table: TripleTable, skip: Path, vocabulary: Vocabulary, *, skip_unknown: bool
) -> tuple[TripleTable, list[str]]:
    """Return a table of training triples without those that a file of labels names, and what to tell people about it.

    All copies of a triple are left out; rows keep their ``train_index``. With `skip_unknown`, lines of unknown labels
    and of triples that the table lacks are counted in a warning instead of being refused.

    Raises
    ------
    BadRequest
        The file names a triple that is not in the table, and `skip_unknown` is off.
    EmptyInput
        No training triple is left.
    Whatever `read_triples` raises.
    """
    listed = read_triples(skip, vocabulary, skip_unknown=skip_unknown)
    lines = [tuple(triple) for triple in listed.ids.tolist()]
    named = set(lines)
    columns = zip(table.ids.T, listed.ids.T, strict=True)
    rows = np.flatnonzero(np.logical_and.reduce([np.isin(column, wanted) for column, wanted in columns]))
    gone = np.array([row for row in rows if tuple(table.ids[row].tolist()) in named], np.int64)
    absent = named.difference(map(tuple, table.ids[gone].tolist()))
    if absent and not skip_unknown:
        head, relation, tail = next(triple for triple in lines if triple in absent)
        entities, relations = vocabulary.entities, vocabulary.relations
        raise BadRequest(
            f"{skip} names {entities[head]!r} {relations[relation]!r} {entities[tail]!r}, which is no training triple "
            f"({len(absent)} of {len(named)} are none); --skip-unknown passes over such lines"
        )
    if len(gone) == len(table.ids):
        raise EmptyInput(f"{skip} names all {len(gone)} training triples: none is left to index")
    passed_over = listed.skipped + sum(triple in absent for triple in lines)
    kept = replace(
        table,
        ids=np.delete(table.ids, gone, 0),
        train_index=np.delete(table.train_index, gone),
        skipped=table.skipped + len(gone),
        left_out=len(gone),
    )
    count = listed.skipped + len(lines)
    said = f"{passed_over:,} of {count:,} lines of {skip} name no training triple: they were passed over"
    return kept, [said] if passed_over else []
