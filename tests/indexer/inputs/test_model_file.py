"""Model files: the same tensors as PyKEEN's own loading, whatever the file; and named errors for the rest."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs.conve_shape import infer_shape
from kgtrace_indexer.inputs.model_file import ModelFile, write_model
from kgtrace_indexer.inputs.model_reader import read_checkpoint, read_model
from kgtrace_store.errors import (
    NonFinite,
    SchemaTooNew,
    StorageFailed,
    UnreadableModel,
    UnsupportedModel,
    VocabularyMismatch,
)

SHARED = Path(os.environ.get("KGTRACE_SHARED", Path(__file__).parents[3].parent / "shared"))
needs_shared = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason=f"no models under {SHARED}")

RELATIONS = 55
"""Of the Nations data set."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PyKEEN and its dependencies warn about themselves."""
    logging.getLogger("pykeen").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_model(name: str = "conve", *, inverse: bool = True, **options: Any) -> Any:
    """An untrained PyKEEN model over Nations, its running statistics moved away from their start."""
    from pykeen.datasets import Nations
    from pykeen.models import model_resolver

    triples = Nations(create_inverse_triples=inverse).training
    model = model_resolver.make(name, triples_factory=triples, random_seed=0, **({"embedding_dim": 8} | options))
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def conve() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_model()


@pytest.fixture
def saved(conve: Any, tmp_path: Path) -> Path:
    """The ConvE as PyKEEN saves it."""
    torch.save(conve, tmp_path / "trained_model.pkl")
    return tmp_path


def assert_same_tensors(found: ModelFile, state: dict[str, torch.Tensor]) -> None:
    assert list(found.tensors) == list(state)
    for name, tensor in state.items():
        assert torch.equal(found.tensors[name], tensor), name


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


# State dicts and checkpoints.


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


# Converted folders.


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


@pytest.fixture
def converted(tmp_path: Path, saved: Path) -> Path:
    write_model(read_model(saved), tmp_path / "converted")
    return tmp_path / "converted"


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


# Foreign and hostile files.


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
