"""PyTorch Geometric's models, trained by its own classes (tests/fixtures/frameworks/make_pyg.py)."""

import sys
import types
from pathlib import Path

import pytest
import torch

from kgtrace_indexer import read_model, write_model
from kgtrace_indexer.inputs.model_reader import read_checkpoint
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_store.errors import KgtraceError, NonFinite, UnsupportedModel, VocabularyMismatch
from tests.indexer.inputs.frameworks.checks import assert_answers, assert_computes, said

CALLS = {
    "TransE-1": "TransE(p_norm=1)",
    "TransE-2": "PyG.TransE(p_norm=2.0)",
    "DistMult": "DistMult",
    "ComplEx": None,
    "RotatE": "RotatE( margin = 9 )",
}


@pytest.mark.parametrize("name", CALLS)
def test_computes_as_the_framework(models: Path, name: str, tmp_path: Path) -> None:
    """A state dict's scores and gradients are those of the framework's module; converted, it is the same model."""
    model = read_model(models / f"pyg-{name}.pt", interaction=CALLS[name], num_relations=5, embedding_dim=8)
    assert model.interaction == f"PyG.{name.partition('-')[0]}"
    assert_computes(model, said("pyg")[name])
    write_model(model, tmp_path)
    assert read_model(tmp_path, interaction=model.interaction).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", ["TransE-2", "RotatE"])
def test_a_whole_module_says_everything(models: Path, name: str) -> None:
    """Hyper-parameters come from the pickled module, which is not executed; contradictions are refused."""
    path = models / f"pyg-{name}.pkl"
    assert_computes(read_model(path), said("pyg")[name])
    assert read_model(path, interaction=CALLS[name]).interaction == read_model(path).interaction
    with pytest.raises(UnsupportedModel, match="not a TransE"):
        read_model(path, interaction="TransE(p_norm=1)")


@pytest.mark.parametrize("name", ["TransE-1", "ComplEx"])
def test_answers(models: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built and asked from the command line."""
    call = CALLS[name]
    flags = [] if call is None else ["--interaction", call]
    assert_answers(models / f"pyg-{name}.pt", tmp_path, capsys, flags=flags)


def test_checkpoints(models: Path) -> None:
    """A state dict is a checkpoint of a model of the same class and sizes, and of no other."""
    model = read_model(models / "pyg-TransE-2.pkl")
    state = read_checkpoint(models / "pyg-TransE-1.pt", model)
    assert state.modules == model.modules
    with pytest.raises(UnsupportedModel, match="node_emb_im"):
        read_checkpoint(models / "pyg-ComplEx.pt", model)


ENTITIES, RELATIONS = torch.ones(30, 8), torch.ones(5, 8)
BOTH = {"node_emb.weight": ENTITIES, "rel_emb.weight": RELATIONS}


@pytest.mark.parametrize(
    ("tensors", "interaction", "error", "message"),
    [
        (BOTH, None, UnsupportedModel, r"TransE or DistMult: pass --interaction 'TransE\(p_norm=1.0\)' or --inter"),
        (BOTH, "TransE", UnsupportedModel, r"does not record p_norm of its TransE: pass --interaction 'TransE\(p_n"),
        (BOTH, "TransE(p_norm=two)", UnsupportedModel, "has 'two' as p_norm of its TransE"),
        (BOTH, "TransE(p_norm=0)", UnsupportedModel, "p is 0 in the score of its PyG.TransE, must be positive"),
        (BOTH, "TransE(p=1)", UnsupportedModel, "has no 'p'; write 'TransE"),
        (BOTH, "TransE(1)", KgtraceError, "'1' is not key=value"),
        (BOTH, "OpenKE.TransE", UnsupportedModel, "names no model of PyG"),
        (BOTH, "ConvE", UnsupportedModel, "'ConvE' of PyTorch Geometric is not read; read are TransE, DistMult"),
        (BOTH, "ComplEx", UnsupportedModel, "is no ComplEx of PyTorch Geometric: it lacks 'node_emb_im.weight"),
        ({"node_emb.weight": ENTITIES}, "DistMult", UnsupportedModel, "it lacks 'rel_emb.weight'"),
        ({**BOTH, "lin.weight": RELATIONS}, None, UnsupportedModel, "'node_emb.weight, rel_emb.weight, lin.weight'"),
        ({**BOTH, "rel_emb.weight": torch.ones(5, 7)}, "DistMult", UnsupportedModel, "has 8 numbers and a relation 7"),
        ({**BOTH, "rel_emb.weight": torch.ones(5)}, "DistMult", UnsupportedModel, r"rel_emb.weight is of shape \(5,\)"),
        ({**BOTH, "node_emb_im.weight": torch.ones(29, 8)}, "RotatE(margin=1)", UnsupportedModel, "differ in length"),
        ({**BOTH, "rel_emb.weight": RELATIONS / 0}, "DistMult", NonFinite, "rel_emb.weight holds 40 NaN or infinite"),
        ({**BOTH, "rel_emb.weight": torch.ones(4, 8)}, "DistMult", VocabularyMismatch, "has 4 relations, but .* has 5"),
    ],
)
def test_refusals(
    tensors: dict[str, torch.Tensor], interaction: str | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    """What a state dict lacks is asked for by name; what does not fit is named."""
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(error, match=message):
        read_model(tmp_path / "model.pt", interaction=interaction, num_relations=5)


def test_width(models: Path) -> None:
    """The width that the user expects is checked."""
    with pytest.raises(UnsupportedModel, match="embeddings of 8 values, not 16"):
        read_model(models / "pyg-ComplEx.pt", embedding_dim=16)


def test_untrained_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that a whole module has frozen has no gradient."""
    module = types.ModuleType("torch_geometric.nn.kge.distmult")
    kind = type("DistMult", (torch.nn.Module,), {"__module__": module.__name__})
    module.DistMult = kind  # type: ignore[attr-defined]
    for package in ("torch_geometric", "torch_geometric.nn", "torch_geometric.nn.kge"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = kind()
    model.node_emb, model.rel_emb = torch.nn.Embedding(9, 4).requires_grad_(False), torch.nn.Embedding(3, 4)
    torch.save(model, tmp_path / "model.pkl")
    found = scoring_model(read_model(tmp_path / "model.pkl"), torch.device("cpu"))
    assert found.select(["all"]).parameters == {"rel_emb.weight"}
