"""Every PyKEEN interaction against autograd on the original module, refusals, and models of one's own."""

import gc
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kgtrace_indexer import (
    Attributor,
    BuildConfig,
    ModelFile,
    TripleTable,
    build,
    open_index,
    read_model,
    read_training_folder,
    write_model,
)
from kgtrace_indexer.gradients.layers import Selection, select_layers
from kgtrace_indexer.gradients.losses import Loss, bce
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import Rows, Terms, inner
from kgtrace_indexer.models import autograd, protocol as models, pykeen as pykeen_model
from kgtrace_indexer.models.autograd import AutogradModel, Reading
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.models.protocol import ScoringModel, register_model, scoring_model
from kgtrace_indexer.query import cascade as retrieval
from kgtrace_store import Vocabulary
from kgtrace_store.errors import MissingExtra, UnsupportedModel

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[3] / "docs" / "models.md"

ZOO: dict[str, dict[str, Any]] = {
    "AutoSF": {"embedding_dim": 5},
    "BoxE": {"embedding_dim": 8},
    "CP": {"embedding_dim": 4, "rank": 3},
    "ComplEx": {"embedding_dim": 8},
    "ConvE": {"embedding_dim": 12, "output_channels": 3},
    "ConvKB": {"embedding_dim": 8, "num_filters": 5},
    "CrossE": {"embedding_dim": 8},
    "DistMA": {"embedding_dim": 8},
    "DistMult": {"embedding_dim": 8},
    "ERMLP": {"embedding_dim": 8, "hidden_dim": 7},
    "ERMLPE": {"embedding_dim": 8, "hidden_dim": 7},
    "HolE": {"embedding_dim": 9},
    "KG2E": {"embedding_dim": 8},
    "MuRE": {"embedding_dim": 8},
    "NTN": {"embedding_dim": 5, "num_slices": 3},
    "PairRE": {"embedding_dim": 8},
    "ProjE": {"embedding_dim": 8},
    "QuatE": {"embedding_dim": 3},
    "RESCAL": {"embedding_dim": 6},
    "RotatE": {"embedding_dim": 8},
    "SE": {"embedding_dim": 5},
    "SimplE": {"embedding_dim": 8},
    "TorusE": {"embedding_dim": 8},
    "TransD": {"embedding_dim": 8, "relation_dim": 6},
    "TransE": {"embedding_dim": 8},
    "TransF": {"embedding_dim": 8},
    "TransH": {"embedding_dim": 8},
    "TransR": {"embedding_dim": 6, "relation_dim": 5},
    "TuckER": {"embedding_dim": 6, "relation_dim": 5},
    "UM": {"embedding_dim": 8},
}
"""PyKEEN's models by class name, with a small shape each."""

BOTH = [False, True]


@cache
def factory(inverse: bool) -> Any:
    """Return the training triples of Nations."""
    from pykeen.datasets import Nations

    return Nations(create_inverse_triples=inverse).training


@dataclass
class Saved:
    """A model, as PyKEEN has it and as it is read back."""

    original: Any
    model: ModelFile

    def gradient(self, triple: Iterable[int], directions: Sequence[str], names: Iterable[str] | None = None) -> Tensor:
        """Return the gradient of Σ softplus(−s) over the directions, all parameters (or those named) in one vector."""
        self.original.zero_grad()
        ids = torch.tensor([self._ids(triple, direction) for direction in directions])
        torch.nn.functional.softplus(-self.original.score_hrt(ids)).sum().backward()
        return torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                for name, p in self.original.named_parameters()
                if names is None or name in names
            ]
        )

    def _ids(self, triple: Iterable[int], direction: str) -> list[int]:
        head, relation, tail = (int(i) for i in triple)
        if not self.model.inverse_triples:
            return [head, relation, tail]
        return [head, 2 * relation, tail] if direction == "tail" else [tail, 2 * relation + 1, head]


