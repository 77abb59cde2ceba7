"""TorchKGE's models, trained by its own classes (tests/fixtures/frameworks/make_torchkge.py)."""

from pathlib import Path

import pytest
import torch

from kgtrace_indexer import read_model
from kgtrace_store.errors import UnsupportedModel
from tests.indexer.inputs.frameworks.checks import assert_answers, assert_computes, said

CALLS = {
    "TransE-L1": "TransE(dissimilarity_type=L1)",
    "TransE-L2": "TransEModel(dissimilarity_type='L2')",
    "DistMult": "TorchKGE.DistMult",
    "RESCAL": None,
    "ComplEx": None,
}


@pytest.mark.parametrize("name", CALLS)
def test_computes_as_the_framework(models: Path, name: str) -> None:
    """A state dict's scores and gradients are those of the framework's module."""
    model = read_model(models / f"torchkge-{name}.pt", interaction=CALLS[name], num_relations=5, embedding_dim=8)
    assert model.interaction == f"TorchKGE.{name.partition('-')[0]}"
    assert_computes(model, said("torchkge")[name])


def test_a_whole_module_says_everything(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The distance comes from the pickled module, which is not executed."""
    path = models / "torchkge-TransE-L1.pkl"
    assert_computes(read_model(path), said("torchkge")["TransE-L1"])
    with pytest.raises(UnsupportedModel, match=r"is a TransE\(dissimilarity_type=L1\) of TorchKGE, not a TransE\("):
        read_model(path, interaction=CALLS["TransE-L2"])
    assert_answers(path, tmp_path, capsys)


def test_answers(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built and asked from the command line."""
    flags = ["--interaction", "TransE(dissimilarity_type=L2)"]
    assert_answers(models / "torchkge-TransE-L2.pt", tmp_path, capsys, flags=flags)


@pytest.mark.parametrize(
    ("names", "interaction", "message"),
    [
        (["ent_emb", "rel_emb"], None, r"TransE or DistMult: pass --interaction 'TransE\(dissimilarity_type=L1\)' or"),
        (["ent_emb", "rel_emb"], "TransE", r"does not record dissimilarity_type .* \(dissimilarity_type is L1 or L2\)"),
        (["ent_emb", "rel_emb"], "TransE(dissimilarity_type=torus_L1)", "has 'torus_L1' as dissimilarity_type"),
        (["ent_emb", "rel_emb"], "TorusEModel", "'TorusEModel' of TorchKGE is not read; read are TransE, DistMult"),
        (["ent_emb", "rel_emb", "norm_vect"], None, "of none of its models that are read"),
        (["ent_emb"], "DistMult", "it lacks 'rel_emb.weight'"),
        (["ent_emb", "rel_mat"], None, "an entity has 8 numbers and a relation 8"),
    ],
)
def test_refusals(names: list[str], interaction: str | None, message: str, tmp_path: Path) -> None:
    """What a state dict lacks is asked for by name; what is not read is named."""
    torch.save({f"{name}.weight": torch.ones(5, 8) for name in names}, tmp_path / "model.pt")
    with pytest.raises(UnsupportedModel, match=message):
        read_model(tmp_path / "model.pt", interaction=interaction)
