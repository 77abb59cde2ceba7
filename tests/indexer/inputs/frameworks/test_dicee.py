"""dicee's folders, with models made by its own classes (tests/fixtures/frameworks/make_dicee.py)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import read_model
from kgtrace_indexer.inputs.frameworks import carried_data
from kgtrace_indexer.inputs.model_reader import read_checkpoint
from kgtrace_store.errors import (
    DuplicateId,
    IdOutOfRange,
    KgtraceError,
    MalformedVocabulary,
    UnreadableInput,
    UnreadableModel,
    UnsupportedModel,
)
from tests.indexer.inputs.frameworks.checks import TRIPLES, assert_answers, assert_computes, said


def folder(models: Path, path: Path, name: str = "RotatE", *, polars: bool = False, **config: Any) -> Path:
    """Write a folder as dicee does, with the back end pandas or polars."""
    path.mkdir(exist_ok=True)
    shutil.copy(models / f"dicee-{name}.pt", path / "model.pt")
    (path / "configuration.json").write_text(json.dumps({"model": name, "normalization": None, **config}))
    np.save(path / "train_set.npy", TRIPLES.numpy())
    for kind, letter, count in (("entity", "e", 30), ("relation", "r", 5)):
        rows = [f"{letter}{i},{i}" if polars else f"{i},{letter}{i}" for i in range(count)]
        header = f"{kind},index" if polars else f",{kind}"
        (path / f"{kind}_to_idx.csv").write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize("name", ["TransE", "DistMult", "ComplEx", "RotatE"])
def test_computes_as_the_framework(models: Path, name: str, tmp_path: Path) -> None:
    """Scores and gradients are those of the framework's class."""
    model = read_model(folder(models, tmp_path, name), num_relations=5, embedding_dim=8)
    assert_computes(model, said("dicee")[name])
    assert read_checkpoint(tmp_path, model).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("polars", [False, True])
def test_answers(models: Path, polars: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built from the folder alone, which has labels and triples, and asked from the command line."""
    assert_answers(folder(models, tmp_path / "model", polars=polars), tmp_path, capsys, data=False)


def test_the_users_own_files(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are passed go before those in the folder; without either they are asked for."""
    model = folder(models, tmp_path / "model")
    (model / "train_set.npy").unlink()
    with pytest.raises(AssertionError, match="pass --train, --entity-to-id and --relation-to-id"):
        assert_answers(model, tmp_path, capsys, data=False)
    assert_answers(model, tmp_path, capsys)


def test_labels_with_commas(models: Path, tmp_path: Path) -> None:
    """Labels may have what CSV quotes: commas, quotes, line breaks; and there may be names."""
    path = folder(models, tmp_path)
    text = (path / "relation_to_idx.csv").read_text()
    (path / "relation_to_idx.csv").write_text(text.replace("r3", '"a, ""b""\nc"'))
    (tmp_path / "names.tsv").write_text("e1\tOne\n")
    data = carried_data(path, tmp_path / "names.tsv")
    assert data is not None
    vocabulary, table = data
    assert vocabulary.relations[3] == 'a, "b"\nc'
    assert vocabulary.entity_names == {1: "One"}
    assert (table.ids == TRIPLES.numpy()).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "Keci"}, "'Keci' of dicee, which is not read; read are TransE, DistMult, ComplEx, RotatE"),
        ({"normalization": "LayerNorm"}, "normalization 'LayerNorm', whose layers are not read"),
        ({"model": None}, "names no model"),
        ({"model": "TransE"}, "an entity has 8 numbers and a relation 4"),
    ],
)
def test_models_that_are_refused(models: Path, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A model that is not read is named."""
    with pytest.raises((UnsupportedModel, UnreadableModel), match=message):
        read_model(folder(models, tmp_path, **config))


def test_missing_table(models: Path, tmp_path: Path) -> None:
    """A table that is missing is named."""
    torch.save({"entity_embeddings.weight": torch.ones(3, 2)}, folder(models, tmp_path) / "model.pt")
    with pytest.raises(UnsupportedModel, match="is no RotatE of dicee: it lacks 'relation_embeddings"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (",name\n0,r0\n", MalformedVocabulary, "expected the columns relation and index, found ',name'"),
        (",relation\n0,r0\nx,r1\n", MalformedVocabulary, "line 3: expected label and id"),
        (",relation\n0,\n", MalformedVocabulary, "line 2: expected label and id"),
        (",relation\n0,r0\n0,r1\n", DuplicateId, "line 3: two relation labels have id 0"),
        (",relation\n0,r0\n1,r0\n", DuplicateId, "a label has two ids"),
        (",relation\n0,r0\n2,r1\n", IdOutOfRange, "are not 0..1"),
        (",relation\n0,r0\n", IdOutOfRange, "train_set.npy: row .* relation id"),
        ("", MalformedVocabulary, "found ''"),
        (",relation\n0," + "r" * 200_000, MalformedVocabulary, "field larger than field limit"),
    ],
)
def test_labels_that_are_refused(
    models: Path, text: str, error: type[KgtraceError], message: str, tmp_path: Path
) -> None:
    """Ids that leave gaps or mean two labels are named."""
    (folder(models, tmp_path) / "relation_to_idx.csv").write_text(text)
    with pytest.raises(error, match=message):
        carried_data(tmp_path, None)


def test_triples_that_are_refused(models: Path, tmp_path: Path) -> None:
    """An array that is none of triples is named."""
    path = folder(models, tmp_path) / "train_set.npy"
    for array in (np.ones((3, 2), np.int64), np.ones((0, 3), np.int64), np.ones((3, 3))):
        np.save(path, array)
        with pytest.raises(UnreadableInput, match=r"train_set.npy (holds|is truncated)"):
            carried_data(tmp_path, None)