Save = Callable[..., Saved]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Make a random model, or train one, once for each set of arguments."""
    made: dict[Any, Saved] = {}

    def save(name: str, inverse: bool, *, trained: bool = False, **options: Any) -> Saved:
        key = (name, inverse, trained, str(options))
        if key not in made:
            import pykeen.models

            kind = getattr(pykeen.models, name)
            original = kind(triples_factory=factory(inverse), random_seed=0, **{**ZOO.get(name, {}), **options})
            if trained:
                _train(original, factory(inverse))
            else:
                _stir(original)
            made[key] = _saved(original, tmp_path_factory.mktemp("model"))
        return made[key]

    return save


def _train(original: Any, triples: Any) -> None:
    """Train for an epoch by PyKEEN's own loop."""
    from pykeen.training import SLCWATrainingLoop

    optimizer = torch.optim.Adam(original.parameters(), lr=0.01)
    loop = SLCWATrainingLoop(model=original, triples_factory=triples, optimizer=optimizer)
    gc.freeze()  # the loop collects garbage after each epoch, among all that PyKEEN's import has brought
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyKEEN's own options
        loop.train(triples, num_epochs=1, batch_size=128, use_tqdm=False)


def _stir(original: Any) -> None:
    """Move a fresh model away from what it was initialised with, so that no part of it is the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in original.named_buffers():
        if "running" in name:
            buffer.data.uniform_(0.5, 1.5, generator=generator)
    for parameter in original.interaction.parameters():
        parameter.data.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    original.post_parameter_update()


def _saved(original: Any, folder: Path) -> Saved:
    """Save a model as PyKEEN does, and read it back."""
    torch.save(original, folder / "trained_model.pkl")
    (folder / "metadata.json").write_text('{"pykeen_version": "1.11.1"}')  # which TransH needs
    return Saved(original.eval(), read_model(folder))


def _featurizer(model: ModelFile, layers: Sequence[str] = ("all",)) -> Featurizer:
    return featurizer_for(model, {"loss": "bce", "layers": layers, "directions": None}, CPU)


def _pairs(count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return training and test triples of Nations that share heads, relations and tails, loops and themselves."""
    ids = factory(False).mapped_triples.numpy()
    rng = np.random.default_rng(0)
    first, second = ids[rng.choice(len(ids), count)], ids[rng.choice(len(ids), count)]
    second[:5, 0] = first[:5, 0]
    second[3:8, 1:] = first[3:8, 1:]
    second[8:11, 2] = first[8:11, 0]
    first[2, 2] = first[2, 0]
    second[-1] = first[-1]
    return first, second


def _error(found: Tensor, wanted: Tensor, scale: Tensor) -> float:
    """Return the largest error relative to the value, or to a hundredth of ‖g‖‖g'‖ if that is larger.

    Where a gradient cancels to nothing, as a loop's may, the unit is a thousandth of the largest.
    """
    unit = torch.maximum(wanted.abs(), 1e-2 * scale)
    return float(((found - wanted).abs() / unit.clamp_min(1e-3 * float(unit.max()))).max())


def _influence_error(saved: Saved, featurizer: Featurizer) -> float:
    """Return the largest relative error of influences and self-influences."""
    first, second = _pairs()
    directions = ["tail", "head"] if saved.model.inverse_triples else ["tail"]
    names = featurizer.selection.parameters
    g = torch.stack([saved.gradient(t, directions, names) for t in first])
    with torch.inference_mode():
        terms = featurizer.training_terms(first)
        own = squared_norms(terms).total
        worst = _error(own, g.square().sum(1), g.square().sum(1))
        with torch.inference_mode(False):
            gradients = {each: torch.stack([saved.gradient(t, [each], names) for t in second]) for each in directions}
        for direction in ("tail", "head"):  # without inverse relations both are (h, r, t)
            h = gradients.get(direction, gradients["tail"])
            found = inner(terms, featurizer.test_terms(second, direction))
            worst = max(worst, _error(found, g @ h.T, g.norm(dim=1)[:, None] * h.norm(dim=1)))
    assert float(g.abs().max()) > 0
    return worst


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("inverse", BOTH, ids=["plain", "inverse"])
@pytest.mark.parametrize("name", ZOO)
def test_influence_equals_autograd(save: Save, name: str, inverse: bool, trained: bool) -> None:
    """Inner products of gradient terms equal those of full per-sample gradients of all parameters."""
    saved = save(name, inverse, trained=trained)
    assert _influence_error(saved, _featurizer(saved.model)) < 1e-4


