"""The preconditioned score, against its dense formula with gradients from PyTorch's autograd."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import Attributor, BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING
from kgtrace_indexer.models.conve_network import BIAS, ENTITY, RELATION
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest
from tests.indexer.oracle import Dense

Umls = tuple[ModelFile, Vocabulary, TripleTable]
TRIPLES = 120
TESTS = np.array([[3, 5, 9], [15, 2, 40], [7, 7, 7]])


@pytest.fixture(scope="module")
def umls_part(umls: Umls) -> Umls:
    """Some of the training triples, which share few entities."""
    model, vocabulary, table = umls
    rows = np.sort(np.random.default_rng(0).choice(len(table.ids), TRIPLES, replace=False))
    return model, vocabulary, TripleTable(table.ids[rows], table.train_index[rows], 0)


@pytest.fixture(scope="module")
def attributor(umls_part: Umls, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    """As trained, in both directions."""
    return built(tmp_path_factory.mktemp("whole"), umls_part)


def built(root: Path, umls: Umls, **config: object) -> Attributor:
    """Build in float32 with few directions, and open."""
    build(root, *umls, BuildConfig(**{"loss": "bce", "dim": 8, "landmarks": 100, "dtype": "float32", **config}))
    return open_index(root, device="cpu")


@pytest.mark.parametrize("directions", ["forward", "both"])
def test_it_is_the_dense_formula(umls_part: Umls, umls_folder: Path, tmp_path: Path, directions: str) -> None:
    """Exactly recomputed, and searched for and certified, for any damping."""
    attributor = built(tmp_path, umls_part, directions=directions)
    train = np.asarray(attributor.training.triples)
    dense = Dense(umls_folder, train, ["tail", "head"] if directions == "both" else ["tail"])
    # uses of one row by one triple count apart in the mean ‖g‖² that the damping is in units of
    tolerance = 1e-3 if directions == "forward" else 0.05
    for damping in (None, 0.01, 100.0):
        wanted = dense.scores(TESTS, (AUTO_DAMPING if damping is None else damping) * dense.mean_square())
        found = attributor.exact_influences(TESTS, np.arange(TRIPLES), score="preconditioned", damping=damping)
        np.testing.assert_allclose(found, wanted, atol=tolerance * abs(wanted).max())
        answer = attributor.query(TESTS, top_k=7, score="preconditioned", damping=damping)
        for each, column in zip(answer.attributions, found.T, strict=True):
            assert each.certified
            np.testing.assert_allclose(each.influence, np.sort(column)[::-1][:7], rtol=1e-3, atol=1e-6)


def test_without_end_of_damping_rows_have_their_plain_influence(
    attributor: Attributor, umls_part: Umls, tmp_path: Path
) -> None:
    """P tends to the identity on embedding rows, and to nothing elsewhere."""
    rows = built(tmp_path, umls_part, layers=(ENTITY, BIAS, RELATION))
    every = np.arange(TRIPLES)
    found = attributor.exact_influences(TESTS, every, score="preconditioned", damping=1e9)
    np.testing.assert_allclose(found, rows.exact_influences(TESTS, every, score="tracin"), rtol=1e-4, atol=1e-7)


def test_numbers_of_an_answer_are_of_the_score(attributor: Attributor) -> None:
    """Self-influence is g'ᵀPg', cosines are at most 1, and sums by relation are sums of scores."""
    test = attributor.training.triples[:1].astype(np.int64)
    every = attributor.exact_influences(test, np.arange(TRIPLES), score="preconditioned")[:, 0]
    (plain,) = attributor.query(test, score="tracin").attributions
    (found,) = attributor.query(test, top_k=TRIPLES, score="preconditioned").attributions
    assert found.loss == plain.loss
    assert 0 < found.self_influence < plain.self_influence
    assert (abs(found.cosine) <= 1 + 1e-5).all()
    sums = attributor.aggregate(test[0], "relation", top_k=50, exact=True, score="preconditioned")
    np.testing.assert_allclose(sums.total.sums, every.astype(np.float64).sum(), rtol=1e-4)


def test_it_is_what_an_index_answers_unless_asked(umls_part: Umls, attributor: Attributor, tmp_path: Path) -> None:
    """With the index's own damping; or plain influence, where it was built so."""
    assert attributor.score == "preconditioned"
    other = built(tmp_path / "other", umls_part, precondition="fisher", damping=5.0)
    every = np.arange(TRIPLES)
    for each, damping in ((attributor, AUTO_DAMPING), (other, 5.0)):
        wanted = each.exact_influences(TESTS, every, score="preconditioned", damping=damping)
        np.testing.assert_array_equal(each.exact_influences(TESTS, every), wanted)
        (found,) = each.query(TESTS[:1], top_k=5).attributions
        np.testing.assert_allclose(found.influence, np.sort(wanted[:, 0])[::-1][:5], rtol=1e-3, atol=1e-6)
    wanted = attributor.exact_influences(TESTS, every, score="preconditioned")
    np.testing.assert_array_equal(other.exact_influences(TESTS, every, damping="auto"), wanted)
    plain = built(tmp_path / "plain", umls_part, precondition="none")
    assert plain.score == "tracin"
    wanted = attributor.exact_influences(TESTS, every, score="tracin")
    np.testing.assert_array_equal(plain.exact_influences(TESTS, every), wanted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"projection": "none"}, "projection pca"),
        ({"projection": "gaussian"}, "projection pca"),
        ({"loss": "ce-1vsall"}, "loss of single tails"),
        ({"layers": ("interaction.hr1d.0.weight",)}, "hold no gradients of embedding rows"),
    ],
)
def test_what_cannot_be_preconditioned_is_refused(
    umls_part: Umls, tmp_path: Path, config: dict[str, object], said: str
) -> None:
    """By a build that prefers it, and by a query of an index that was built without it, as the default is then."""
    with pytest.raises(BadRequest, match=said):
        built(tmp_path / "first", umls_part, precondition="fisher", **config)
    attributor = built(tmp_path / "second", umls_part, **config)
    assert attributor.score == "tracin"
    with pytest.raises(BadRequest, match=said):
        attributor.query(TESTS, score="preconditioned")


