"""From a model and triples to a generation, and back to answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, Restriction, TripleTable, build, open_index
from kgtrace_indexer.building import parts
from kgtrace_indexer.building.build import _fingerprint
from kgtrace_indexer.building.checks import verify
from kgtrace_indexer.index.short_code import ShortCode
from kgtrace_store import FaissSearch, IndexRoot, Vocabulary, layout
from kgtrace_store.arrays import open_arrays
from kgtrace_store.errors import (
    Abandoned,
    BadRequest,
    CorruptGeneration,
    EmptyInput,
    IdOutOfRange,
    MissingInverseRelations,
    NonFinite,
    UnsupportedModel,
    VocabularyMismatch,
)

Umls = tuple[ModelFile, Vocabulary, TripleTable]
SMALL = BuildConfig(precondition="none", dim=8, landmarks=128)
ORDERS = ("proponents", "opponents", "absolute")
both_scores = pytest.mark.parametrize("score", ["tracin", "preconditioned"])


def _few(umls: Umls, count: int = 300) -> Umls:
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:count], table.train_index[:count], 0)


@both_scores
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("direction", ["tail", "head"])
def test_certified_answers_equal_the_full_scan(
    umls: Umls, umls_index: Path, order: str, direction: str, score: str
) -> None:
    """Searching finds what computing every influence finds, in either direction and order."""
    attributor = open_index(umls_index, device="cpu")
    queries = umls[2].ids[np.random.default_rng(0).choice(len(umls[2].ids), 25)].astype(np.int64)
    queries[:10, 2] = np.random.default_rng(1).integers(0, 135, 10)  # some false ones
    asked = {"top_k": 10, "order": order, "direction": direction, "score": score}
    found = attributor.query(queries, **asked).attributions
    wanted = attributor.query(queries, **asked, exact=True).attributions
    for a, b in zip(found, wanted, strict=True):
        assert a.certified
        assert a.bound_gap == 0
        np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4)
        np.testing.assert_allclose(a.cosine, b.cosine, rtol=1e-3)
        ties = np.isclose(a.influence, b.influence, rtol=1e-5)
        assert (a.train_index == b.train_index)[~ties].all() if not ties.all() else True
        assert set(a.train_index) == set(b.train_index)


def test_answers_describe_the_test_triple(umls: Umls, umls_index: Path) -> None:
    """Score, filtered rank, membership and self-influence are those of the model and the training set."""
    model, _, table = umls
    attributor = open_index(umls_index, device="cpu")
    known = {tuple(t) for t in table.ids.tolist()}
    head, relation, tail = (int(i) for i in table.ids[7])
    missing = next(e for e in range(model.num_entities) if (head, relation, e) not in known)
    answer = attributor.query(
        np.array([[head, relation, tail], [head, relation, missing]]), exact=True, top_k=len(known)
    )
    for found, target in zip(answer.attributions, (tail, missing), strict=True):
        scores = attributor.featurizer.candidate_scores(np.array([[head, relation, 0]]), "tail")[0].numpy()
        others = [e for e in range(model.num_entities) if (head, relation, e) not in known]
        assert found.rank == 1 + sum(scores[e] > scores[target] for e in others)
        assert found.in_training == (target == tail)
        assert found.score == pytest.approx(scores[target], rel=1e-5)
        assert found.loss == pytest.approx(-found.score, rel=1e-6)
    own = answer.attributions[0]
    place = own.train_index.tolist().index(7)
    assert np.array_equal(own.triples[place], table.ids[7])
    assert own.cosine.max() <= 1 + 1e-5


@both_scores
def test_a_budget_gives_an_honest_answer(umls: Umls, umls_index: Path, score: str) -> None:
    """Cut short, an answer is not certified and says how much could be missing."""
    attributor = open_index(umls_index, device="cpu")
    queries = umls[2].ids[:20].astype(np.int64)
    exact = attributor.query(queries, exact=True, score=score).attributions
    cut = attributor.query(queries, max_candidates=12, score=score).attributions
    assert any(not found.certified for found in cut)
    for a, b in zip(cut, exact, strict=True):
        assert a.candidates <= 12
        assert a.certified == (a.bound_gap == 0)
        assert b.influence[0] <= max(a.influence[0], a.influence[-1] + a.bound_gap) * (1 + 1e-4)
    nothing = attributor.query(queries[:1], max_candidates=0, score=score).attributions[0]
    assert not nothing.certified
    assert len(nothing.influence) == 0
    assert nothing.bound_gap >= exact[0].influence[0]


def test_an_exact_scan_can_be_given_up(umls: Umls, umls_index: Path) -> None:
    """It is asked before each block whether anybody still waits, and ends when nobody does."""
    attributor = open_index(umls_index, device="cpu")
    asked = iter([True, False])
    with pytest.raises(Abandoned, match=r"a scan of 5216 training triples was given up"):
        attributor.query(umls[2].ids[:1].astype(np.int64), exact=True, wanted=lambda: next(asked))
    assert attributor.query(umls[2].ids[:1].astype(np.int64), wanted=lambda: False).attributions[0].certified


@both_scores
def test_restrictions(umls: Umls, umls_index: Path, score: str) -> None:
    """Filtered answers are the exact answer's part that passes the filter."""
    attributor = open_index(umls_index, device="cpu")
    query = umls[2].ids[3:4].astype(np.int64)
    everything = attributor.query(query, exact=True, top_k=len(attributor), score=score).attributions[0]
    relation, head = int(query[0, 1]), int(query[0, 0])
    columns = everything.triples.T
    cases = [
        (Restriction(must={"relation": [relation, relation + 1]}), np.isin(columns[1], [relation, relation + 1])),
        (Restriction(must_not={"head": [head]}), columns[0] != head),
        (
            Restriction(must={"tail": [5]}, must_not={"relation": [relation]}),
            (columns[2] == 5) & (columns[1] != relation),
        ),
        (Restriction(must={"relation": []}), np.zeros(len(attributor), bool)),
    ]
    for restriction, passes in cases:
        for exact in (False, True):
            asked = {"restriction": restriction, "exact": exact, "score": score}
            found = attributor.query(query, top_k=15, **asked).attributions[0]
            assert found.certified
            np.testing.assert_allclose(found.influence, everything.influence[passes][:15], rtol=1e-4)
            assert len(found.influence) == min(15, passes.sum())


