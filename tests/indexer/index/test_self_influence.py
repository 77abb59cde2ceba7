"""Preconditioned self-influence of all training triples, against its dense formula with gradients from autograd."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import Attributor, BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.building import checks, files
from kgtrace_indexer.building.append import append
from kgtrace_indexer.index import self_influence
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING
from kgtrace_indexer.inputs.model_reader import with_checkpoints
from kgtrace_indexer.models.conve_network import ENTITY, RELATION
from kgtrace_server.cli.demo import train_umls
from kgtrace_store import Vocabulary, layout
from kgtrace_store.errors import GateFailed
from tests.indexer.oracle import Dense

Umls = tuple[ModelFile, Vocabulary, TripleTable]
TRIPLES = 300
LOSSES = {"bce": torch.nn.functional.softplus, None: torch.Tensor.clone}
"""ℓ(−s) whose gradients make up F."""


@pytest.fixture(scope="module")
def umls_part(umls: Umls) -> Umls:
    model, vocabulary, table = umls
    rows = np.sort(np.random.default_rng(0).choice(len(table.ids), TRIPLES, replace=False))
    return model, vocabulary, TripleTable(table.ids[rows], table.train_index[rows], 0)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape that was trained for shorter."""
    folder = tmp_path_factory.mktemp("other")
    train_umls(folder, epochs=1, embedding_dim=32)
    return folder


def built(root: Path, umls: Umls, **config: object) -> Attributor:
    build(root, *umls, BuildConfig(**{"dim": 8, "landmarks": 100, "dtype": "float32", **config}))
    return open_index(root, device="cpu")


Wanted = Callable[[np.ndarray, list[str], str, float], np.ndarray]


@pytest.fixture(scope="module")
def wanted_of(umls_folder: Path) -> Wanted:
    """Give the self-influences of training triples by the dense formula, each computed once, as it takes long."""
    dense: dict[tuple, Dense] = {}
    found: dict[tuple, np.ndarray] = {}

    def wanted(triples: np.ndarray, directions: list[str], loss: str | None, sigma: float) -> np.ndarray:
        key = (triples.tobytes(), *directions, loss)
        if key not in dense:
            dense[key] = Dense(umls_folder, triples, directions, LOSSES[loss])
        if (*key, sigma) not in found:
            found[*key, sigma] = dense[key].self_influences(triples, directions, sigma)
        return found[*key, sigma]

    return wanted


@pytest.mark.parametrize("shard_size", [None, 70])
@pytest.mark.parametrize("directions", ["forward", "both"])
@pytest.mark.parametrize("loss", [None, "bce"])
def test_it_is_the_dense_formula(
    umls_part: Umls, wanted_of: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    loss: str | None, directions: str, shard_size: int | None,
) -> None:  # fmt: skip
    """Under either loss, of rows that more and of rows that fewer triples read than they have numbers."""
    # so that rows are looked at in several blocks, and the readers of the most read one, too
    monkeypatch.setattr(self_influence, "_NUMBERS", 33 * 25)
    attributor = built(tmp_path, umls_part, loss=loss, directions=directions, shard_size=shard_size)
    training = attributor.training
    rows = attributor._influences.preconditioner.rows
    counts = np.concatenate([rows.reader_counts(table) for table in (ENTITY, RELATION)])
    assert counts[counts > 0].min() < 32 < 33 < counts.max()
    (sigma,) = AUTO_DAMPING * attributor._influences.preconditioner.mean_squares
    used = ["tail", "head"] if directions == "both" else ["tail"]
    wanted = wanted_of(np.asarray(training.triples), used, loss, sigma)
    np.testing.assert_allclose(training.self_influence["preconditioned"], wanted, rtol=1e-3)
    rows = np.arange(0, TRIPLES, 9)
    np.testing.assert_allclose(attributor.self_influence_again(rows), wanted[rows], rtol=1e-3)
    assert (wanted < training.self_influence["tracin"]).all()
    (check,) = (c for c in checks.verify(attributor) if c.name == "preconditioned self-influences")
    assert check.ok


@pytest.mark.parametrize("shard_size", [None, 70])
@pytest.mark.parametrize("directions", ["forward", "both"])
@pytest.mark.parametrize("rates", [[2.0], [0.5, 2.0]], ids=["one", "two"])
def test_checkpoints_have_their_own_slopes(
    umls_part: Umls, umls_folder: Path, other_folder: Path, tmp_path: Path,
    rates: list[float], directions: str, shard_size: int | None,
) -> None:  # fmt: skip
    """Where F is of ``removal``, each direction's at each checkpoint, none of which is the trained model."""
    model, vocabulary, table = umls_part
    few = TripleTable(table.ids[::4], table.train_index[::4], 0)
    folders = [other_folder, umls_folder][: len(rates)]
    summed = with_checkpoints(model, folders, rates)
    attributor = built(tmp_path, (summed, vocabulary, few), directions=directions, shard_size=shard_size)
    triples = np.asarray(attributor.training.triples)
    used = ["tail", "head"] if directions == "both" else ["tail"]
    sigmas = AUTO_DAMPING * attributor._influences.preconditioner.mean_squares
    wanted = sum(
        Dense(folder, triples, used, LOSSES[None], rate=rate).self_influences(triples, used, sigma)
        for folder, rate, sigma in zip(folders, rates, sigmas, strict=True)
    )
    np.testing.assert_allclose(attributor.training.self_influence["preconditioned"], wanted, rtol=1e-3)
    np.testing.assert_allclose(attributor.self_influence_again(np.arange(len(few.ids))), wanted, rtol=1e-3)


