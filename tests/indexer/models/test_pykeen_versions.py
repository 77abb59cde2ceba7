"""Models of PyKEEN 1.8 to 1.10: against the influences that 1.10 computed, and the same model in the form of 1.11."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import ModelFile, TracInAnalyzer, read_model, read_training_folder, write_model
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.inputs.model_reader import read_checkpoint
from kgtrace_indexer.inputs.pykeen_versions import current_form
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.models.pykeen import pykeen_model
from kgtrace_store.errors import UnsupportedModel

SHARED = Path(os.environ.get("KGTRACE_SHARED", Path(__file__).parents[3].parent / "shared"))
OLD = SHARED / "cases" / "oldpykeen" / "1.10.2"

OPTIONS: dict[str, dict[str, Any]] = {
    "ConvE": {"embedding_dim": 24, "input_channels": 2, "embedding_height": 4}
    | {"output_channels": 3, "kernel_height": 3, "kernel_width": 2},
    "CrossE": {"embedding_dim": 6},
    "KG2E": {"embedding_dim": 6},
    "NTN": {"embedding_dim": 4, "num_slices": 2},
    "ProjE": {"embedding_dim": 6},
    "RotatE": {"embedding_dim": 6},
    "SimplE": {"embedding_dim": 6},
    "TransH": {"embedding_dim": 6},
    "TransR": {"embedding_dim": 5, "relation_dim": 4},
}
"""PyKEEN's models whose pickles differ between 1.10 and 1.11, with a small shape each."""


def _featurizer(model: ModelFile) -> Featurizer:
    return featurizer_for(model, {"loss": "bce", "layers": ["all"], "directions": None}, torch.device("cpu"))


