"""An index whose codes, lists of rows and search indexes are split over several files."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, Restriction, TripleTable, build, open_index
from kgtrace_indexer.building.append import append
from kgtrace_indexer.building.local_workers import LocalWorkers
from kgtrace_indexer.index.files import Files
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_store import IndexRoot, Vocabulary, layout
from kgtrace_store.errors import BadRequest, CorruptGeneration
from kgtrace_store.search import FaissSearch
from kgtrace_store.sharded_search import ShardedSearch

Umls = tuple[ModelFile, Vocabulary, TripleTable]
WHOLE = BuildConfig(dim=8, landmarks=128, precondition="fisher", batch_size=7)
SPLIT = replace(WHOLE, shard_size=77)  # a multiple of the batches: sums of a batch may differ in their last digits
COUNT = 300


@pytest.fixture(scope="module")
def few(umls: Umls) -> Umls:
    """The first 300 triples."""
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:COUNT], table.train_index[:COUNT], 0)


@pytest.fixture(scope="module")
def whole(few: Umls, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    """All in one place."""
    return built(tmp_path_factory.mktemp("whole"), few, WHOLE)


@pytest.fixture(scope="module")
def split(few: Umls, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    """In four shards."""
    return built(tmp_path_factory.mktemp("split"), few, SPLIT)


def built(root: Path, umls: Umls, config: BuildConfig) -> Attributor:
    """Build and open."""
    build(root, *umls, config)
    return open_index(root, device="cpu")


def folder(attributor: Attributor) -> Path:
    """Where its generation lies."""
    return attributor._generation.path


def test_shards_lie_in_folders_of_their_own(split: Attributor) -> None:
    """Each has its own files, listed in the manifest; what all have in common lies above them."""
    shards = [f"{layout.SHARDS}/{number:04d}" for number in range(4)]
    names = [layout.GRADIENTS, layout.SEARCH, layout.SCALES]
    names += [name.format(table) for name in (layout.ROWS, layout.LISTS) for table in (0, 1)]
    assert {f"{shard}/{name}" for shard in shards for name in names} < set(split.manifest.files)
    assert layout.SEARCH not in split.manifest.files
    assert [FaissSearch.read(folder(split) / shard / layout.SEARCH).ntotal for shard in shards] == [77, 77, 77, 69]
    assert split.manifest.configuration["shard_size"] == 77


def test_they_hold_what_one_file_would(whole: Attributor, split: Attributor) -> None:
    """Every array, and the gradients of every row."""
    together, apart = (Files.open(folder(attributor)) for attributor in (whole, split))
    stacks, parts = together.stacks(), apart.stacks()
    assert set(stacks) == set(parts)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(COUNT))
    for name, stack in stacks.items():
        assert (len(parts[name]), parts[name].shape) == (COUNT, stack.shape)
        assert torch.equal(parts[name].take(rows), stack.take(rows)), name
    lists, pieces = together.row_lists(), apart.row_lists()
    for table in lists.tables:
        every = np.arange(len(lists.tables[table][0].offsets) - 1)
        for one, other in zip(lists.padded(table, every), pieces.padded(table, every), strict=True):
            np.testing.assert_array_equal(other, one)
        np.testing.assert_array_equal(pieces.reader_counts(table), lists.reader_counts(table))
        np.testing.assert_array_equal(pieces.gradients(table, rows.numpy()), lists.gradients(table, rows.numpy()))


@pytest.mark.parametrize("order", ["proponents", "opponents", "absolute"])
@pytest.mark.parametrize("score", ["tracin", "preconditioned"])
def test_answers_are_those_of_one_file(
    umls: Umls, whole: Attributor, split: Attributor, order: str, score: str
) -> None:
    """Bit for bit, and certified, with filters and without."""
    queries = umls[2].ids[-12:].astype(np.int64)
    relation = int(umls[2].ids[5, 1])
    for restriction in (Restriction(), Restriction(must={"relation": {relation}}), Restriction(within_hops=1)):
        asked = {"top_k": 15, "order": order, "score": score, "restriction": restriction}
        apart, together = (each.query(queries, **asked).attributions for each in (split, whole))
        for a, b in zip(apart, together, strict=True):
            assert a.certified
            np.testing.assert_array_equal(a.train_index, b.train_index)
            np.testing.assert_array_equal(a.influence, b.influence)


def test_sums_are_those_of_one_file(umls: Umls, whole: Attributor, split: Attributor) -> None:
    """Estimates come from the same codes."""
    query = umls[2].ids[-1].astype(np.int64)
    apart, together = (each.aggregate(query, "relation", top_k=5) for each in (split, whole))
    np.testing.assert_array_equal(apart.groups, together.groups)
    np.testing.assert_array_equal(apart.sums.sums, together.sums.sums)


def test_random_projections_may_be_split(few: Umls, tmp_path: Path) -> None:
    """The pool is the same."""
    config = replace(WHOLE, projection="gaussian", precondition="none", dim=32)
    together, apart = (
        built(tmp_path / str(size), few, replace(config, shard_size=size)).query(few[2].ids[:5].astype(np.int64))
        for size in (None, 50)
    )
    for a, b in zip(apart.attributions, together.attributions, strict=True):
        np.testing.assert_array_equal(a.train_index, b.train_index)


def test_workers_write_the_same_shards(few: Umls, split: Attributor, tmp_path: Path) -> None:
    """A part never spans two shards."""
    build(tmp_path, *few, SPLIT, workers=LocalWorkers(1))
    other = IndexRoot(tmp_path).open()
    for name, record in split.manifest.files.items():
        assert name == layout.GATE or other.manifest.files[name] == record, name


def test_a_split_index_can_be_extended(umls: Umls, split: Attributor, few: Umls, tmp_path: Path) -> None:
    """By new triples, which find their places in the shards; nothing old is computed again."""
    _, vocabulary, table = umls
    build(tmp_path, *few, SPLIT)
    new = [(vocabulary.entities[h], vocabulary.relations[r], vocabulary.entities[t]) for h, r, t in table.ids]
    (tmp_path / "new.tsv").write_text("".join("\t".join(triple) + "\n" for triple in new[COUNT : COUNT + 60]))
    append(tmp_path, tmp_path / "new.tsv")
    grown = open_index(tmp_path, device="cpu")
    assert [len(shard) for shard in Files.open(folder(grown)).shards] == [77, 77, 77, 77, 52]
    np.testing.assert_array_equal(np.sort(grown.training.train_index), np.arange(COUNT + 60))
    old = grown.training.train_index < COUNT
    phi = grown.files.stacks()["projected"].take(torch.from_numpy(np.flatnonzero(old)))
    assert torch.equal(phi, split.files.stacks()["projected"].take(torch.arange(COUNT)))
    lists, before = grown.files.row_lists(), split.files.row_lists()
    for row_table in lists.tables:
        grads = lists.gradients(row_table, np.flatnonzero(old))
        np.testing.assert_array_equal(grads, before.gradients(row_table, np.arange(COUNT)))
    queries = table.ids[COUNT - 5 : COUNT + 5].astype(np.int64)
    for found, exact in zip(
        grown.query(queries).attributions, grown.query(queries, exact=True).attributions, strict=True
    ):
        assert found.certified
        np.testing.assert_array_equal(found.train_index, exact.train_index)


def test_one_search_over_all(split: Attributor) -> None:
    """Shards are searched side by side."""
    assert isinstance(split._retrievals["tracin"].index, ShardedSearch)  # type: ignore[union-attr]


def test_a_missing_shard_is_named(few: Umls, tmp_path: Path) -> None:
    """By its counts, where checksums are not compared; else by its files."""
    build(tmp_path, *few, SPLIT)
    path = folder(open_index(tmp_path, device="cpu"))
    shutil.rmtree(path / layout.SHARDS / "0002")
    with pytest.raises(CorruptGeneration, match=r"counts 300 triples, gradients.h5 holds 300, search.faiss 223"):
        open_index(tmp_path, device="cpu", verify=False)
    with pytest.raises(CorruptGeneration, match=r"shards/0002/.* is missing"):
        open_index(tmp_path, device="cpu")


def test_shards_that_do_not_fit_together_are_named(few: Umls, tmp_path: Path) -> None:
    """One lacks an array that the others have."""
    build(tmp_path, *few, SPLIT)
    path = folder(open_index(tmp_path, device="cpu"))
    with h5py.File(path / layout.SHARDS / "0001" / layout.GRADIENTS, "r+") as file:
        del file["residual"]
    with pytest.raises(CorruptGeneration, match=r"shards/0001 holds codes .*, the first shard .*'residual'"):
        open_index(tmp_path, device="cpu", verify=False)


def test_what_cannot_be_split_is_refused() -> None:
    """There has to be something to search, and shards have at least a triple."""
    with pytest.raises(BadRequest, match="shard_size splits what a search reads"):
        BuildConfig(projection="none", shard_size=10)
    with pytest.raises(BadRequest, match="shard_size is 0"):
        BuildConfig(shard_size=0)
