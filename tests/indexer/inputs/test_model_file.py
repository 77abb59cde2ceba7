"""Whole models that PyKEEN saved, and arguments about them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs.model_file import write_model
from kgtrace_indexer.inputs.model_reader import read_checkpoint, read_model
from kgtrace_store.errors import (
    NonFinite,
    UnreadableModel,
    UnsupportedModel,
    VocabularyMismatch,
)
from tests.indexer.inputs.pykeen_models import RELATIONS, assert_same_tensors, make_model

pytestmark = pytest.mark.usefixtures("quiet")


SHARED = Path(os.environ.get("KGTRACE_SHARED", Path(__file__).parents[3].parent / "shared"))
needs_shared = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason=f"no models under {SHARED}")


# Whole models.


def test_a_saved_folder_gives_pykeens_state_dict(conve: Any, saved: Path) -> None:
    """Tensors, counts and hyper-parameters of a PyKEEN folder are those of the model that was saved."""
    model = read_model(saved)
    assert_same_tensors(model, conve.state_dict())
    assert (model.interaction, model.num_entities, model.num_relations) == ("ConvE", 14, RELATIONS)
    assert model.inverse_triples
    assert model.loss == {"class": "BCEAfterSigmoidLoss", "reduction": "mean"}
    assert model.source == saved.name
    assert [path for path, _ in conve.named_modules()] == list(model.modules)
    assert model.modules["interaction.hr2d.0"]["eps"] == 1e-5
    assert model.modules["interaction.hr2d.2"]["kernel_size"] == [3, 3]
    assert model.modules["interaction"]["shape_info"] == {
        "class": "ConvEShapeInformation",
        "embedding_dim": 8,
        "input_channels": 1,
        "image_height": 2,
        "image_width": 4,
        "output_channels": 32,
        "kernel_height": 3,
        "kernel_width": 3,
    }


@pytest.mark.parametrize(
    ("name", "interaction"),
    [
        *[("transe", "TransE"), ("distmult", "DistMult"), ("complex", "ComplEx"), ("rotate", "RotatE")],
        *[("tucker", "TuckER"), ("rescal", "RESCAL"), ("simple", "Clamped"), ("transr", "TransR")],
        *[("ermlpe", "ERMLPE"), ("autosf", "AutoSF"), ("proje", "ProjE"), ("mure", "MuRE"), ("convkb", "ConvKB")],
    ],
)
def test_other_models_give_pykeens_state_dict(tmp_path: Path, name: str, interaction: str) -> None:
    """Any PyKEEN model with an interaction is read, whether or not it can be explained."""
    model = make_model(name, inverse=False)
    torch.save(model, tmp_path / "m.pkl")
    found = read_model(tmp_path / "m.pkl")
    assert_same_tensors(found, model.state_dict())
    assert found.interaction == interaction
    assert found.num_relations == RELATIONS
    assert not found.inverse_triples


@needs_shared
@pytest.mark.parametrize("name", ["conve-codex-s", "conve-fb15k-237"])
def test_trained_models_equal_torch_load(name: str) -> None:
    """The shared models give what PyTorch gives by running their pickle; so do their checkpoints."""
    folder = SHARED / "models" / name
    expected = torch.load(folder / "trained_model.pkl", weights_only=False).state_dict()
    model = read_model(folder)
    assert_same_tensors(model, expected)
    for path in sorted((folder / "checkpoints").iterdir()):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert_same_tensors(read_checkpoint(path, model), state)
        bare = read_model(path, num_relations=model.num_relations)
        assert bare.modules["interaction"] == model.modules["interaction"]
        assert bare.inverse_triples


def test_functions_and_their_arguments_are_named(tmp_path: Path) -> None:
    """Constrainers, normalizers and regularizers are recorded, so that they can be honoured or refused."""
    torch.save(make_model("transr"), tmp_path / "m.pkl")
    entity = read_model(tmp_path / "m.pkl").modules["entity_representations.0"]
    assert entity["normalizer"] is None
    assert entity["constrainer"] == {
        "class": "partial",
        "function": "pykeen.utils.clamp_norm",
        "args": [],
        "keywords": {"maxnorm": 1.0, "p": 1, "dim": -1},
    }
    torch.save(make_model("distmult"), tmp_path / "d.pkl")
    modules = read_model(tmp_path / "d.pkl").modules
    assert modules["entity_representations.0"]["constrainer"] == "torch.nn.functional.normalize"
    assert modules["relation_representations.0.regularizer"]["class"] == "LpRegularizer"


def test_losses_keep_their_scalars(tmp_path: Path) -> None:
    """Margin, temperature and the activation of a loss are recorded."""
    torch.save(make_model(loss="marginranking", loss_kwargs={"margin": 2.5}), tmp_path / "m.pkl")
    loss = read_model(tmp_path / "m.pkl").loss
    assert loss == {"class": "MarginRankingLoss", "reduction": "mean", "margin": 2.5, "margin_activation": "ReLU"}
    torch.save(make_model(loss="nssa"), tmp_path / "n.pkl")
    assert read_model(tmp_path / "n.pkl").loss["inverse_softmax_temperature"] == 1.0


def test_reading_never_imports_pykeen(saved: Path) -> None:
    """A model is read in a process that has not loaded PyKEEN, and does not load it."""
    code = (
        "import sys; from pathlib import Path; from kgtrace_indexer.inputs.model_reader import read_model; "
        f"read_model(Path({str(saved)!r})); sys.exit('pykeen' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_floats_become_float32(conve: Any, tmp_path: Path) -> None:
    """Half and double precision are read as float32, integers as they are."""
    state = {k: v.double() if v.is_floating_point() else v for k, v in conve.state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    model = read_model(tmp_path / "m.pt", num_relations=RELATIONS)
    assert_same_tensors(model, conve.state_dict())
    assert {t.dtype for t in model.tensors.values()} == {torch.float32, torch.int64}


def test_tied_and_non_persistent_tensors_follow_the_state_dict(tmp_path: Path) -> None:
    """Shared parameters appear under each name, and buffers outside the state dict under none."""
    model = make_model("distmult")
    model.entity_representations.append(model.entity_representations[0])
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    torch.save(model, tmp_path / "m.pkl")
    found = read_model(tmp_path / "m.pkl")
    assert_same_tensors(found, model.state_dict())
    write_model(found, tmp_path / "out")
    assert_same_tensors(read_model(tmp_path / "out"), {k: model.state_dict()[k] for k in sorted(model.state_dict())})


# Arguments.


def test_arguments_that_contradict_the_file_are_refused(saved: Path) -> None:
    """What the caller says of a whole model must be true."""
    assert read_model(saved, interaction="ConvE", embedding_dim=8, num_relations=RELATIONS).interaction == "ConvE"
    with pytest.raises(UnsupportedModel, match="is a ConvE, not a TransE"):
        read_model(saved, interaction="TransE")
    with pytest.raises(UnsupportedModel, match="embeddings of 8 values, not 100"):
        read_model(saved, embedding_dim=100)
    with pytest.raises(VocabularyMismatch, match="has 55 relations, but the relation map has 54"):
        read_model(saved, num_relations=54)


def test_non_finite_tensors_are_refused(tmp_path: Path, saved: Path, conve: Any) -> None:
    """NaN and infinity are counted and their tensor is named, also in checkpoints."""
    state = {k: v.clone() for k, v in conve.state_dict().items()}
    state["interaction.hr1d.0.bias"][:2] = torch.tensor([float("nan"), float("-inf")])
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(NonFinite, match=r"interaction\.hr1d\.0\.bias holds 2 NaN or infinite values of 8"):
        read_model(tmp_path / "m.pt", num_relations=RELATIONS)
    with pytest.raises(NonFinite, match=r"m\.pt: interaction\.hr1d\.0\.bias"):
        read_checkpoint(tmp_path / "m.pt", read_model(saved))


def test_a_model_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    """Tables must have as many rows as the model says."""
    model = make_model("distmult")
    model.num_entities = 15
    torch.save(model, tmp_path / "m.pkl")
    with pytest.raises(UnreadableModel, match=r"shape \(14, 8\), but the model says 15 rows"):
        read_model(tmp_path / "m.pkl")