@both_scores
def test_batches_answer_as_single_queries(umls: Umls, umls_index: Path, score: str) -> None:
    """What is asked together is answered as if asked alone."""
    attributor = open_index(umls_index, device="cpu")
    queries = umls[2].ids[50:66].astype(np.int64)
    for query, found in zip(queries, attributor.query(queries, score=score).attributions, strict=True):
        alone = attributor.query(query[None], score=score).attributions[0]
        np.testing.assert_allclose(found.influence, alone.influence, rtol=1e-4)
        assert set(found.train_index) == set(alone.train_index)


def test_a_served_training_triple_reproduces_its_stored_row(umls_index: Path) -> None:
    """Training triples featurized at query time have the code that the build stored."""
    attributor = open_index(umls_index, device="cpu")
    rows = np.arange(0, len(attributor), 37)
    again = attributor.encode_again(rows)
    stored = attributor.files.take(again.keys(), rows)
    assert sum(name.endswith(".grad") for name in again) == 2
    for name, fresh in again.items():
        scale = np.sqrt(attributor.training.squared_norm["preconditioned"][rows]).max()
        np.testing.assert_allclose(fresh, stored[name], rtol=1e-3, atol=1e-4 * scale)


def test_checks_pass_and_notice_a_wrong_model(umls: Umls, umls_index: Path) -> None:
    """A sound index passes; with another model's parameters, stored rows and answers no longer agree."""
    attributor = open_index(umls_index, device="cpu")
    assert [c.name for c in verify(attributor) if not c.ok] == []
    attributor.featurizer.model.entities.mul_(1.5)
    assert {"stored rows", "bounds"} <= {c.name for c in verify(attributor) if not c.ok}


def test_build_does_not_depend_on_batches(umls: Umls, tmp_path: Path) -> None:
    """The same index comes out of batches of 7 and of 2048, up to rounding."""
    a, b = (tmp_path / name for name in "ab")
    build(a, *_few(umls), replace(SMALL, batch_size=7))
    build(b, *_few(umls), SMALL)
    first, second = (open_arrays(IndexRoot(root).open().path / "gradients.h5") for root in (a, b))
    assert IndexRoot(a).open().manifest.fingerprint == IndexRoot(b).open().manifest.fingerprint
    for name, array in first.items():
        if array.dtype.kind == "i":
            np.testing.assert_array_equal(array, second[name])
        elif array.size and not name.endswith("code"):
            np.testing.assert_allclose(array, second[name], rtol=1e-3, atol=1e-4 * np.abs(array).max())


