"""State dicts and checkpoints."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs.conve_shape import infer_shape
from kgtrace_indexer.inputs.model_file import write_model
from kgtrace_indexer.inputs.model_reader import read_checkpoint, read_model
from kgtrace_store.errors import (
    UnreadableModel,
    UnsupportedModel,
    VocabularyMismatch,
)
from tests.indexer.inputs.pykeen_models import RELATIONS, assert_same_tensors, make_model

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", None])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_state_dict_gives_the_same_model(tmp_path: Path, wrap: str | None, batch_norm: bool) -> None:
    """The hyper-parameters that a ConvE's tensors imply are those it was made with."""
    pykeen = make_model(apply_batch_normalization=batch_norm, embedding_dim=24, output_channels=5, kernel_width=2)
    torch.save(pykeen, tmp_path / "trained_model.pkl")
    state = pykeen.state_dict()
    torch.save({wrap: state, "version": 1} if wrap else state, tmp_path / "m.pt")
    found, whole = read_model(tmp_path / "m.pt", num_relations=RELATIONS), read_model(tmp_path)
    assert_same_tensors(found, state)
    assert found.modules["interaction"] == whole.modules["interaction"]
    assert (found.interaction, found.num_entities, found.num_relations) == ("ConvE", 14, RELATIONS)
    assert found.inverse_triples
    norms = {path: m["class"] for path, m in whole.modules.items() if "BatchNorm" in m["class"]}
    assert {path: m["class"] for path, m in found.modules.items() if "BatchNorm" in m["class"]} == norms
    assert all(found.modules[path]["eps"] == whole.modules[path]["eps"] for path in norms)


@pytest.mark.parametrize(
    "options",
    [
        {"embedding_dim": 200},
        {"embedding_dim": 100},
        {"embedding_dim": 32, "embedding_height": 4, "embedding_width": 4},
        {"embedding_dim": 50, "embedding_height": 5, "embedding_width": 10, "kernel_height": 2, "kernel_width": 4},
        {"embedding_dim": 48, "embedding_height": 12, "embedding_width": 4, "kernel_height": 1, "kernel_width": 2},
    ],
    ids=str,
)
def test_image_shapes_are_inferred(options: dict[str, Any]) -> None:
    """Height and width follow from the sizes of convolution and linear layer."""
    model = make_model(**options)
    found = infer_shape(model.state_dict(), "m.pt")
    assert found == {"class": "ConvEShapeInformation", **vars(model.interaction.shape_info)}


def test_an_ambiguous_image_is_refused_unless_it_is_the_default() -> None:
    """Where two images fit the tensors, PyKEEN's default is taken, and without it none."""
    default = make_model(embedding_dim=100, embedding_height=10, embedding_width=10).state_dict()
    assert infer_shape(default, "m.pt")["image_height"] == 10
    other = make_model(embedding_dim=200, embedding_height=20, embedding_width=10).state_dict()
    with pytest.raises(UnsupportedModel, match=r"5×40 or 20×10; pass the whole saved model"):
        infer_shape(other, "m.pt")


def test_rows_say_whether_there_are_inverses(tmp_path: Path, conve: Any) -> None:
    """2R rows hold inverses, R rows do not, and any other number fits no relation map."""
    torch.save(conve.state_dict(), tmp_path / "m.pt")
    assert read_model(tmp_path / "m.pt", num_relations=RELATIONS).inverse_triples
    assert not read_model(tmp_path / "m.pt", num_relations=2 * RELATIONS).inverse_triples
    with pytest.raises(VocabularyMismatch, match="110 relation rows, but there are 7 relations"):
        read_model(tmp_path / "m.pt", num_relations=7)
    with pytest.raises(UnsupportedModel, match="pass --relation-to-id"):
        read_model(tmp_path / "m.pt")


