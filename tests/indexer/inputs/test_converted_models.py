"""Models converted to safetensors, and read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs.model_file import write_model
from kgtrace_indexer.inputs.model_reader import read_model
from kgtrace_store.errors import (
    SchemaTooNew,
    StorageFailed,
    UnreadableModel,
)
from tests.indexer.inputs.pykeen_models import make_model

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_converted_model_is_the_same_model(tmp_path: Path, saved: Path) -> None:
    """Writing and reading keeps every tensor and fact, and the fingerprint."""
    model = read_model(saved)
    write_model(model, tmp_path / "a" / "b")
    found = read_model(tmp_path / "a" / "b")
    assert found.fingerprint() == model.fingerprint()
    assert {k: v.tolist() for k, v in found.tensors.items()} == {k: v.tolist() for k, v in model.tensors.items()}
    for field in ("interaction", "num_entities", "num_relations", "inverse_triples", "modules", "loss", "source"):
        assert getattr(found, field) == getattr(model, field)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["model.json", "model.safetensors"]


def test_converting_again_replaces(tmp_path: Path, saved: Path) -> None:
    """A folder can be written twice, and holds the second model."""
    torch.save(make_model("transe"), tmp_path / "t.pkl")
    for path in (saved, tmp_path / "t.pkl"):
        write_model(read_model(path), tmp_path / "out")
    assert read_model(tmp_path / "out").interaction == "TransE"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "was not written by kgtrace"),
        ({"num_entities": "14"}, "field 'num_entities' is missing or wrong"),
        ({"modules": []}, "field 'modules' is missing or wrong"),
        ({"modules": {"interaction": 3}}, "field 'modules' is missing or wrong"),
        ({"schema_version": "1"}, "has schema version"),
        ({"num_relations": 54}, "do not belong together"),
        ({"fingerprint": "0" * 64}, "do not belong together"),
    ],
    ids=str,
)
def test_changed_facts_are_refused(converted: Path, change: dict[str, Any], message: str) -> None:
    """A model.json that was edited, or is of something else, is named."""
    facts = json.loads((converted / "model.json").read_text())
    (converted / "model.json").write_text(json.dumps(facts | change))
    with pytest.raises(UnreadableModel) as error:
        read_model(converted)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", '"kgtrace-model"', "[" * 100_000], ids=range(7))
def test_foreign_json_is_refused(converted: Path, text: str) -> None:
    """A model.json that is not ours is an unreadable model."""
    (converted / "model.json").write_text(text)
    with pytest.raises(UnreadableModel, match=r"model\.json"):
        read_model(converted)


def test_a_newer_schema_is_refused(converted: Path) -> None:
    """A folder of a later version says so."""
    facts = json.loads((converted / "model.json").read_text())
    (converted / "model.json").write_text(json.dumps(facts | {"schema_version": 99}))
    with pytest.raises(SchemaTooNew, match="schema version 99; this kgtrace reads up to 1"):
        read_model(converted)


def test_broken_safetensors_are_refused(converted: Path, saved: Path, tmp_path: Path) -> None:
    """A truncated, missing or swapped safetensors file is named with what to do."""
    path = converted / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableModel, match=r"truncated or damaged: .*; convert the model again"):
            read_model(converted)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UnreadableModel, match="do not belong together"):
        read_model(converted)
    path.unlink()
    with pytest.raises(UnreadableModel, match="is missing; convert the model again"):
        read_model(converted)


def test_writing_where_nothing_can_be_written_is_named(tmp_path: Path, saved: Path) -> None:
    """A path that cannot be a folder is a storage error, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="file"):
        write_model(read_model(saved), tmp_path / "file" / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_leaves_the_old_model(converted: Path, tmp_path: Path) -> None:
    """Running out of space while writing is named, and the folder still holds the model it held."""
    torch.save(make_model("transe"), tmp_path / "t.pkl")
    (converted / "model.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageFailed, match="No space left on device"):
        write_model(read_model(tmp_path / "t.pkl"), converted)
    assert read_model(converted).interaction == "ConvE"


def test_converted_files_may_be_read_by_others(converted: Path) -> None:
    """A server under another account can read what a build wrote, as the umask allows."""
    modes = {path.stat().st_mode & 0o777 for path in converted.iterdir()}
    (converted / "plain").touch()
    assert modes == {(converted / "plain").stat().st_mode & 0o777}
