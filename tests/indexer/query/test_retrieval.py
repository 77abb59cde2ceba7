"""Indexes of random projections, of nothing, and of a sample of the training triples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import (
    Attributor,
    BuildConfig,
    ModelFile,
    Restriction,
    TripleTable,
    append,
    build,
    open_index,
)
from kgtrace_indexer.building.checks import verify
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import Kron, Rows, Terms
from kgtrace_indexer.inputs.sampling import sample_rows
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.query.retrieval import norm_products
from kgtrace_store import IndexRoot, Vocabulary
from kgtrace_store.arrays import open_arrays
from kgtrace_store.errors import BadRequest, CorruptGeneration

Umls = tuple[ModelFile, Vocabulary, TripleTable]
COUNT = 300
SMALL = BuildConfig(precondition="none", dim=8, landmarks=64, device="cpu")
KINDS = ("pca", "gaussian", "sparse", "none")
RANDOM = ("gaussian", "sparse")


@pytest.fixture(scope="module")
def few(umls: Umls) -> Umls:
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:COUNT], table.train_index[:COUNT], 0)


@pytest.fixture(scope="module")
def roots(few: Umls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An index root of each kind."""
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        build(found[kind], *few, replace(SMALL, projection=kind))
    return found


@pytest.fixture(scope="module")
def sampled(few: Umls, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index root of a third of the triples."""
    root = tmp_path_factory.mktemp("sampled")
    build(root, *few, replace(SMALL, sample_rate=0.33, stratify_by="relation", seed=1))
    return root


def test_small_gradients_keep_their_bound(few: Umls) -> None:
    """Products of norms whose squares' product is below float32's range are not lost."""
    model, _, table = few
    featurizer = featurizer_for(model, {"loss": "bce", "layers": ["all"], "directions": None}, torch.device("cpu"))
    terms = featurizer.test_terms(table.ids[:1].astype(np.int64), "tail")
    own = float(squared_norms(terms)[0])
    tiny = 1e-26
    assert np.float32(np.float32(tiny) * np.float32(tiny)) == 0
    found = norm_products(_scaled(terms, (tiny / own) ** 0.5), torch.tensor([tiny]))
    assert tiny <= float(found[0]) < 1.01 * tiny


def _scaled(terms: Terms, factor: float) -> Terms:
    return replace(
        terms,
        kron={name: Kron(factor * block.u, block.v, block.group) for name, block in terms.kron.items()},
        flat={name: factor * grad for name, grad in terms.flat.items()},
        rows={table: [Rows(use.index, factor * use.grad) for use in uses] for table, uses in terms.rows.items()},
    )


def influences(attributor: Attributor, query: np.ndarray) -> dict[int, float]:
    """Return every influence on a test triple by `train_index`."""
    found = attributor.query(query[None], exact=True, top_k=len(attributor)).attributions[0]
    return dict(zip(found.train_index.tolist(), found.influence.tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_its_checks(kind: str, roots: dict[str, Path]) -> None:
    """The gate let it through, and it is verified when asked; checks of bounds need something that bounds."""
    attributor = open_index(roots[kind], device="cpu")
    assert attributor.manifest.configuration["projection"] == kind
    checks = {check.name: check.ok for check in verify(attributor)}
    assert all(checks.values()), checks
    assert ("bounds" in checks) == (kind != "none")
    assert ("search.faiss" in attributor.manifest.files) == (kind != "none")


@pytest.mark.parametrize("order", ["proponents", "opponents", "absolute"])
@pytest.mark.parametrize("kind", RANDOM)
def test_a_pool_is_ranked_by_exact_influence(kind: str, order: str, few: Umls, roots: dict[str, Path]) -> None:
    """What is named has its exact influence, in order; what is not named has no more than the gap admits."""
    attributor = open_index(roots[kind], device="cpu")
    for query in few[2].ids[:5].astype(np.int64):
        exact = influences(attributor, query)
        found = attributor.query(query[None], top_k=5, order=order, max_candidates=20).attributions[0]
        assert found.candidates == found.exact_terms == 20
        assert len(found.influence) == 5
        for row, influence in zip(found.train_index.tolist(), found.influence.tolist(), strict=True):
            assert influence == pytest.approx(exact[row], rel=1e-3, abs=1e-5)
        worth = {"proponents": 1, "opponents": -1}.get(order)
        value = {row: abs(x) if worth is None else worth * x for row, x in exact.items()}
        values = [value[row] for row in found.train_index.tolist()]
        assert values == sorted(values, reverse=True)
        assert not found.certified
        unseen = max(x for row, x in value.items() if row not in found.train_index)
        assert np.isfinite(found.bound_gap)
        assert unseen <= values[-1] + found.bound_gap


@pytest.mark.parametrize("kind", RANDOM)
def test_a_pool_of_all_is_exact(kind: str, few: Umls, roots: dict[str, Path]) -> None:
    """When every training triple was looked at, nothing is left to doubt."""
    attributor = open_index(roots[kind], device="cpu")
    query = few[2].ids[7:8].astype(np.int64)
    found = attributor.query(query, top_k=10, max_candidates=COUNT).attributions[0]
    wanted = attributor.query(query, top_k=10, exact=True).attributions[0]
    assert found.certified
    assert found.bound_gap == 0
    np.testing.assert_allclose(found.influence, wanted.influence, rtol=1e-4)
    usual = attributor.query(query, top_k=10).attributions[0]
    assert usual.candidates == 100
    assert attributor.query(query, top_k=20).attributions[0].candidates == 200


@pytest.mark.parametrize("kind", RANDOM)
def test_a_pool_of_nothing_names_nothing(kind: str, few: Umls, roots: dict[str, Path]) -> None:
    """Without a budget there is only the bound."""
    attributor = open_index(roots[kind], device="cpu")
    query = few[2].ids[7].astype(np.int64)
    found = attributor.query(query[None], max_candidates=0).attributions[0]
    assert len(found.influence) == 0
    assert not found.certified
    assert found.bound_gap >= max(influences(attributor, query).values())


@pytest.mark.parametrize("kind", KINDS)
def test_filters_hold_for_every_kind(kind: str, few: Umls, roots: dict[str, Path]) -> None:
    """Named triples pass the filter; with few that pass, the answer is exact."""
    attributor = open_index(roots[kind], device="cpu")
    query = few[2].ids[3:4].astype(np.int64)
    restriction = Restriction(must={"relation": [int(query[0, 1])]})
    for order in ("proponents", "absolute"):
        found = attributor.query(query, top_k=3, restriction=restriction, order=order).attributions[0]
        wanted = attributor.query(query, top_k=3, restriction=restriction, order=order, exact=True).attributions[0]
        assert (found.triples[:, 1] == query[0, 1]).all()
        if (attributor.training.triples[:, 1] == query[0, 1]).sum() <= 100:
            assert found.certified
            np.testing.assert_allclose(found.influence, wanted.influence, rtol=1e-4)
    nothing = attributor.query(query, restriction=Restriction(must={"relation": []})).attributions[0]
    assert nothing.certified
    assert len(nothing.influence) == 0


def test_without_an_index_every_answer_is_exact(few: Umls, roots: dict[str, Path]) -> None:
    """Each query computes every influence, whatever the budget, and is certified."""
    attributor, indexed = (open_index(roots[kind], device="cpu") for kind in ("none", "pca"))
    queries = few[2].ids[:4].astype(np.int64)
    found = attributor.query(queries, top_k=5, max_candidates=1).attributions
    for a, b in zip(found, indexed.query(queries, top_k=5, score="tracin").attributions, strict=True):
        assert a.certified
        assert a.candidates == COUNT
        np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4)
        np.testing.assert_allclose(a.cosine, b.cosine, rtol=1e-3)
    with pytest.raises(BadRequest, match="holds no bounds"):
        attributor.bounds(queries[0], np.arange(3))


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_right_for_every_kind(kind: str, few: Umls, roots: dict[str, Path]) -> None:
    """Influence by relation is the sum of all influences, within the error that is given."""
    attributor = open_index(roots[kind], device="cpu")
    query = few[2].ids[3].astype(np.int64)
    found = attributor.aggregate(query, "relation", top_k=3)
    exact = influences(attributor, query)
    relation = dict(zip(few[2].train_index.tolist(), few[2].ids[:, 1].tolist(), strict=True))
    for group, total, error in zip(found.groups, found.sums.sums, found.sums.errors, strict=True):
        wanted = sum(influence for row, influence in exact.items() if relation[row] == group)
        assert abs(total - wanted) <= error + 1e-3 * max(map(abs, exact.values()))
        assert (error > 0) == (kind == "pca")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_new_triples_are_appended_to_every_kind(kind: str, few: Umls, umls: Umls, tmp_path: Path) -> None:
    """The grown index is that of a build of all."""
    model, vocabulary, table = umls
    grown, rebuilt = tmp_path / "grown", tmp_path / "rebuilt"
    config = replace(SMALL, projection=kind)
    old = TripleTable(table.ids[:100], table.train_index[:100], 0)
    build(grown, model, vocabulary, old, config)
    lines = tmp_path / "new.tsv"
    names = vocabulary.entities, vocabulary.relations
    lines.write_text("".join(f"{names[0][h]}\t{names[1][r]}\t{names[0][t]}\n" for h, r, t in table.ids[100:140]))
    report = append(grown, lines, device="cpu")
    assert report.triples == 140
    build(rebuilt, model, vocabulary, TripleTable(table.ids[:140], table.train_index[:140], 0), config)
    with IndexRoot(grown).open() as a, IndexRoot(rebuilt).open() as b:
        assert a.manifest.configuration == b.manifest.configuration
        found, wanted = (open_arrays(generation.path / "gradients.h5") for generation in (a, b))
        assert set(found) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4 * np.abs(array).max())


def test_a_sample_is_indexed(few: Umls, sampled: Path) -> None:
    """Only sampled rows are named, under their own numbers; answers are certified for these."""
    attributor = open_index(sampled, device="cpu")
    rows = sample_rows(few[2].ids, 0.33, "relation", 1)
    assert sorted(attributor.training.train_index.tolist()) == rows.tolist()
    configuration, counts = attributor.manifest.configuration, attributor.manifest.counts
    assert (configuration["sample_rate"], configuration["stratify_by"]) == (0.33, "relation")
    assert (counts["triples"], counts["training_triples"]) == (len(rows), COUNT)
    assert all(check.ok for check in verify(attributor))
    for query in few[2].ids[:5].astype(np.int64):
        found = attributor.query(query[None], top_k=5).attributions[0]
        assert found.certified
        assert set(found.train_index.tolist()) <= set(rows.tolist())
        for row, triple in zip(found.train_index, found.triples, strict=True):
            np.testing.assert_array_equal(few[2].ids[row], triple)


def test_a_sample_knows_all_training_triples(few: Umls, sampled: Path, roots: dict[str, Path]) -> None:
    """Filtered ranks and membership are those of the whole training set."""
    part, whole = open_index(sampled, device="cpu"), open_index(roots["none"], device="cpu")
    queries = few[2].ids[::10].astype(np.int64)
    for a, b in zip(part.query(queries).attributions, whole.query(queries).attributions, strict=True):
        assert a.in_training
        assert a.rank == b.rank


def test_appending_to_a_sample_samples(umls: Umls, few: Umls, tmp_path: Path) -> None:
    """Of new triples the same share is added; known ones that were not sampled stay known, and are not new."""
    _, vocabulary, table = umls
    build(tmp_path, *few, replace(SMALL, sample_rate=0.5, seed=1))
    lines = tmp_path / "new.tsv"
    names = vocabulary.entities, vocabulary.relations
    lines.write_text("".join(f"{names[0][h]}\t{names[1][r]}\t{names[0][t]}\n" for h, r, t in table.ids[: COUNT + 40]))
    report = append(tmp_path, lines, device="cpu")
    assert (report.triples, report.skipped) == (COUNT // 2 + 20, COUNT)
    attributor = open_index(tmp_path, device="cpu")
    assert attributor.manifest.counts["training_triples"] == COUNT + 40
    assert len(attributor.training.known) == COUNT + 40
    added = attributor.training.train_index[attributor.training.train_index >= COUNT]
    assert len(added) == 20
    assert added.min() >= 2 * COUNT  # the file's first lines were known


def test_an_unknown_projection_is_refused(umls: Umls, roots: dict[str, Path]) -> None:
    """In a configuration, and in a manifest that a later version may have written."""
    with pytest.raises(BadRequest, match="projection 'haar' is not one of pca, gaussian, sparse, none"):
        replace(SMALL, projection="haar")
    with pytest.raises(BadRequest, match="sample rate is 0"):
        replace(SMALL, sample_rate=0.0)
    from kgtrace_indexer.index.codec import read_codec

    with pytest.raises(CorruptGeneration, match="names projection 'haar'"):
        read_codec({"projection": "haar"}, {}, None)  # type: ignore[arg-type]