def test_other_interactions_must_be_named(tmp_path: Path) -> None:
    """A state dict without a telling name needs --interaction, and then is read."""
    model = make_model("transe")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"only ConvE's is taken.*pass the whole saved model"):
        read_model(tmp_path / "m.pt", num_relations=RELATIONS)
    found = read_model(tmp_path / "m.pt", interaction="TransE", num_relations=RELATIONS)
    assert_same_tensors(found, model.state_dict())
    assert found.modules["interaction"] == {"class": "TransEInteraction"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_names_of_a_wrapped_conve_are_refused_by_their_prefix(prefix: str, tmp_path: Path, conve: Any) -> None:
    """As DataParallel, torch.compile and Lightning write them."""
    torch.save({prefix + name: tensor for name, tensor in conve.state_dict().items()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=f"whose names begin with '{re.escape(prefix)}'.*of the model inside"):
        read_model(tmp_path / "m.pt", num_relations=RELATIONS)


def test_a_folder_of_folders_names_the_first_model(tmp_path: Path, saved: Path) -> None:
    """Replicated pipelines lie two folders below; a search's own folder says how to train a model."""
    search = tmp_path / "search"
    search.mkdir()
    (search / "study.json").write_text("{}")
    with pytest.raises(UnreadableModel, match=r"holds no model.*replicate_best_pipeline\(save_training=True\)"):
        read_model(search)
    for replicate in ("replicate-00001", "replicate-00000"):
        (search / "replicates" / replicate).mkdir(parents=True)
        shutil.copy(saved / "trained_model.pkl", search / "replicates" / replicate)
    for folder in (search, search / "replicates"):
        with pytest.raises(UnreadableModel, match=r"holds no model.*; pass .*/replicates/replicate-00000$"):
            read_model(folder)


def test_a_conve_of_other_names_lists_both(tmp_path: Path) -> None:
    """A plain PyTorch ConvE is refused with the names it has and those it should have."""
    torch.save({"emb_e.weight": torch.ones(5, 8), "conv1.weight": torch.ones(32, 1, 3, 3)}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"emb_e\.weight, conv1\.weight.*must be registered"):
        read_model(tmp_path / "m.pt", num_relations=2)
    with pytest.raises(UnsupportedModel, match=r"expected entity_representations.*found emb_e\.weight \(5, 8\)"):
        read_model(tmp_path / "m.pt", interaction="ConvE", num_relations=2)
    with pytest.raises(UnsupportedModel, match=r"expected a table entity_representations.*emb_e\.weight"):
        read_model(tmp_path / "m.pt", interaction="TransE", num_relations=2)


def test_a_conve_with_tensors_too_many_or_too_few_lists_them(tmp_path: Path, conve: Any) -> None:
    """What a ConvE lacks, has in another shape or has besides is listed."""
    state = conve.state_dict()
    bias = "entity_representations.1._embeddings.weight"
    changed = {k: v for k, v in state.items() if k != "interaction.hr1d.2.running_var"}
    changed |= {bias: torch.ones(14, 2), "interaction.extra": torch.ones(1)}
    torch.save(changed, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel) as error:
        read_model(tmp_path / "m.pt", num_relations=RELATIONS)
    for part in (
        "lacks interaction.hr1d.2.running_var (8,)",
        "also has interaction.extra (1,)",
        f"has {bias} (14, 2) instead of (14, 1)",
    ):
        assert part in str(error.value)


def test_checkpoints_replace_tensors_only(tmp_path: Path, saved: Path) -> None:
    """A checkpoint of the same model gives its tensors; everything else stays."""
    model, later = read_model(saved), make_model(embedding_dim=8)
    with torch.no_grad():
        later.entity_representations[0]._embeddings.weight.add_(1)
    torch.save({"state_dict": later.state_dict(), "version": 1}, tmp_path / "checkpoint_0000002.pt")
    found = read_checkpoint(tmp_path / "checkpoint_0000002.pt", model)
    assert_same_tensors(found, later.state_dict())
    assert (found.modules, found.loss, found.source) == (model.modules, model.loss, "checkpoint_0000002.pt")
    assert found.fingerprint() != model.fingerprint()
    assert read_checkpoint(saved, model).fingerprint() == model.fingerprint()
    write_model(found, tmp_path / "out")
    assert read_checkpoint(tmp_path / "out", model).fingerprint() == found.fingerprint()


def test_checkpoints_of_another_model_are_refused(tmp_path: Path, saved: Path) -> None:
    """The first tensor that differs in name or shape is named with both shapes."""
    model = read_model(saved)
    torch.save(make_model(embedding_dim=12).state_dict(), tmp_path / "c.pt")
    with pytest.raises(UnsupportedModel, match=r"c\.pt is not a checkpoint of .*\(12, .*, the model has .*\(8, "):
        read_checkpoint(tmp_path / "c.pt", model)
    torch.save(make_model("transe").state_dict(), tmp_path / "t.pt")
    with pytest.raises(UnsupportedModel, match=r"it has no interaction\.hr2d\.0\.weight"):
        read_checkpoint(tmp_path / "t.pt", model)


def test_training_loop_checkpoints_are_read_past_their_other_contents(tmp_path: Path, conve: Any) -> None:
    """Optimizer state, random state and the like beside a state dict do no harm."""
    optimizer = torch.optim.Adam(conve.parameters())
    checkpoint = {
        "epoch": 3,
        "model_state_dict": conve.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "torch_random_state": torch.get_rng_state(),
        "path": tmp_path,
        "losses": [0.5, None],
    }
    torch.save(checkpoint, tmp_path / "c.pt")
    assert_same_tensors(read_model(tmp_path / "c.pt", num_relations=RELATIONS), conve.state_dict())
