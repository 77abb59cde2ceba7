"""PyKEEN's ``training_triples`` folder: two id maps, and the triples as ids."""

from pathlib import Path

import numpy as np

from kgtrace_indexer.inputs.id_maps import named, read_id_map, read_vocabulary
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_indexer.inputs.triples import TripleTable, read_triples
from kgtrace_store.errors import InputError, UnreadableInput, UnreadableModel, VocabularyMismatch
from kgtrace_store.vocabulary import Vocabulary

ENTITY_TO_ID = "entity_to_id.tsv.gz"
RELATION_TO_ID = "relation_to_id.tsv.gz"
NUMERIC_TRIPLES = "numeric_triples.tsv.gz"
BASE = "base.pth"
"""Its files."""

_IN_COMMON = 0.5
"""Share of the triples of the smaller of two sets that must be in the other one, too, if both are of one model."""


def read_training_folder(folder: Path) -> tuple[Vocabulary, TripleTable]:
    """Read PyKEEN's ``training_triples`` folder: two id maps and the triples as ids.

    Raises as :func:`read_folder_vocabulary` and :func:`read_triples` do.
    """
    vocabulary = read_folder_vocabulary(folder)
    return vocabulary, read_triples(folder / NUMERIC_TRIPLES, vocabulary, ids=True)


def read_folder_vocabulary(
    folder: Path,
    *,
    entity_to_id: Path | None = None,
    relation_to_id: Path | None = None,
    names: Path | None = None,
    lang: str = "en",
) -> Vocabulary:
    """Read the id maps of PyKEEN's ``training_triples`` folder, or in their place those given, and names.

    A folder without id maps is that of a ``CoreTriplesFactory``, whose triples have no labels: ids serve as labels.
    `names` and `lang` are as in `read_vocabulary`.

    Raises
    ------
    UnreadableInput
        The folder lacks files.
    InputError
        As :func:`read_vocabulary`.
    """
    paths = (entity_to_id or folder / ENTITY_TO_ID, relation_to_id or folder / RELATION_TO_ID)
    if has_labels(folder) or not (folder / NUMERIC_TRIPLES).is_file():
        missing = [path.name for path in (*paths, folder / NUMERIC_TRIPLES) if not path.is_file()]
        if missing:
            raise UnreadableInput(
                f"{folder} lacks {', '.join(missing)}; pass --train, --entity-to-id and --relation-to-id"
            )
    if None in (entity_to_id, relation_to_id) and not has_labels(folder):
        sizes = _sizes(folder)
        sources = (entity_to_id, "entity"), (relation_to_id, "relation")
        entities, relations = (
            tuple(map(str, range(size))) if path is None else read_id_map(path, noun)
            for (path, noun), size in zip(sources, sizes, strict=True)
        )
        return named(entities, relations, names, lang)
    return read_vocabulary(*paths, names, lang=lang)


def has_labels(folder: Path) -> bool:
    """Whether PyKEEN's ``training_triples`` folder has an id map, and so labels."""
    return any((folder / name).is_file() for name in (ENTITY_TO_ID, RELATION_TO_ID))


def check_against_folder(folder: Path, vocabulary: Vocabulary, table: TripleTable, source: Path) -> None:
    """Compare id maps and triples, read from `source`, with those that PyKEEN saved beside the model.

    Ids that were made anew are within the model's tables and mean something else. Files of the folder that are absent,
    or cannot be read, are compared with nothing.

    Raises
    ------
    VocabularyMismatch
        A label has another id there; or where labels do not tell, most of the triples are not there.
    """
    try:
        own = read_vocabulary(folder / ENTITY_TO_ID, folder / RELATION_TO_ID)
    except InputError:
        own = Vocabulary((), ())
    tables = (
        ("entity", own.entities, vocabulary.entities),
        ("relation", own.relations, vocabulary.relations),
    )
    for noun, theirs, ours in tables:
        ids = {label: i for i, label in enumerate(theirs)}
        if wrong := [(label, i) for i, label in enumerate(ours) if ids.get(label, i) != i]:
            label, i = wrong[0]
            raise VocabularyMismatch(
                f"{noun} {quote(label)} has id {i} in the id map given and {ids[label]} in {folder}, which was saved "
                f"with the model ({len(wrong):,} of {len(ours):,} differ): use the id maps it was trained with"
            )
    if table.labelled and all(tuple(theirs) == tuple(ours) for _, theirs, ours in tables):
        return
    path = folder / NUMERIC_TRIPLES
    try:
        trained = read_triples(path, vocabulary, ids=True).ids
    except InputError:
        return
    a, b = (np.unique(ids, axis=0) for ids in (trained, table.ids))
    common = len(a) + len(b) - len(np.unique(np.concatenate([a, b]), axis=0))
    if common < _IN_COMMON * min(len(a), len(b)):
        raise VocabularyMismatch(
            f"by the id maps given, {common:,} of the {len(b):,} triples of {source} are among the {len(a):,} of "
            f"{path}, saved with the model: use the id maps and the triples it was trained with"
        )


def _sizes(folder: Path) -> tuple[int, int]:
    """Number of entities and of relations, without inverses, in a folder without id maps."""
    from kgtrace_indexer.inputs.torch_files import open_archive  # imports torch, which is not needed elsewhere here

    try:
        with open_archive(folder / BASE) as archive:
            facts = archive.root if isinstance(archive.root, dict) else {}
    except UnreadableModel as e:
        raise UnreadableInput(
            f"{folder} has no labels, and how many ids there are cannot be read: {e}; "
            "pass --train, --entity-to-id and --relation-to-id"
        ) from e
    sizes = facts.get("num_entities"), facts.get("num_relations")
    if not all(type(size) is int and size > 0 for size in sizes):
        raise UnreadableInput(
            f"{folder / BASE} does not say how many entities and relations there are: "
            "pass --train, --entity-to-id and --relation-to-id"
        )
    return sizes  # type: ignore[return-value]
