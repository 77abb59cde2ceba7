"""Models of PyKEEN 1.5.0, which have no interaction (tests/fixtures/frameworks/make_pykeen15.py)."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from kgtrace_indexer import read_model, write_model
from kgtrace_indexer.inputs.model_reader import read_checkpoint
from kgtrace_store.errors import UnsupportedModel
from tests.indexer.inputs.frameworks.checks import assert_answers, assert_computes, said

INVERSE = ("ComplEx", "ConvE", "TuckER")


@pytest.mark.parametrize("name", ["TransE", "DistMult", "RotatE", *INVERSE])
def test_computes_as_the_framework(models: Path, name: str, tmp_path: Path) -> None:
    """A whole model's scores of tails and heads, and gradients, are its own; so are those of its state dict."""
    path = models / f"pykeen15-{name}.pkl"
    model = read_model(path, num_relations=5)
    assert (model.interaction, model.inverse_triples) == (name, name in INVERSE)
    assert model.loss
    assert_computes(model, said("pykeen15")[name])
    assert read_checkpoint(path, model).fingerprint() == model.fingerprint()
    write_model(model, tmp_path)
    assert read_model(tmp_path).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", ["TransE", "ConvE"])
def test_answers(models: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built and asked from the command line."""
    assert_answers(models / f"pykeen15-{name}.pkl", tmp_path, capsys)


def test_a_state_dict_of_conve(models: Path, tmp_path: Path) -> None:
    """The tensors of a ConvE say all that its score needs."""
    original = read_model(models / "pykeen15-ConvE.pkl")
    before = {
        "entity_representations.0": "entity_embeddings",
        "entity_representations.1": "bias_term",
        "relation_representations.0": "relation_embeddings",
        "interaction.hr2d.0": "bn0",
        "interaction.hr2d.2": "conv1",
        "interaction.hr2d.3": "bn1",
        "interaction.hr1d.0": "fc",
        "interaction.hr1d.2": "bn2",
    }
    state = {}
    for name, tensor in original.tensors.items():
        if name.startswith("regularizer."):
            continue
        (path,) = (path for path in before if name.startswith(f"{path}."))
        state[before[path] + name.removeprefix(path)] = tensor
    torch.save(state, tmp_path / "state.pt")
    assert_computes(read_model(tmp_path / "state.pt", num_relations=5), said("pykeen15")["ConvE"])


def test_refusals(tmp_path: Path) -> None:
    """A model of another class, or without normalizers, is named."""
    for name, message in (
        ("KG2E", "holds a 'KG2E' of PyKEEN without an interaction"),
        ("TransE", "does not describe its"),
    ):
        kind = type(name, (nn.Module,), {"__module__": "pykeen.models.unimodal.of_some_time"})
        with pytest.MonkeyPatch.context() as patch:
            module = types.ModuleType("pykeen.models.unimodal.of_some_time")
            setattr(module, name, kind)
            patch.setitem(sys.modules, module.__name__, module)
            model = kind()
            model.entity_embeddings = nn.Embedding(3, 2)
            torch.save(model, tmp_path / "model.pkl")
        with pytest.raises(UnsupportedModel, match=message):
            read_model(tmp_path / "model.pkl")