def test_an_interrupted_build_is_resumed(umls: Umls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that were finished are not computed again, and the result is that of an uninterrupted build."""
    monkeypatch.setattr(parts, "_PART", 64)
    seen: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "a", *_few(umls), SMALL, progress=stop)
    assert IndexRoot(tmp_path / "a").current() is None
    encoded: list[int] = []
    stored = parts.stored
    monkeypatch.setattr(parts, "stored", lambda *args: (encoded.append(len(args[3])), stored(*args))[1])
    build(tmp_path / "a", *_few(umls), SMALL)
    assert sum(encoded) == 300 - 2 * 64
    build(tmp_path / "b", *_few(umls), SMALL)
    first, second = (IndexRoot(tmp_path / root).open().manifest.files for root in "ab")
    assert first == second


def test_the_search_index_holds_short_codes(umls_index: Path) -> None:
    """``search.faiss`` holds 16 bytes of every triple, whose scores bound those of [φ, ρ] closely."""
    generation = IndexRoot(umls_index).open()
    arrays = open_arrays(generation.path / "gradients.h5")
    short = ShortCode(open_arrays(generation.path / "search.h5")["search.columns"])
    index = FaissSearch.read(generation.path / "search.faiss")
    phi, rho = arrays["projected"], arrays["residual"]
    scores, ids = index.search(short.query_vectors(phi[:1], rho[:1]), 5)
    np.testing.assert_allclose(
        scores[0], short.stored(phi, rho)[ids[0]] @ short.query_vectors(phi[:1], rho[:1])[0], rtol=1e-4
    )
    assert (scores[0] >= phi[ids[0]] @ phi[0] + rho[ids[0]] @ rho[0]).all()
    assert (generation.path / "search.faiss").stat().st_size < 16 * index.ntotal + 200


def test_forward_and_layers_are_honoured(umls: Umls, tmp_path: Path) -> None:
    """A forward index of the last two layers explains by these alone, certified."""
    build(tmp_path, *_few(umls), replace(SMALL, directions="forward", layers=("last:2",)))
    attributor = open_index(tmp_path, device="cpu")
    assert attributor.manifest.configuration["directions"] == "forward"
    queries = umls[2].ids[:10].astype(np.int64)
    found = attributor.query(queries).attributions
    for a, b in zip(found, attributor.query(queries, exact=True).attributions, strict=True):
        assert a.certified
        np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4)


def test_one_triple_is_enough(umls: Umls, tmp_path: Path) -> None:
    """The smallest training set makes an index that answers."""
    build(tmp_path, *_few(umls, 1), SMALL)
    found = open_index(tmp_path, device="cpu").query(umls[2].ids[:1].astype(np.int64), top_k=5).attributions[0]
    assert found.certified
    assert found.train_index.tolist() == [0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim is 0, must be at least 1"),
        ("landmarks", 0, "landmarks is 0"),
        ("batch_size", -1, "batch_size is -1"),
        ("dtype", "int8", "dtype 'int8' is not one of float16, float32"),
    ],
)
def test_wrong_configurations_are_refused(field: str, value: object, message: str) -> None:
    """A configuration that cannot be honoured is refused when it is made."""
    with pytest.raises(BadRequest, match=message):
        BuildConfig(**{field: value})


def test_what_does_not_belong_together_is_refused(umls: Umls, tmp_path: Path) -> None:
    """Vocabulary, triples, loss and directions that the model cannot have are named; nothing is published."""
    model, vocabulary, table = _few(umls)
    short = Vocabulary(vocabulary.entities[:-1], vocabulary.relations)
    with pytest.raises(VocabularyMismatch, match="the vocabulary has 134 entities, the model 135"):
        build(tmp_path, model, short, table, SMALL)
    beyond = TripleTable(np.array([[0, 0, 1], [0, 46, 1]], np.int32), np.array([0, 4]), 0)
    with pytest.raises(IdOutOfRange, match="training triple 4: relation id 46 is out of range: the model has 46"):
        build(tmp_path, model, vocabulary, beyond, SMALL)
    with pytest.raises(BadRequest, match="unknown loss 'hinge'; known: bce"):
        build(tmp_path, model, vocabulary, table, replace(SMALL, loss="hinge"))
    with pytest.raises(MissingInverseRelations, match="needs a model trained with inverse triples"):
        build(tmp_path, replace(model, inverse_triples=False), vocabulary, table, replace(SMALL, directions="both"))
    with pytest.raises(UnsupportedModel, match="interaction RGCN is not supported"):
        build(tmp_path, replace(model, interaction="RGCN"), vocabulary, table, SMALL)
    assert not (tmp_path / "CURRENT").exists()


def test_gradients_that_are_not_finite_are_named(umls: Umls, tmp_path: Path) -> None:
    """A model whose gradients overflow is refused with the triple, and the live generation stays."""
    model, vocabulary, table = _few(umls)
    build(tmp_path, model, vocabulary, table, SMALL)
    live = IndexRoot(tmp_path).current()
    tensors = {**model.tensors, "interaction.hr1d.0.weight": model.tensors["interaction.hr1d.0.weight"] * 1e37}
    with pytest.raises(NonFinite, match=r"the gradient of training triple \d+ \(ids .*\) is not finite"):
        build(tmp_path, replace(model, tensors=tensors), vocabulary, table, SMALL)
    assert IndexRoot(tmp_path).current() == live


@pytest.mark.parametrize(
    ("triples", "options", "error", "message"),
    [
        ([[135, 0, 0]], {}, IdOutOfRange, "head id 135 is out of range: the model has 135"),
        ([[0, -1, 0]], {}, IdOutOfRange, "relation id -1 is out of range: the model has 46"),
        (np.empty((0, 3), np.int64), {}, BadRequest, "no triples to explain"),
        ([[0, 0]], {}, BadRequest, r"need \(b, 3\) integers"),
        ([[0, 0, 0]], {"top_k": 0}, BadRequest, "top_k is 0"),
        ([[0, 0, 0]], {"max_candidates": -1}, BadRequest, "max_candidates is -1"),
    ],
)
def test_wrong_queries_are_refused(
    umls_index: Path, triples: list, options: dict, error: type[Exception], message: str
) -> None:
    """Queries that cannot be answered say why."""
    with pytest.raises(error, match=message):
        open_index(umls_index, device="cpu").query(np.array(triples), **options)


def test_a_build_of_nothing_is_refused(umls: Umls, tmp_path: Path) -> None:
    """Without training triples there is nothing to index."""
    model, vocabulary, table = umls
    with pytest.raises(EmptyInput, match="no training triples"):
        build(tmp_path, model, vocabulary, TripleTable(table.ids[:0], table.train_index[:0], 0), SMALL)


def test_counts_that_disagree_are_noticed(umls: Umls, tmp_path: Path) -> None:
    """An index whose search file holds other vectors than its arrays is not opened."""
    build(tmp_path, *_few(umls), SMALL)
    generation = IndexRoot(tmp_path).open()
    path = generation.path / "search.faiss"
    arrays = open_arrays(generation.path / "gradients.h5")
    dim = arrays["projected"].shape[1] + arrays["residual"].shape[1]
    FaissSearch.build([np.zeros((5, dim), np.float32)], 5, dim).write(path)
    with pytest.raises(CorruptGeneration, match=r"sha256|bytes"):
        open_index(tmp_path, device="cpu")
    with pytest.raises(CorruptGeneration, match=r"counts 300 triples, gradients.h5 holds 300, search.faiss 5"):
        open_index(tmp_path, device="cpu", verify=False)


def test_device_that_is_not_there(umls: Umls, tmp_path: Path) -> None:
    """Asking for a GPU where there is none says so."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(BadRequest, match="torch sees no CUDA device; use --device cpu"):
        build(tmp_path, *_few(umls), replace(SMALL, device="cuda"))


def test_everything_that_a_generation_holds_is_in_its_fingerprint(umls: Umls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal fingerprints mean equal content: labels, names and the schema version count, too, and who has which."""
    model, _, table = umls
    settings = {"seed": 0}
    vocabularies = [
        Vocabulary(["a", "b"], ["c"]),
        Vocabulary(["a"], ["b", "c"]),
        Vocabulary(["a\nb"], ["c"]),
        Vocabulary(["a", "b"], ["c"], {0: "x"}),
        Vocabulary(["a", "b"], ["c"], {1: "x"}),
        Vocabulary(["a", "b"], ["c"], {0: "y"}),
        Vocabulary(["a", "b"], ["c"], {}, {0: "x"}),
    ]
    found = [_fingerprint(model, vocabulary, table, settings) for vocabulary in vocabularies]
    again = Vocabulary(("a", "b"), ("c",), {0: "x"})
    assert _fingerprint(model, again, table, settings) == found[3]
    monkeypatch.setattr(layout, "SCHEMA_VERSION", layout.SCHEMA_VERSION + 1)
    found.append(_fingerprint(model, vocabularies[0], table, settings))
    assert len(set(found)) == len(vocabularies) + 1
