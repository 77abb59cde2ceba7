"""Exact influences against autograd."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import ModelFile, read_model, read_training_folder
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.conve_network import BIAS, ENTITY
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from tests.indexer.oracle import gradient, pykeen_model

CPU = torch.device("cpu")


def _featurizer(
    model: ModelFile, layers: Sequence[str] = ("all",), directions: str = "both", device: torch.device = CPU
) -> Featurizer:
    return featurizer_for(model, {"loss": "bce", "layers": layers, "directions": directions}, device)


def _relative(found: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> float:
    """Return the largest error in units of ‖g‖‖g'‖, to which rounding is proportional, or of the value if larger."""
    return float(((found - wanted).abs() / torch.maximum(wanted.abs(), 1e-2 * scale)).max())


def _check_pairs(folder: Path, training: str, test: str, device: torch.device, count: int = 64) -> None:
    model = read_model(folder)
    _, table = read_training_folder(folder / "training_triples")
    rng = np.random.default_rng(0)
    first, second = (table.ids[rng.choice(len(table.ids), count)] for _ in range(2))
    second[: count // 4, 0] = first[: count // 4, 0]  # shared heads, relations, crossed entities, the same triple
    second[count // 4 : count // 2, 1:] = first[count // 4 : count // 2, 1:]
    second[count // 2 : 3 * count // 4, 2] = first[count // 2 : 3 * count // 4, 0]
    second[-1] = first[-1]
    featurizer = _featurizer(model, directions=training, device=device)
    a = featurizer.training_terms(first)
    b = featurizer.test_terms(second, "head" if test == "head" else "tail")
    products, norms = inner(a, b).diagonal().cpu(), squared_norms(a).cpu()
    oracle = pykeen_model(folder)
    g = [gradient(oracle, t, ["tail", "head"] if training == "both" else ["tail"]) for t in first]
    h = [gradient(oracle, t, [test]) for t in second]
    wanted = torch.stack([x @ y for x, y in zip(g, h, strict=True)])
    scale = torch.stack([x.norm() * y.norm() for x, y in zip(g, h, strict=True)])
    assert _relative(products, wanted, scale) < 1e-4
    own = torch.stack([x @ x for x in g])
    assert _relative(norms, own, own) < 1e-4


@pytest.mark.parametrize("training", ["forward", "both"])
@pytest.mark.parametrize("test", ["tail", "head"])
def test_influence_equals_autograd_on_umls(umls_folder: Path, training: str, test: str, device: torch.device) -> None:
    """Inner products of rank-1 terms equal those of full per-sample gradients."""
    _check_pairs(umls_folder, training, test, device)


@pytest.mark.parametrize(("training", "test"), [("forward", "tail"), ("both", "tail"), ("both", "head")])
def test_influence_equals_autograd_on_codex(shared: Path, training: str, test: str) -> None:
    """The same on a full-size ConvE trained on CoDEx-S."""
    _check_pairs(shared / "models" / "conve-codex-s", training, test, CPU, count=52)


LAYERS = [
    ["last:1"],
    ["last:2"],
    ["last:3"],
    ["interaction.hr1d.0.weight"],
    ["interaction.hr1d.0.bias"],
    ["interaction.hr2d.*"],
    ["entity_representations.0*"],
    ["entity_representations.1*", "relation_representations.*"],
]


@pytest.mark.parametrize("layers", LAYERS, ids=" ".join)
def test_influence_of_selected_layers(
    umls_folder: Path, umls: tuple, layers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A selection of layers counts the parameters it names, and no others."""
    model, _, table = umls
    featurizer = _featurizer(model, layers)
    rng = np.random.default_rng(1)
    first, second = table.ids[rng.choice(len(table.ids), 20)], table.ids[rng.choice(len(table.ids), 20)]
    second[:10, 0], second[5:15, 2] = first[:10, 0], first[5:15, 2]
    found = inner(featurizer.training_terms(first), featurizer.test_terms(second, "tail"))
    oracle = pykeen_model(umls_folder)
    if not featurizer.selection.head_use:  # cut the gradient through the entity table's use as head
        embed = oracle._get_representations

        def detached(h, r, t, mode=None):
            h, r, t = embed(h=h, r=r, t=t, mode=mode)
            return h.detach(), r, t

        monkeypatch.setattr(oracle, "_get_representations", detached)
    names = featurizer.selection.parameters
    g = torch.stack([gradient(oracle, t, ["tail", "head"], names) for t in first])
    h = torch.stack([gradient(oracle, t, ["tail"], names) for t in second])
    assert _relative(found, g @ h.T, g.norm(dim=1)[:, None] * h.norm(dim=1)) < 1e-4


def test_scores_equal_pykeen(umls_folder: Path, umls: tuple) -> None:
    """Relation ids are mapped as PyKEEN's own predictions map them."""
    model, _, table = umls
    featurizer = _featurizer(model)
    oracle = pykeen_model(umls_folder)
    triples = torch.as_tensor(table.ids[:20].astype(np.int64))
    with torch.no_grad():
        tails = oracle.predict_t(triples[:, :2])
        heads = oracle.predict_h(triples[:, 1:])
    torch.testing.assert_close(featurizer.candidate_scores(table.ids[:20], "tail"), tails, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(featurizer.candidate_scores(table.ids[:20], "head"), heads, rtol=1e-4, atol=1e-5)


def test_batches_do_not_change_terms(umls: tuple) -> None:
    """A triple's gradient is the same alone and in a batch that shares its forward pass."""
    model, _, table = umls
    featurizer = _featurizer(model)
    batch = table.ids[:40]
    together = featurizer.training_terms(batch)
    probe = featurizer.test_terms(table.ids[100:110], "tail")
    alone = torch.cat([inner(featurizer.training_terms(batch[i : i + 1]), probe) for i in range(len(batch))])
    torch.testing.assert_close(inner(together, probe), alone, rtol=1e-4, atol=1e-6)
    picked = torch.cat([inner(together.triple(i), probe) for i in range(len(batch))])
    torch.testing.assert_close(inner(together, probe), picked, rtol=1e-4, atol=1e-6)


def test_without_batch_norm(umls: tuple) -> None:
    """A ConvE trained without batch norm has neither its parameters nor its maps."""
    from pykeen.datasets import UMLS
    from pykeen.models import ConvE as PykeenConvE

    factory = UMLS(create_inverse_triples=True).training
    torch.manual_seed(0)
    plain = PykeenConvE(triples_factory=factory, embedding_dim=24, output_channels=4, apply_batch_normalization=False)
    model, _, table = umls
    shape = plain.interaction.shape_info
    facts = {f: getattr(shape, f) for f in ("input_channels", "image_height", "image_width")}
    bare = ModelFile(
        interaction="ConvE", tensors=plain.state_dict(), num_entities=model.num_entities,
        num_relations=model.num_relations, inverse_triples=True, modules={"interaction": {"shape_info": facts}},
        loss={}, source="test",
    )  # fmt: skip
    featurizer = _featurizer(bare)
    found = inner(featurizer.training_terms(table.ids[:8]), featurizer.test_terms(table.ids[8:12], "tail"))
    g = torch.stack([gradient(plain.eval(), t, ["tail", "head"]) for t in table.ids[:8]])
    h = torch.stack([gradient(plain, t, ["tail"]) for t in table.ids[8:12]])
    assert _relative(found, g @ h.T, g.norm(dim=1)[:, None] * h.norm(dim=1)) < 1e-4


def test_depths_name_every_parameter(umls: tuple) -> None:
    """``all`` means all: no trainable tensor of the model is left out."""
    model, _, _ = umls
    named = {name for group in ConvE(model).depths for name in group}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert named == {name for name in model.tensors if not name.endswith(buffers)}
    assert {ENTITY, BIAS} <= named