def test_gradients_that_are_all_zero_stay_so(umls_part: Umls, tmp_path: Path) -> None:
    """There is nothing to divide by then."""
    model, vocabulary, table = umls_part
    tensors = {**model.tensors, BIAS: torch.full_like(model.tensors[BIAS], 200.0)}  # where softplus is flat
    attributor = built(tmp_path, (replace(model, tensors=tensors), vocabulary, table))
    (found,) = attributor.query(TESTS[:1], score="preconditioned").attributions
    assert found.certified
    assert not found.influence.any()


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf"), "none"])
def test_damping_is_a_positive_number(attributor: Attributor, damping: float) -> None:
    """Nothing else makes F + σ²I invertible."""
    with pytest.raises(BadRequest, match="damping is"):
        BuildConfig(damping=damping)
    with pytest.raises(BadRequest, match="damping is"):
        attributor.query(TESTS, score="preconditioned", damping=damping)


def test_damping_of_plain_influence_is_refused(attributor: Attributor) -> None:
    """It would say nothing."""
    with pytest.raises(BadRequest, match="damping is of the preconditioned score"):
        attributor.query(TESTS, score="tracin", damping=1.0)


def test_an_index_that_is_let_go_is_gone(umls_part: Umls, tmp_path: Path) -> None:
    """Its files are unmapped at once, not when garbage is collected: a service changes generations for years."""
    attributor = built(tmp_path, umls_part)
    attributor.query(TESTS, score="preconditioned")
    left = weakref.ref(attributor.training.triples)
    gc.disable()
    try:
        del attributor
        assert left() is None
    finally:
        gc.enable()