@pytest.mark.parametrize("loss", [None, "bce"])
@pytest.mark.parametrize("shard_size", [None, 30])
def test_rows_that_one_triple_reads_often(
    umls_part: Umls, umls_folder: Path, tmp_path: Path, loss: str | None, shard_size: int | None
) -> None:
    """Their gradients count once, as a sum; so do those of loops, which read a row four times."""
    model, vocabulary, table = umls_part
    ids = table.ids[::4].copy()
    ids[:5, 2] = ids[:5, 0]
    few = (model, vocabulary, TripleTable(ids, table.train_index[::4], 0))
    attributor = built(tmp_path, few, loss=loss, shard_size=shard_size)
    triples, both = np.asarray(attributor.training.triples), ["tail", "head"]
    (sigma,) = AUTO_DAMPING * attributor._influences.preconditioner.mean_squares
    wanted = Dense(umls_folder, triples, both, LOSSES[loss]).self_influences(triples, both, sigma)
    np.testing.assert_allclose(attributor.training.self_influence["preconditioned"], wanted, rtol=1e-3)
    np.testing.assert_allclose(attributor.self_influence_again(np.arange(len(ids))), wanted, rtol=1e-3)


def test_wrong_numbers_fail_the_gate(umls_part: Umls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-influences one percent off do."""
    right = files.preconditioned_self_influences
    monkeypatch.setattr(files, "preconditioned_self_influences", lambda *args: np.float32(1.01) * right(*args))
    with pytest.raises(GateFailed, match=r"preconditioned self-influences: 4 compared, largest difference .* ‖g‖²"):
        built(tmp_path, umls_part)


def test_it_is_what_a_triple_has_on_itself(umls_part: Umls, tmp_path: Path) -> None:
    """With the index's own damping."""
    attributor = built(tmp_path, umls_part, loss="bce", directions="forward", damping=0.5)
    triples = attributor.training.triples.astype(np.int64)
    found = attributor.exact_influences(triples, np.arange(TRIPLES), score="preconditioned").diagonal()
    np.testing.assert_allclose(attributor.training.self_influence["preconditioned"], found, rtol=1e-3)


@pytest.mark.parametrize("damping", [1e-9, 1e-4, 1e6])
def test_any_damping_can_be_built(
    umls_part: Umls, wanted_of: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damping: float
) -> None:
    """However nearly singular the systems are, and whichever of them is solved, in blocks or not."""
    for numbers in (self_influence._NUMBERS, 33 * 25):
        monkeypatch.setattr(self_influence, "_NUMBERS", numbers)
        attributor = built(tmp_path / str(numbers), umls_part, directions="forward", damping=damping)
        training = attributor.training
        (sigma,) = damping * attributor._influences.preconditioner.mean_squares
        wanted = wanted_of(np.asarray(training.triples), ["tail"], None, sigma)
        found, most = training.self_influence["preconditioned"], training.self_influence["tracin"]
        np.testing.assert_array_less(abs(found - wanted), 1e-3 * wanted + 1e-4 * most)


def test_an_extended_index_has_those_of_all_its_triples(umls_part: Umls, tmp_path: Path) -> None:
    """Old triples, too, since their rows are read by more."""
    model, vocabulary, table = umls_part
    half = TRIPLES // 2
    built(tmp_path / "grown", (model, vocabulary, TripleTable(table.ids[:half], np.arange(half), 0)))
    labels = [[vocabulary.entities[h], vocabulary.relations[r], vocabulary.entities[t]] for h, r, t in table.ids[half:]]
    (tmp_path / "new.tsv").write_text("".join("\t".join(line) + "\n" for line in labels))
    append(tmp_path / "grown", tmp_path / "new.tsv")
    grown = open_index(tmp_path / "grown", device="cpu").training
    whole = built(tmp_path / "whole", (model, vocabulary, TripleTable(table.ids, np.arange(TRIPLES), 0))).training
    np.testing.assert_array_equal(grown.triples, whole.triples)
    found, wanted = (each.self_influence["preconditioned"] for each in (grown, whole))
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


@pytest.mark.parametrize("config", [{"projection": "none"}, {"projection": "gaussian"}, {"loss": "ce-1vsall"}])
def test_an_index_without_lists_of_rows_has_none(umls_part: Umls, tmp_path: Path, config: dict[str, object]) -> None:
    """Nor does it have the file."""
    assert list(built(tmp_path, umls_part, **config).training.self_influence) == ["tracin"]
    assert not list(tmp_path.rglob(layout.SELF_INFLUENCE))
