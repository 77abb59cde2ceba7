"""PyKEEN's folder ``training_triples``."""

import gzip
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kgtrace_indexer.inputs.training_folder import check_against_folder, read_folder_vocabulary, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store.errors import (
    MalformedTriple,
    UnreadableInput,
    VocabularyMismatch,
)
from kgtrace_store.vocabulary import Vocabulary
from tests.indexer.inputs.text import Write

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