def _influences(model: ModelFile, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return influences of the loss ``bce``, (tests, training triples)."""
    featurizer = _featurizer(model)
    with torch.inference_mode():
        tests = featurizer.test_terms(test, "tail")
        return inner(tests, featurizer.training_terms(train)).numpy()


@pytest.mark.skipif(not OLD.is_dir(), reason=f"no models of PyKEEN 1.10 under {SHARED}")
@pytest.mark.parametrize(
    "name",
    [
        "AutoSF",
        "BoxE",
        "CP",
        "ComplEx",
        "ConvE",
        "ConvKB",
        "CrossE",
        "DistMA",
        "DistMult",
        "ERMLP",
        "ERMLPE",
        "HolE",
        "KG2E",
        "MuRE",
        "NTN",
        "PairRE",
        "ProjE",
        "QuatE",
        "RESCAL",
        "RotatE",
        "SE",
        "SimplE",
        "TorusE",
        "TransD",
        "TransE",
        "TransF",
        "TransH",
        "TransR",
        "TuckER",
        "UM",
    ],
)
def test_models_of_pykeen_1_10(name: str, tmp_path: Path) -> None:
    """Influences and scores are those that PyKEEN 1.10.2 computed, also after a conversion."""
    shutil.copy(OLD / name / "trained_model.pkl", tmp_path)
    (tmp_path / "metadata.json").write_text('{"pykeen_version": "1.10.2"}')
    write_model(read_model(tmp_path), tmp_path / "converted")
    _, table = read_training_folder(OLD / name / "training_triples")
    with np.load(OLD / name / "oracle.npz") as oracle:
        wanted, scores, test = oracle["w"], oracle["scores"].ravel(), oracle["test"]
    for folder in (tmp_path, tmp_path / "converted"):
        model = read_model(folder)
        found = _influences(model, test, table.ids)
        assert found == pytest.approx(wanted, rel=1e-4, abs=2e-6 * np.abs(wanted).max())
        with torch.inference_mode():
            tails = _featurizer(model).candidate_scores(test, "tail")
        assert tails[range(len(test)), test[:, 2]].numpy() == pytest.approx(scores, rel=1e-5, abs=1e-5)


def _original(name: str, **options: Any) -> Any:
    """Return a random model of the installed PyKEEN, on Nations."""
    import pykeen.models
    from pykeen.datasets import Nations

    torch.manual_seed(0)
    kind = getattr(pykeen.models, name)
    model = kind(triples_factory=Nations().training, random_seed=0, **{**OPTIONS[name], **options})
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    model.post_parameter_update()
    return model.eval()


TRIPLES = np.random.default_rng(0).integers(0, 14, (40, 3), dtype=np.int32)
"""Entities of Nations; it has more relations."""


def _move(module: Any, old: str, new: str) -> None:
    for kept in (module._modules, module._parameters):
        if old in kept:
            kept[new] = kept.pop(old)


def _as_conve(model: Any) -> None:
    shape = model.interaction.__dict__.pop("shape_info")
    model.interaction.embedding_height, model.interaction.embedding_width = shape.image_height, shape.image_width
    model.interaction.input_channels = shape.input_channels


def _as_crosse(model: Any) -> None:
    for name in ("activation", "dropout", "bias"):
        _move(model.interaction, name, f"combination_{name}")


def _as_kg2e(model: Any) -> None:
    del model.interaction._modules["similarity"]
    model.interaction.similarity, model.interaction.exact = "KL", True


def _as_ntn(model: Any) -> None:
    _move(model.interaction, "activation", "non_linearity")


def _as_proje(model: Any) -> None:
    _move(model.interaction, "inner_activation", "inner_non_linearity")
    del model.interaction._modules["outer_activation"]


def _as_rotate(model: Any) -> None:
    del model.interaction.p, model.interaction.power_norm


def _as_simple(model: Any) -> None:
    if type(model.interaction).__name__ == "ClampedInteraction":
        clamp = model.interaction.clamp_score
        model.interaction = model.interaction.base
        model.interaction.clamp_score = clamp
    del model.interaction._modules["base"]


def _as_transr(model: Any) -> None:
    del model.interaction.max_projection_norm


DRESS: dict[str, Callable[[Any], None]] = {
    "ConvE": _as_conve,
    "CrossE": _as_crosse,
    "KG2E": _as_kg2e,
    "NTN": _as_ntn,
    "ProjE": _as_proje,
    "RotatE": _as_rotate,
    "SimplE": _as_simple,
    "TransR": _as_transr,
}
"""What gives a model of PyKEEN 1.11 the attributes that 1.10 pickles."""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in DRESS if name != "TransR"),
        ("SimplE", {"clamp_score": 0.5}),
        ("TransR", {"scoring_fct_norm": 2}),
        ("ConvE", {"apply_batch_normalization": False}),
    ],
)
def test_the_earlier_form_reads_as_the_current_one(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Attributes and names of 1.10 lead to the model that 1.11 pickles."""
    original = _original(name, **options)
    torch.save(original, tmp_path / "current.pkl")
    DRESS[name](original)
    torch.save(original, tmp_path / "earlier.pkl")
    current, earlier = (read_model(tmp_path / file) for file in ("current.pkl", "earlier.pkl"))
    assert [*earlier.tensors] == [*current.tensors]
    wanted = _influences(current, TRIPLES[:4], TRIPLES)
    assert np.abs(wanted).max() > 0
    assert (_influences(earlier, TRIPLES[:4], TRIPLES) == wanted).all()


def test_transr_limits_projections_by_the_euclidean_norm_before_1_11(tmp_path: Path) -> None:
    """With p=1 the score of 1.10 is −‖clamp₂(M h) + r − clamp₂(M t)‖₁; that of 1.11 is another."""
    original = _original("TransR", scoring_fct_norm=1)
    triples = torch.as_tensor(TRIPLES).long()
    h, t = (original.entity_representations[0](triples[:, i]) for i in (0, 2))
    r, m = (representation(triples[:, 1]) for representation in original.relation_representations)
    h, t = (torch.einsum("nd,nde->ne", x, m) for x in (h, t))
    h, t = (x / x.norm(dim=1, keepdim=True).clamp_min(1) for x in (h, t))
    wanted = -(h + r - t).abs().pow(1).sum(1)
    current = original.score_hrt(triples).squeeze(1)
    _as_transr(original)
    torch.save(original, tmp_path / "earlier.pkl")
    model = pykeen_model(read_model(tmp_path / "earlier.pkl"))
    with torch.inference_mode():
        found = model.tail_scores(triples[:, 0], triples[:, 1])[range(len(triples)), triples[:, 2]]
    assert found.numpy() == pytest.approx(wanted.detach().numpy(), rel=1e-5)
    assert not torch.allclose(found, current, rtol=1e-2)


def _transh(folder: Path, metadata: Any = None) -> ModelFile:
    folder.mkdir(exist_ok=True)
    torch.save(_original("TransH"), folder / "trained_model.pkl")
    if metadata is not None:
        (folder / "metadata.json").write_text(metadata if isinstance(metadata, str) else json.dumps(metadata))
    return read_model(folder)


@pytest.mark.parametrize("version", ["1.10.0", "1.10.2", "1.11.0", "1.11.1"])
def test_transh_reads_its_normal_vectors_where_that_version_does(version: str, tmp_path: Path) -> None:
    """1.10 takes the second relation table for the normal vectors, 1.11 the first."""
    original = _original("TransH")
    model = pykeen_model(_transh(tmp_path, {"pykeen_version": version}))
    triples = torch.as_tensor(TRIPLES).long()
    h, t = (original.entity_representations[0](triples[:, i]) for i in (0, 2))
    tables = [representation(triples[:, 1]) for representation in original.relation_representations]
    w, r = tables if version.startswith("1.11") else tables[::-1]
    h, t = (x - (x * w).sum(1, keepdim=True) * w for x in (h, t))
    with torch.inference_mode():
        found = model.tail_scores(triples[:, 0], triples[:, 1])[range(len(triples)), triples[:, 2]]
    assert found.numpy() == pytest.approx(-(h + r - t).norm(dim=1).detach().numpy(), rel=1e-5)


@pytest.mark.parametrize(
    "metadata",
    [None, {}, [], "{", {"pykeen_version": 1.1}, {"pykeen_version": "1.12.0"}, {"pykeen_version": "1.10.2\n" * 9}],
)
def test_transh_of_an_unknown_version_is_refused(metadata: Any, tmp_path: Path) -> None:
    """Nothing in its pickle tells 1.10 from 1.11: the error says where to write the version."""
    with pytest.raises(UnsupportedModel, match=r"TransH.*pykeen_version.*metadata\.json beside it"):
        _transh(tmp_path, metadata)


def test_a_transh_in_memory_is_the_installed_version_s() -> None:
    """`TracInAnalyzer` knows which PyKEEN scores a model that was never saved."""
    assert len(TracInAnalyzer(_original("TransH")).compute_self_influence(TRIPLES[:3])) == 3


def test_a_transh_converted_without_its_order_is_refused(tmp_path: Path) -> None:
    """As models and indexes of kgtrace are that knew of one order alone."""
    model = _transh(tmp_path, {"pykeen_version": "1.11.1"})
    modules = {path: dict(attributes) for path, attributes in model.modules.items()}
    del modules["interaction"]["relation_slots"]
    with pytest.raises(UnsupportedModel, match=r"normal vectors; convert the saved model again, or build"):
        pykeen_model(replace(model, modules=modules))


def test_transh_of_pykeen_1_9_needs_no_version() -> None:
    """Models have no `relation_inverter` before 1.10; 1.9 reads the tables as 1.11 does."""
    modules = {"": {}, "interaction": {"class": "TransHInteraction"}}
    found, _ = current_form(modules, {}, Path("absent/trained_model.pkl"))
    assert found["interaction"]["relation_slots"] == [0, 1]


def test_tucker_gets_its_current_name() -> None:
    """Its interaction is called `Tucker` before 1.11."""
    found, _ = current_form({"": {}, "interaction": {"class": "TuckerInteraction"}}, {}, Path("model.pkl"))
    assert found["interaction"]["class"] == "TuckERInteraction"


def test_untrained_parameters_keep_their_mark_under_the_current_name() -> None:
    """A frozen `combination_bias` is a frozen `bias`."""
    modules = {"": {}, "interaction": {"class": "CrossEInteraction", "frozen": ["combination_bias"]}}
    found, _ = current_form(modules, {}, Path("model.pkl"))
    assert found["interaction"]["frozen"] == ["bias"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"interaction": {"class": "QuatEInteraction"}}, r"model\.pkl is a QuatE of PyKEEN before 1\.10"),
        (
            {
                "interaction": {"class": "DistMultInteraction"},
                "entity_representations.0": {"normalizer": "pykeen.utils.complex_normalize", "is_complex": False},
            },
            r"entity_representations\.0 is a table of real numbers with complex_normalize",
        ),
    ],
)
def test_models_that_only_earlier_versions_compute_are_refused(modules: Any, message: str) -> None:
    """QuatE kept four blocks instead of quadruples; `complex_normalize` took real numbers one by one."""
    with pytest.raises(UnsupportedModel, match=message):
        current_form({"": {}, **modules}, {}, Path("model.pkl"))


def test_checkpoints_in_the_earlier_form_are_checkpoints(tmp_path: Path) -> None:
    """A state dict's names are brought into the form of the model that it belongs to."""
    original = _original("CrossE")
    _as_crosse(original)
    torch.save(original, tmp_path / "trained_model.pkl")
    state = original.state_dict()
    assert "interaction.combination_bias" in state
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pt")
    model = read_model(tmp_path / "trained_model.pkl")
    assert read_checkpoint(tmp_path / "checkpoint.pt", model).fingerprint() == model.fingerprint()


def test_a_model_without_interaction_is_refused_by_version(tmp_path: Path) -> None:
    """As TransE was before 1.9."""
    original = _original("SimplE")
    del original._modules["interaction"]
    torch.save(original, tmp_path / "trained_model.pkl")
    with pytest.raises(
        UnsupportedModel, match=r"holds a 'SimplE'.*with an interaction, such as PyKEEN saves since 1\.9"
    ):
        read_model(tmp_path)
