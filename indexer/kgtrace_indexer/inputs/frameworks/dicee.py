"""dicee's folders: ``model.pt`` and ``configuration.json``, with the labels and the training triples beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from kgtrace_indexer.inputs.frameworks.arrays import read_array, read_json
from kgtrace_indexer.inputs.frameworks.described import Named, Score
from kgtrace_indexer.inputs.frameworks.known import Framework, Known, StoredModel
from kgtrace_indexer.inputs.id_maps import named
from kgtrace_indexer.inputs.saved_objects import load, state_dict
from kgtrace_indexer.inputs.text_files import INTEGER, quote, text_lines
from kgtrace_indexer.inputs.torch_files import open_archive
from kgtrace_indexer.inputs.triples import TripleTable, out_of_range
from kgtrace_store.errors import (
    DuplicateId,
    IdOutOfRange,
    MalformedVocabulary,
    UnreadableInput,
    UnreadableModel,
    UnsupportedModel,
)
from kgtrace_store.vocabulary import Vocabulary

_MODEL, _CONFIG = "model.pt", "configuration.json"
_TRIPLES, _IDS = "train_set.npy", {"entity": "entity_to_idx.csv", "relation": "relation_to_idx.csv"}

_ENTITIES, _RELATIONS = "entity_embeddings.weight", "relation_embeddings.weight"

_EPSILON = 1e-6
"""PyTorch's `pairwise_distance` adds it to each coordinate."""


DICEE = Framework(
    title="dicee",
    prefix="dicee",
    models={
        "TransE": Known(
            Score("Translation", [_ENTITIES], [_RELATIONS], {"p": 2.0, "margin": 4.0, "eps": _EPSILON}),
        ),
        "DistMult": Known(Score("DistMult", [_ENTITIES], [_RELATIONS])),
        "ComplEx": Known(Score("ComplEx", [_ENTITIES], [_RELATIONS])),
        "RotatE": Known(Score("Rotation", [_ENTITIES], [_RELATIONS], {"p": 2.0, "margin": 6.0, "eps": _EPSILON})),
    },
)
"""dicee's margins are constants of its classes."""


def recognises(folder: Path) -> bool:
    """Return whether a folder is one of dicee's."""
    return (folder / _MODEL).is_file() and (folder / _CONFIG).is_file()


def find(folder: Path) -> StoredModel:
    """Read the model in a folder.

    Raises `UnreadableModel` for files that are damaged or foreign, `UnsupportedModel` for a model with layers between
    its tables and its score.
    """
    source, config = folder.absolute().name, read_json(folder / _CONFIG) or {}
    name = config.get("model")
    if not isinstance(name, str):
        raise UnreadableModel(f"{folder / _CONFIG} names no model")
    if (normalization := config.get("normalization")) not in (None, "None"):
        raise UnsupportedModel(
            f"{source} was trained with normalization {quote(normalization)}, whose layers are not read: train without"
        )
    with open_archive(folder / _MODEL) as archive:
        return StoredModel(DICEE, load(archive, state_dict(archive)), source, Named(name))


def training_data(folder: Path, names: Path | None, lang: str = "en") -> tuple[Vocabulary, TripleTable] | None:
    """Read labels and training triples; None if the folder lacks a file of them.

    Raises `InputError` for files that are damaged or contradict each other.
    """
    if not all((folder / file).is_file() for file in (_TRIPLES, *_IDS.values())):
        return None
    entities, relations = (_labels(folder / file, noun) for noun, file in _IDS.items())
    try:
        ids = read_array(folder / _TRIPLES, "iu")
    except UnreadableModel as e:
        raise UnreadableInput(str(e)) from e
    if ids.shape[1] != 3 or not len(ids):
        raise UnreadableInput(f"{folder / _TRIPLES} holds no triples of ids: its shape is {ids.shape}")
    if wrong := out_of_range(ids, len(entities), len(relations)):
        raise IdOutOfRange(f"{folder / _TRIPLES}: row {wrong[0]}: {wrong[1]}")
    table = TripleTable(ids.astype(np.int32), np.arange(len(ids)), 0, labelled=False)
    return named(entities, relations, names, lang), table


def _labels(path: Path, noun: str) -> tuple[str, ...]:
    """Read labels in the order of their ids from CSV with a column of labels, named `noun`, and one of ids."""
    rows = csv.reader(f"{line}\n" for _, line in text_lines(path))
    labels: dict[int, str] = {}
    try:
        header = next(rows, [])
        if len(header) != 2 or header.count(noun) != 1:
            raise MalformedVocabulary(f"{path}: expected the columns {noun} and index, found {quote(','.join(header))}")
        column = header.index(noun)
        for row in rows:
            if len(row) != 2 or not row[column] or not INTEGER.fullmatch(row[1 - column]):
                raise MalformedVocabulary(f"{path} line {rows.line_num}: expected label and id, found {quote(row)}")
            if (i := int(row[1 - column])) in labels:
                raise DuplicateId(f"{path} line {rows.line_num}: two {noun} labels have id {i}")
            labels[i] = row[column]
    except csv.Error as e:
        raise MalformedVocabulary(f"{path} line {rows.line_num}: {e}") from e
    if sorted(labels) != list(range(len(labels))):
        raise IdOutOfRange(f"{path}: the ids of its {len(labels)} labels are not 0..{len(labels) - 1}")
    if len(set(labels.values())) < len(labels):
        raise DuplicateId(f"{path}: a label has two ids")
    return tuple(labels[i] for i in range(len(labels)))
