"""Files that hold no model, or one that attacks its reader."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs.model_file import write_model
from kgtrace_indexer.inputs.model_reader import read_model
from kgtrace_store.errors import (
    UnreadableModel,
    UnsupportedModel,
)
from tests.indexer.inputs.pykeen_models import RELATIONS, assert_same_tensors, make_model

pytestmark = pytest.mark.usefixtures("quiet")


def test_paths_that_hold_no_model_say_what_was_expected(tmp_path: Path, converted: Path) -> None:
    """Empty folders, missing files and half of a converted folder are named."""
    (tmp_path / "empty").mkdir()
    for path, message in [
        (tmp_path / "empty", r"neither PyKEEN's trained_model\.pkl nor model\.json"),
        (tmp_path / "nothing.pt", "No such file"),
        (converted / "model.safetensors", "pass its folder"),
        (converted / "model.json", "pass its folder"),
    ]:
        with pytest.raises(UnreadableModel, match=message):
            read_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds 'list'"),
        (3, "holds 'int'"),
        ({}, "a mapping with keys ''"),
        ({"weights": {"a": torch.ones(1)}}, "a mapping with keys 'weights'"),
        ({"a": torch.ones(1), "b": "text"}, "entry 'b' is 'str', not a tensor"),
        (torch.ones(1), "holds 'StoredTensor'"),
    ],
    ids=str,
)
def test_archives_without_a_model_say_what_they_hold(tmp_path: Path, content: object, message: str) -> None:
    """Anything else that torch.save wrote is named, with what was expected."""
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UnreadableModel, match="expected a PyKEEN model, a state dict, or") as error:
        read_model(tmp_path / "m.pt")
    assert message in str(error.value)


class Payload:
    """Would make a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_payload_inside_a_model_does_not_run(tmp_path: Path) -> None:
    """A model with code hidden in its attributes gives the same tensors, and the code stays where it is."""
    model, marker = make_model(), tmp_path / "marker"
    expected = model.state_dict()
    model.payload = Payload(marker)
    model.interaction._hidden = [Payload(marker)]
    torch.save(model, tmp_path / "m.pkl")
    assert_same_tensors(read_model(tmp_path / "m.pkl"), expected)
    assert not marker.exists()


@pytest.mark.parametrize("place", ["root", "state dict", "interaction", "parameter", "count"])
def test_a_payload_in_place_of_data_is_refused(tmp_path: Path, conve: Any, place: str) -> None:
    """Code where a model, module, tensor or number belongs is refused by name and does not run."""
    marker = tmp_path / "marker"
    payload: Any = Payload(marker)
    content: Any = make_model()
    match place:
        case "root":
            content = payload
        case "state dict":
            content = {**conve.state_dict(), "interaction.hr2d.0.weight": payload}
        case "interaction":
            content._modules["interaction"] = payload
        case "parameter":
            content._parameters["weight"] = payload
        case "count":
            content.num_entities = payload
    torch.save(content, tmp_path / "m.pkl")
    with pytest.raises((UnreadableModel, UnsupportedModel), match=r"m\.pkl"):
        read_model(tmp_path / "m.pkl", num_relations=RELATIONS)
    assert not marker.exists()


def test_a_module_that_contains_itself_is_refused(tmp_path: Path) -> None:
    """A cycle in the module tree ends in an error, not in a loop."""
    model = make_model()
    model._modules["again"] = model
    torch.save(model, tmp_path / "m.pkl")
    with pytest.raises(UnreadableModel, match="one that contains itself"):
        read_model(tmp_path / "m.pkl")


def test_a_module_tree_that_doubles_is_refused(tmp_path: Path) -> None:
    """Forty modules, each twice in the next, are a trillion in the state dict."""
    module = torch.nn.Linear(1, 1)
    for _ in range(40):
        module = torch.nn.Sequential(module, module)
    torch.save(module, tmp_path / "m.pkl")
    with pytest.raises(UnreadableModel, match="more than 10000"):
        read_model(tmp_path / "m.pkl")


def test_a_table_under_very_many_names_is_refused(tmp_path: Path) -> None:
    """Names that share one tensor cannot multiply a file in memory."""
    table = torch.ones(1000, 100)
    torch.save({f"t{i}": table for i in range(50)}, tmp_path / "m.pt")
    with pytest.raises(UnreadableModel, match="too many share their data"):
        read_model(tmp_path / "m.pt", interaction="TransE", num_relations=1)


def test_attributes_are_bounded(tmp_path: Path) -> None:
    """Huge or deep attributes are left out rather than carried along."""
    model = make_model("distmult")
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    model.deep, model.wide, model.number, model.scale = deep, [0] * 200_000, 10**5000, float("inf")
    torch.save(model, tmp_path / "m.pkl")
    root = read_model(tmp_path / "m.pkl").modules[""]
    assert {"deep", "wide", "number"}.isdisjoint(root)
    write_model(read_model(tmp_path / "m.pkl"), tmp_path / "out")


def test_unusable_parameters_are_named(tmp_path: Path) -> None:
    """Sparse and complex parameters are refused by name."""
    model = make_model("distmult")
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    torch.save(model, tmp_path / "sparse.pkl")
    with pytest.raises(UnsupportedModel, match=r"'adjacency' is made by 'torch\._utils\._rebuild_sparse_tensor'"):
        read_model(tmp_path / "sparse.pkl")
    model.adjacency = torch.ones(3, dtype=torch.complex64)
    torch.save(model, tmp_path / "complex.pkl")
    with pytest.raises(UnsupportedModel, match="'adjacency' is complex"):
        read_model(tmp_path / "complex.pkl")


def test_colliding_and_unprintable_names_are_refused(tmp_path: Path) -> None:
    """A name stands for one tensor and can be shown."""
    model = make_model("distmult")
    model._parameters["entity_representations.0._embeddings.weight"] = torch.nn.Parameter(torch.ones(14, 8))
    torch.save(model, tmp_path / "m.pkl")
    with pytest.raises(UnreadableModel, match="two tensors named"):
        read_model(tmp_path / "m.pkl")
    torch.save({"a\x1b[2Jb": torch.ones(1)}, tmp_path / "n.pt")
    with pytest.raises(UnreadableModel, match="unprintable name"):
        read_model(tmp_path / "n.pt", interaction="TransE", num_relations=1)


def test_models_without_an_interaction_are_named(tmp_path: Path) -> None:
    """A module that is no PyKEEN model, or one without an interaction, is unsupported."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "l.pt")
    with pytest.raises(UnsupportedModel, match="holds a 'Linear', which is not a PyKEEN model with an interaction"):
        read_model(tmp_path / "l.pt")
    torch.save(make_model("cooccurrencefiltered"), tmp_path / "c.pkl")
    with pytest.raises(UnsupportedModel, match="'CooccurrenceFilteredModel'"):
        read_model(tmp_path / "c.pkl")
