"""PyKEEN's models: their influences equal autograd, their scores PyKEEN's, and their answers the full scan's."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import (
    BuildConfig,
    TripleTable,
    build,
    open_index,
    read_model,
    write_model,
)
from kgtrace_indexer.gradients.losses import bce
from kgtrace_indexer.gradients.terms import Terms, inner
from kgtrace_indexer.models import autograd, protocol as models, pykeen as pykeen_model
from kgtrace_indexer.models.autograd import AutogradModel
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.query import cascade as retrieval
from kgtrace_store import Vocabulary
from tests.indexer.models.zoo import (
    BOTH,
    DOCS,
    ZOO,
    Save,
    factory,
    featurizer_of,
    influence_error,
    nations,
    round_trip,
    sample_pairs,
    save,
    stir,
)

__all__ = ["nations", "save"]  # fixtures


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("inverse", BOTH, ids=["plain", "inverse"])
@pytest.mark.parametrize("name", ZOO)
def test_influence_equals_autograd(save: Save, name: str, inverse: bool, trained: bool) -> None:
    """Inner products of gradient terms equal those of full per-sample gradients of all parameters."""
    saved = save(name, inverse, trained=trained)
    assert influence_error(saved, featurizer_of(saved.model)) < 1e-4


@pytest.mark.parametrize("inverse", BOTH, ids=["plain", "inverse"])
@pytest.mark.parametrize("name", ZOO)
def test_scores_equal_pykeen(save: Save, name: str, inverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of all tails and of all heads are PyKEEN's predictions, in chunks of any size."""
    saved = save(name, inverse)
    first, _ = sample_pairs(6)
    triples = torch.as_tensor(first)
    with torch.no_grad():
        wanted_tails, wanted_heads = saved.original.predict_t(triples[:, :2]), saved.original.predict_h(triples[:, 1:])
    for floats, heads_at_once in ((1 << 20, 2048), (1000, 5)):
        monkeypatch.setattr(autograd, "chunk_floats", lambda device, floats=floats: floats)
        monkeypatch.setattr(models, "_HEADS", heads_at_once)
        featurizer = featurizer_of(saved.model)
        with torch.inference_mode():
            tails, heads = (featurizer.candidate_scores(first, direction) for direction in ("tail", "head"))
        torch.testing.assert_close(tails, wanted_tails, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads, wanted_heads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_last_layers_cut_the_head(save: Save, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``last:1`` counts what is read as tail, and nothing through its use as head; the last count is ``all``."""
    saved = save(name, True)
    everything = featurizer_of(saved.model)
    named = {name for group in everything.model.depths for name in group}
    assert named == {name for name, _ in saved.original.named_parameters()}
    deepest = featurizer_of(saved.model, [f"last:{len(everything.model.depths)}"])
    assert deepest.selection == everything.selection
    embed = saved.original._get_representations

    def detached(h: Any, r: Any, t: Any, mode: Any = None) -> Any:
        h, r, t = embed(h=h, r=r, t=t, mode=mode)
        return ([x.detach() for x in h] if isinstance(h, list) else h.detach()), r, t

    monkeypatch.setattr(saved.original, "_get_representations", detached)
    assert influence_error(saved, featurizer_of(saved.model, ["last:1"])) < 1e-4


@pytest.mark.parametrize("name", ZOO)
def test_certified_answers_equal_the_full_scan(
    save: Save, nations: tuple[Vocabulary, TripleTable], name: str, tmp_path: Path
) -> None:
    """An index of each model passes the gate, and every answer of it is certified and exact."""
    _, table = nations
    inverse = bool(sorted(ZOO).index(name) % 2)
    build(tmp_path, save(name, inverse).model, *nations, BuildConfig(precondition="none", dim=8, landmarks=40))
    attributor = open_index(tmp_path, device="cpu")
    queries = np.concatenate([table.ids[:1], sample_pairs()[1][:1]]).astype(np.int64)
    for order, top_k, score in (
        ("proponents", 5, "tracin"), ("opponents", 5, "tracin"), ("absolute", 20, "tracin"),
        ("proponents", 5, "preconditioned"),
    ):  # fmt: skip
        found = attributor.query(queries, top_k=top_k, order=order, score=score).attributions
        wanted = attributor.query(queries, top_k=top_k, order=order, score=score, exact=True).attributions
        for a, b in zip(found, wanted, strict=True):
            assert a.certified
            np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4, atol=1e-5 * abs(b.influence).max())


def test_ties_at_zero(
    save: Save, nations: tuple[Vocabulary, TripleTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triples that share nothing with the query have influence 0, are named where they belong, and cost nothing."""
    monkeypatch.setattr(retrieval, "_FIRST_HITS", 1)  # so that not all triples are looked at in the first round
    vocabulary, table = nations
    config = BuildConfig(loss="bce", precondition="none", landmarks=64)
    build(tmp_path, save("DistMult", False).model, vocabulary, table, config)
    attributor = open_index(tmp_path, device="cpu")
    query = table.ids[:1].astype(np.int64)
    exact = attributor.query(query, top_k=len(table.ids), exact=True).attributions[0]
    positive, zero = int((exact.influence > 0).sum()), int((exact.influence == 0).sum())
    assert positive
    assert zero > 3
    for top_k in (positive, positive + 3, len(table.ids)):
        found = attributor.query(query, top_k=top_k).attributions[0]
        assert found.certified
        np.testing.assert_allclose(found.influence, exact.influence[:top_k], rtol=1e-4, atol=1e-7)
        assert (found.influence[positive : positive + zero] == 0).all()
        assert found.exact_terms <= len(table.ids) - zero
    many = table.ids[1:9].astype(np.int64)
    for order in ("proponents", "opponents", "absolute"):
        for top_k in (2, 10):
            for query in many:
                found = attributor.query(query[None], top_k=top_k, order=order).attributions[0]
                exact = attributor.query(query[None], top_k=top_k, order=order, exact=True).attributions[0]
                assert found.certified
                np.testing.assert_allclose(found.influence, exact.influence, rtol=1e-4, atol=1e-7)


def test_conve_through_autograd_agrees(save: Save) -> None:
    """ConvE's closed form is a special case: both mechanisms give the same influences and scores."""
    model = save("ConvE", True).model
    first, second = sample_pairs()
    found = []
    for scoring in (ConvE(model), pykeen_model.pykeen_model(model)):
        featurizer = Featurizer(scoring, bce, scoring.select(["all"]), "both", True)
        with torch.inference_mode():
            terms = featurizer.training_terms(first)
            found.append(
                (inner(terms, featurizer.test_terms(second, "tail")), featurizer.candidate_scores(first, "tail"))
            )
        assert list(terms.kron) == ["interaction.hr1d.0.weight"]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("name", ["TuckER", "ConvKB", "ERMLPE"])
def test_chunks_do_not_change_terms(save: Save, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients computed a few at a time are those computed together."""
    featurizer = featurizer_of(save(name, True).model)
    first, second = sample_pairs()
    with torch.inference_mode():
        test = featurizer.test_terms(second, "tail")
        wanted = inner(featurizer.training_terms(first), test)
        monkeypatch.setattr(autograd, "chunk_floats", lambda device: 1000)
        found = inner(featurizer.training_terms(first), test)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def _variants() -> dict[str, tuple[str, dict[str, Any]]]:
    from torch.nn import functional

    axis, slope, inexact = {"entity_normalizer_kwargs": {"dim": -1}}, {"negative_slope": 0.3}, {"exact": False}
    return {
        "normalized": ("TransF", {"entity_normalizer": functional.normalize, **axis}),
        "softmax": ("DistMA", {"entity_normalizer": functional.softmax, **axis}),
        "untrained": ("DistMult", {"entity_representations_kwargs": {"trainable": False}}),
        "clamped": ("SimplE", {"clamp_score": 0.5}),
        "without batch norm": ("TuckER", {"apply_batch_normalization": False}),
        "square norm": ("TransE", {"scoring_fct_norm": 2, "power_norm": True}),
        "expected likelihood": ("KG2E", {"dist_similarity": "ExpectedLikelihood", "dist_similarity_kwargs": inexact}),
        "another activation": ("ProjE", {"inner_non_linearity": "LeakyReLU", "inner_non_linearity_kwargs": slope}),
        "regularized": ("TransE", {"regularizer": "Lp"}),
    }


VARIANTS = (
    "normalized", "softmax", "untrained", "clamped", "without batch norm", "square norm", "expected likelihood",
    "another activation", "regularized",
)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(save: Save, variant: str) -> None:
    """Normalizers, untrained tables, other norms and activations are those of the file; regularizers play no part."""
    name, options = _variants()[variant]
    saved = save(name, True, **options)
    trained = {n for n, p in saved.original.named_parameters() if p.requires_grad}
    featurizer = featurizer_of(saved.model)
    assert featurizer.selection.parameters == trained
    assert influence_error(saved, featurizer) < 1e-4


def test_untrained_conve(save: Save, tmp_path: Path) -> None:
    """A ConvE with a table that was not trained goes through autograd, and keeps the fact when converted."""
    original = save("ConvE", True).original
    table = original.relation_representations[0]._embeddings.requires_grad_(False)
    try:
        saved = round_trip(original, tmp_path)
    finally:
        table.requires_grad_(True)
    write_model(saved.model, tmp_path / "converted")
    converted = read_model(tmp_path / "converted")
    assert converted.fingerprint() == saved.model.fingerprint()
    featurizer = featurizer_of(converted)
    assert isinstance(featurizer.model, AutogradModel)
    assert "relation_representations.0._embeddings.weight" not in featurizer.selection.parameters
    assert influence_error(saved, featurizer) < 1e-4


@pytest.mark.parametrize("interaction", ["LineaRE", "MultiLinearTucker", "TripleRE"])
def test_interactions_without_a_model_class(interaction: str, tmp_path: Path) -> None:
    """Interactions that PyKEEN ships without a model of their own are computed all the same."""
    from pykeen.models import ERModel

    arguments: dict[str, Any] = {"p": 2} if interaction != "MultiLinearTucker" else {"head_dim": 4, "tail_dim": 3}
    shapes = {"LineaRE": ([5], [5] * 3), "TripleRE": ([5], [5] * 3), "MultiLinearTucker": ([4, 3], [4])}[interaction]
    entities, relations = ([{"shape": dim} for dim in dims] for dims in shapes)
    original = ERModel(
        triples_factory=factory(True), interaction=interaction, interaction_kwargs=arguments, random_seed=0,
        entity_representations_kwargs=entities, relation_representations_kwargs=relations,
    )  # fmt: skip
    stir(original)
    saved = round_trip(original, tmp_path)
    assert influence_error(saved, featurizer_of(saved.model)) < 1e-4


@pytest.mark.parametrize("name", ["ERMLP", "TuckER", "ConvKB"])
def test_selected_parameters(save: Save, name: str) -> None:
    """Any selection counts the parameters it names and no others: layers without bias, biases alone, the rest."""
    saved = save(name, True)
    for parameter in [name for name, _ in saved.original.named_parameters()]:
        featurizer = featurizer_of(saved.model, [parameter])
        assert featurizer.selection.parameters == {parameter}
        assert influence_error(saved, featurizer) < 1e-3  # sums within one tensor cancel


# The table in the documentation.


def _row(save: Save, name: str) -> str:
    """Return a model's row: what its gradients are made of at PyKEEN's default size, and how much of it there is."""
    import pykeen.models

    default = getattr(pykeen.models, name)(triples_factory=factory(False), random_seed=0)
    exact = influence_error(save(name, False), featurizer_of(save(name, False).model)) < 1e-4
    terms = _default_terms(default)
    rows = sum(use.grad.shape[1] for uses in terms.rows.values() for use in uses)
    flat = sum(grad.shape[1] for grad in terms.flat.values())
    kron = sum(block.u.shape[1] + block.v.shape[1] for block in terms.kron.values())
    total = rows + flat + kron
    bounds = ["row lists"] if not flat and not kron else ["row lists", "index"]
    speed = "fast" if total < 2_500 else "medium" if total < 25_000 else "slow"
    cells = [name, "yes" if exact else "no", " + ".join(bounds), f"{rows:,}", f"{flat:,}", f"{kron:,}", speed]
    return f"| {' | '.join(cells)} |"


def _default_terms(original: Any) -> Terms:
    """Return the gradient of one triple of a model that was never saved."""
    with tempfile.TemporaryDirectory() as folder:
        model = round_trip(original, Path(folder)).model
        return featurizer_of(model).training_terms(factory(False).mapped_triples[:1].numpy())


def test_the_documented_table_is_true(save: Save) -> None:
    """The table in the documentation says what the models here turn out to be."""
    documented = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert documented[: len(ZOO)] == [_row(save, name) for name in ZOO]