@pytest.mark.parametrize("inverse", BOTH, ids=["plain", "inverse"])
@pytest.mark.parametrize("name", ZOO)
def test_scores_equal_pykeen(save: Save, name: str, inverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of all tails and of all heads are PyKEEN's predictions, in chunks of any size."""
    saved = save(name, inverse)
    first, _ = _pairs(6)
    triples = torch.as_tensor(first)
    with torch.no_grad():
        wanted_tails, wanted_heads = saved.original.predict_t(triples[:, :2]), saved.original.predict_h(triples[:, 1:])
    for floats, heads_at_once in ((1 << 20, 2048), (1000, 5)):
        monkeypatch.setattr(autograd, "_CHUNK_FLOATS", floats)
        monkeypatch.setattr(models, "_HEADS", heads_at_once)
        featurizer = _featurizer(saved.model)
        with torch.inference_mode():
            tails, heads = (featurizer.candidate_scores(first, direction) for direction in ("tail", "head"))
        torch.testing.assert_close(tails, wanted_tails, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads, wanted_heads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_last_layers_cut_the_head(save: Save, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``last:1`` counts what is read as tail, and nothing through its use as head; the last count is ``all``."""
    saved = save(name, True)
    everything = _featurizer(saved.model)
    named = {name for group in everything.model.depths for name in group}
    assert named == {name for name, _ in saved.original.named_parameters()}
    deepest = _featurizer(saved.model, [f"last:{len(everything.model.depths)}"])
    assert deepest.selection == everything.selection
    embed = saved.original._get_representations

    def detached(h: Any, r: Any, t: Any, mode: Any = None) -> Any:
        h, r, t = embed(h=h, r=r, t=t, mode=mode)
        return ([x.detach() for x in h] if isinstance(h, list) else h.detach()), r, t

    monkeypatch.setattr(saved.original, "_get_representations", detached)
    assert _influence_error(saved, _featurizer(saved.model, ["last:1"])) < 1e-4


@pytest.fixture(scope="module")
def nations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, TripleTable]:
    """Read vocabulary and training triples as PyKEEN saves them; of the triples, a few."""
    folder = tmp_path_factory.mktemp("nations") / "training_triples"
    factory(True).to_path_binary(folder)
    vocabulary, table = read_training_folder(folder)
    rows = np.random.default_rng(0).choice(len(table.ids), 60, replace=False)
    return vocabulary, TripleTable(table.ids[rows], table.train_index[rows], 0)


@pytest.mark.parametrize("name", ZOO)
def test_certified_answers_equal_the_full_scan(
    save: Save, nations: tuple[Vocabulary, TripleTable], name: str, tmp_path: Path
) -> None:
    """An index of each model passes the gate, and every answer of it is certified and exact."""
    _, table = nations
    inverse = bool(sorted(ZOO).index(name) % 2)
    build(tmp_path, save(name, inverse).model, *nations, BuildConfig(precondition="none", dim=8, landmarks=40))
    attributor = open_index(tmp_path, device="cpu")
    queries = np.concatenate([table.ids[:1], _pairs()[1][:1]]).astype(np.int64)
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
    first, second = _pairs()
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
    featurizer = _featurizer(save(name, True).model)
    first, second = _pairs()
    with torch.inference_mode():
        test = featurizer.test_terms(second, "tail")
        wanted = inner(featurizer.training_terms(first), test)
        monkeypatch.setattr(autograd, "_CHUNK_FLOATS", 1000)
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
    featurizer = _featurizer(saved.model)
    assert featurizer.selection.parameters == trained
    assert _influence_error(saved, featurizer) < 1e-4


def test_untrained_conve(save: Save, tmp_path: Path) -> None:
    """A ConvE with a table that was not trained goes through autograd, and keeps the fact when converted."""
    original = save("ConvE", True).original
    table = original.relation_representations[0]._embeddings.requires_grad_(False)
    try:
        saved = _saved(original, tmp_path)
    finally:
        table.requires_grad_(True)
    write_model(saved.model, tmp_path / "converted")
    converted = read_model(tmp_path / "converted")
    assert converted.fingerprint() == saved.model.fingerprint()
    featurizer = _featurizer(converted)
    assert isinstance(featurizer.model, AutogradModel)
    assert "relation_representations.0._embeddings.weight" not in featurizer.selection.parameters
    assert _influence_error(saved, featurizer) < 1e-4


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
    _stir(original)
    saved = _saved(original, tmp_path)
    assert _influence_error(saved, _featurizer(saved.model)) < 1e-4


@pytest.mark.parametrize("name", ["ERMLP", "TuckER", "ConvKB"])
def test_selected_parameters(save: Save, name: str) -> None:
    """Any selection counts the parameters it names and no others: layers without bias, biases alone, the rest."""
    saved = save(name, True)
    for parameter in [name for name, _ in saved.original.named_parameters()]:
        featurizer = _featurizer(saved.model, [parameter])
        assert featurizer.selection.parameters == {parameter}
        assert _influence_error(saved, featurizer) < 1e-3  # sums within one tensor cancel


def _refused() -> dict[str, tuple[Callable[[], Any], str]]:
    import pykeen.models
    from pykeen.nn import Embedding
    from pykeen.nn.representation import LowRankRepresentation

    inverse, plain = factory(True), factory(False)

    def er(**options: Any) -> Any:
        settings: dict[str, Any] = {
            "triples_factory": plain, "interaction": "DistMult",
            "entity_representations_kwargs": {"shape": 4}, "relation_representations_kwargs": {"shape": 4}, **options,
        }  # fmt: skip
        return pykeen.models.ERModel(**settings)

    class Own(Embedding):
        pass

    return {
        "RGCN": (
            lambda: pykeen.models.RGCN(triples_factory=plain, embedding_dim=8),
            "entity_representations.0 is a RGCNRepresentation; only tables of embeddings are supported: where "
            "representations are computed, from neighbours",
        ),
        "CompGCN": (
            lambda: pykeen.models.CompGCN(triples_factory=inverse, embedding_dim=8),
            "is a SingleCompGCNRepresentation; only tables",
        ),
        "NodePiece": (
            lambda: pykeen.models.NodePiece(triples_factory=inverse, embedding_dim=8),
            "is a NodePieceRepresentation; only tables",
        ),
        "low rank": (
            lambda: er(
                relation_representations=LowRankRepresentation,
                relation_representations_kwargs={"shape": 4, "num_bases": 2},
            ),
            "relation_representations.0 is a LowRankRepresentation; only tables",
        ),
        "normalizer across entities": (
            lambda: er(entity_representations_kwargs={"shape": 4, "normalizer": nn.functional.normalize}),
            "must have a negative dim",
        ),
        "unknown normalizer": (
            lambda: er(entity_representations_kwargs={"shape": 4, "normalizer": torch.tanh}),
            "entity_representations.0 has normalizer torch",
        ),
        "Transformer": (
            lambda: er(
                interaction="Transformer", interaction_kwargs={"input_dim": 4, "num_heads": 2, "dim_feedforward": 4}
            ),
            "interaction Transformer is not supported; supported: AutoSF, BoxE, CP",
        ),
        "batch-dependent similarity": (
            lambda: pykeen.models.KG2E(triples_factory=plain, dist_similarity="ExpectedLikelihood"),
            "whose scores in PyKEEN depend on the batch size",
        ),
        "activation with parameters": (
            lambda: pykeen.models.CrossE(triples_factory=plain, embedding_dim=4, combination_activation=nn.PReLU),
            "interaction.activation is a PReLU; supported activations: ELU",
        ),
    }


REFUSED = (
    "RGCN", "CompGCN", "NodePiece", "low rank", "normalizer across entities", "unknown normalizer", "Transformer",
    "batch-dependent similarity", "activation with parameters",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")  # PyKEEN's Transformer is made so
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_explained_is_refused(case: str, tmp_path: Path) -> None:
    """Models whose gradients do not stay in the triple's own rows, or that are not known, are refused by name."""
    make, message = _refused()[case]
    torch.save(make(), tmp_path / "trained_model.pkl")
    with pytest.raises(UnsupportedModel, match=message):
        scoring_model(read_model(tmp_path), CPU)


def test_literals_are_refused(tmp_path: Path) -> None:
    """Models that read literals are refused by name."""
    from pykeen.models import DistMultLiteral
    from pykeen.triples import TriplesNumericLiteralsFactory

    plain = factory(False)
    literals = TriplesNumericLiteralsFactory(
        entity_to_id=plain.entity_to_id,
        relation_to_id=plain.relation_to_id,
        mapped_triples=plain.mapped_triples,
        numeric_literals=np.zeros((plain.num_entities, 2), np.float32),
        literals_to_id={"a": 0, "b": 1},
    )
    torch.save(DistMultLiteral(triples_factory=literals, embedding_dim=4), tmp_path / "trained_model.pkl")
    with pytest.raises(UnsupportedModel, match=r"entity_representations.0 is a CombinedRepresentation; .* literals"):
        scoring_model(read_model(tmp_path), CPU)


def test_models_that_contradict_themselves_are_refused(save: Save) -> None:
    """A file whose modules or tensors are not those of its interaction is refused, and says what differs."""
    model = save("TransE", True).model
    with pytest.raises(UnsupportedModel, match=r"said to be a TransF, but interaction is a TransEInteraction"):
        scoring_model(replace(model, interaction="TransF"), CPU)
    tensors = {**model.tensors, "interaction.extra": torch.zeros(2)}
    with pytest.raises(UnsupportedModel, match=r"interaction.extra is \(2,\), expected no such tensor"):
        scoring_model(replace(model, tensors=tensors), CPU)
    conv = save("ConvKB", True).model
    modules = {**conv.modules, "interaction.activation": {"class": "Tanh"}}
    with pytest.raises(UnsupportedModel, match=r"interaction.activation is a Tanh, expected ReLU"):
        scoring_model(replace(conv, modules=modules), CPU)
    table = "entity_representations.0"
    modules = {**model.modules, table: {**model.modules[table], "shape": [3]}}
    with pytest.raises(UnsupportedModel, match=r"recorded with shape \(3,\), but .* has rows of 8"):
        scoring_model(replace(model, modules=modules), CPU)


def test_state_dicts_do_not_say_enough(save: Save, tmp_path: Path) -> None:
    """A state dict records neither norms nor representations, so it is refused with what to pass instead."""
    torch.save(save("TransE", True).original.state_dict(), tmp_path / "model.pt")
    model = read_model(tmp_path / "model.pt", interaction="TransE", num_relations=55)
    with pytest.raises(UnsupportedModel, match=r"does not record the representations of TransE; pass the whole saved"):
        scoring_model(model, CPU)


def test_gradients_that_are_too_large_are_refused(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and parameters whose gradients cannot be kept for every triple are refused, naming them."""
    featurizer = _featurizer(save("ConvKB", True).model)
    monkeypatch.setattr(autograd, "MAX_FLOATS", 7)
    with pytest.raises(
        UnsupportedModel, match=r"gradients of interaction.conv.weight \(5, 1, 1, 3\) are no short sums"
    ):
        featurizer.training_terms(_pairs()[0])
    with pytest.raises(UnsupportedModel, match="has rows of 8 values, more than the 7"):
        scoring_model(save("TransE", True).model, CPU)


def test_pykeen_is_needed_and_missed(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyKEEN its interactions cannot be computed, and the message says what to install."""
    model = save("TransE", True).model
    monkeypatch.setitem(sys.modules, "pykeen.nn.modules", None)
    with pytest.raises(MissingExtra, match="TransE is computed with PyKEEN, which is not installed: pip install"):
        scoring_model(model, CPU)


# Models of one's own: what the documentation shows.


class Score(nn.Module):
    """The score of the rows that a network has looked up."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (h[0] * r[0] * self.mix(t[0])).sum(-1)


def explainable(model: ModelFile, device: torch.device) -> AutogradModel:
    tables = {name: model.tensors[name].to(device) for name in ("entity.weight", "relation.weight")}
    score = Score(tables["entity.weight"].shape[1])
    score.load_state_dict({f"mix.{part}": model.tensors[f"score.mix.{part}"] for part in ("weight", "bias")})
    entity, relation = Reading("entity.weight"), Reading("relation.weight")
    return AutogradModel(tables, head=[entity], relation=[relation], tail=[entity], score=score.to(device))


class ByHand:
    """DistMult: s = Σ h r t."""

    def __init__(self, model: ModelFile, device: torch.device) -> None:
        self.entity, self.relation = (model.tensors[name].to(device) for name in ("entity.weight", "relation.weight"))

    @property
    def device(self) -> torch.device:
        return self.entity.device

    def select(self, layers: Sequence[str]) -> Selection:
        return select_layers(layers, [["entity.weight"], ["relation.weight"]])

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: Loss, selection: Selection
    ) -> Terms:
        h, r, t = self.entity[head], self.relation[relation], self.entity[tail]
        value, slope = loss((h * r * t).sum(1))
        uses = {"entity.weight": [Rows(tail, slope[:, None] * h * r)]}
        if selection.head_use:
            uses["entity.weight"].append(Rows(head, slope[:, None] * r * t))
        uses["relation.weight"] = [Rows(relation, slope[:, None] * h * t)]
        return Terms(per_triple, value, {}, {}, {table: uses[table] for table in uses if table in selection})

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        return (self.entity[head] * self.relation[relation]) @ self.entity.T


class Network(nn.Module):
    """A KGE in plain PyTorch, as its author trains it."""

    def __init__(self, entities: int, relations: int, dim: int, score: nn.Module | None) -> None:
        super().__init__()
        self.entity, self.relation, self.score = nn.Embedding(entities, dim), nn.Embedding(relations, dim), score

    def forward(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        h, r, t = self.entity(head), self.relation(relation), self.entity(tail)
        return (h * r * t).sum(-1) if self.score is None else self.score([h], [r], [t])


def _own_index(root: Path, nations: tuple[Vocabulary, TripleTable], score: nn.Module | None, kind: str) -> Network:
    """Index a random network of one's own."""
    vocabulary, table = nations
    torch.manual_seed(0)
    network = Network(len(vocabulary.entities), len(vocabulary.relations), 6, score)
    model = ModelFile(
        interaction=kind,
        tensors=network.state_dict(),
        num_entities=len(vocabulary.entities),
        num_relations=len(vocabulary.relations),
        inverse_triples=False,
        modules={},
        loss={},
        source="own training code",
    )
    build(root, model, vocabulary, table, BuildConfig(loss="bce", precondition="none", dim=8, landmarks=40))
    return network


def _check_own_index(root: Path, network: Network, table: TripleTable) -> None:
    """Compare certified answers with autograd on the network."""

    def gradient(triple: np.ndarray) -> Tensor:
        network.zero_grad()
        torch.nn.functional.softplus(-network(*torch.as_tensor(triple.astype(np.int64)))).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    query = table.ids[:1].astype(np.int64)
    found = open_index(root, device="cpu").query(query, top_k=5).attributions[0]
    truth = torch.stack([gradient(t) for t in table.ids]) @ gradient(query[0])
    assert found.certified
    np.testing.assert_allclose(found.influence, truth.topk(5).values, rtol=1e-4)
    rows = [table.train_index.tolist().index(i) for i in found.train_index]
    np.testing.assert_allclose(truth[rows], found.influence, rtol=1e-4)
    _check_own_heads(open_index(root, device="cpu"), network, query)


def _check_own_heads(attributor: Attributor, network: Network, query: np.ndarray) -> None:
    """Compare the model's best heads with the network's own scores, triple by triple."""
    _, relation, tail = torch.as_tensor(query[0])
    every = torch.arange(len(attributor.vocabulary.entities))
    with torch.no_grad():
        wanted = network(every, relation.expand(len(every)), tail.expand(len(every))).sort(descending=True)
    (found,) = attributor.complete(query, top_k=len(every), direction="head")
    assert found.entities.tolist() == wanted.indices.tolist()
    np.testing.assert_allclose(found.scores, wanted.values, rtol=1e-5, atol=1e-6)
    heads, tails = (attributor.query(query, direction=direction).attributions[0] for direction in ("head", "tail"))
    np.testing.assert_array_equal(heads.influence, tails.influence)


@pytest.mark.parametrize(("kind", "factory_", "score"), [("Plain", explainable, Score(6)), ("ByHand", ByHand, None)])
def test_a_model_of_ones_own(
    nations: tuple[Vocabulary, TripleTable],
    kind: str,
    factory_: Callable[[ModelFile, torch.device], ScoringModel],
    score: nn.Module | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plain PyTorch model is registered, indexed, reopened and explained exactly."""
    monkeypatch.setattr(models, "_REGISTERED", {})
    with pytest.raises(UnsupportedModel, match=f"no model of the name {kind} is registered here.*register_model"):
        _own_index(tmp_path, nations, score, kind)
    register_model(kind, factory_)
    _check_own_index(tmp_path, _own_index(tmp_path, nations, score, kind), nations[1])


class Twice(Score):
    """Passes two inputs a triple through one layer, whose gradient then is no single rank-1 term."""

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (self.mix(h[0]) * r[0] * self.mix(t[0])).sum(-1)


def test_a_layer_that_is_called_twice(
    nations: tuple[Vocabulary, TripleTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that samples pass more than once are differentiated triple by triple."""
    monkeypatch.setattr(models, "_REGISTERED", {"Twice": explainable})
    monkeypatch.setattr(sys.modules[__name__], "Score", Twice)
    _check_own_index(tmp_path, _own_index(tmp_path, nations, Twice(6), "Twice"), nations[1])


class First(nn.Module):
    """Sums over the first dimension after the samples', which is the embeddings' for single triples alone."""

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (h[0] * r[0] * t[0]).sum(1)


class Uneven(nn.Module):
    """Scores single triples otherwise than many."""

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (h[0] * r[0] * t[0]).sum(-1) * (h[0].dim() if h[0].dim() == 3 else 1)


@pytest.mark.parametrize(
    ("score", "width", "message"),
    [
        (First(), 14, "by itself, but .* among all tails"),
        (First(), 15, "cannot score all tails"),
        (Uneven(), 5, "by itself"),
    ],
)
def test_a_score_that_depends_on_the_dimensions_is_refused(
    nations: tuple[Vocabulary, TripleTable],
    score: nn.Module,
    width: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores of all tails must be those of single triples, also where the shape is right by chance."""
    vocabulary, table = nations
    generator = torch.Generator().manual_seed(0)
    sizes = {"e": len(vocabulary.entities), "r": len(vocabulary.relations)}
    tensors = {name: torch.randn(rows, width, generator=generator) for name, rows in sizes.items()}

    def made(model: ModelFile, device: torch.device) -> AutogradModel:
        entity = [Reading("e")]
        return AutogradModel(model.tensors, head=entity, relation=[Reading("r")], tail=entity, score=score)

    monkeypatch.setattr(models, "_REGISTERED", {"Wrong": made})
    model = ModelFile("Wrong", tensors, sizes["e"], sizes["r"], False, {}, {}, "own training code")
    with pytest.raises(UnsupportedModel, match=rf"Wrong .*{message}.*\(m, n\)"):
        build(tmp_path, model, vocabulary, table, BuildConfig())
    assert not (tmp_path / "CURRENT").exists()


def test_samples_that_are_mixed_are_refused() -> None:
    """A batch norm that normalizes by the batch at hand makes scores depend on it."""
    score = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    entity = Reading("entity.weight")
    with pytest.raises(UnsupportedModel, match="batch norm 0 has no running statistics"):
        AutogradModel({"entity.weight": torch.ones(4, 3)}, head=[entity], relation=[], tail=[entity], score=score)


def test_an_installed_model_is_found(
    nations: tuple[Vocabulary, TripleTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that offers a model as an entry point needs no registration."""

    def offered(*, group: str, name: str) -> list[EntryPoint]:
        assert group == "kgtrace.models"
        return [EntryPoint("ByHand", f"{__name__}:ByHand", group)] if name == "ByHand" else []

    monkeypatch.setattr(models, "entry_points", offered)
    _check_own_index(tmp_path, _own_index(tmp_path, nations, None, "ByHand"), nations[1])


def test_documented_code_is_tested() -> None:
    """Every Python block of the documentation stands in this file."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    assert all(block.strip() in Path(__file__).read_text(encoding="utf-8") for block in blocks)


# The table in the documentation.


def _row(save: Save, name: str) -> str:
    """Return a model's row: what its gradients are made of at PyKEEN's default size, and how much of it there is."""
    import pykeen.models

    default = getattr(pykeen.models, name)(triples_factory=factory(False), random_seed=0)
    exact = _influence_error(save(name, False), _featurizer(save(name, False).model)) < 1e-4
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
        model = _saved(original, Path(folder)).model
        return _featurizer(model).training_terms(factory(False).mapped_triples[:1].numpy())


def test_the_documented_table_is_true(save: Save) -> None:
    """The table in the documentation says what the models here turn out to be."""
    documented = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert documented[: len(ZOO)] == [_row(save, name) for name in ZOO]
