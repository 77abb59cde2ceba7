"""Gradients of embedding rows in a GPU's memory say what those on disk say."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.gradients.reads import Reads
from kgtrace_indexer.index import resident
from kgtrace_indexer.index.preconditioner import Moments, Preconditioner, moments
from kgtrace_indexer.index.resident import ResidentList, ResidentRows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import RowList, RowLists, list_reads, read_codes
from kgtrace_indexer.index.self_influence import preconditioned_self_influences
from kgtrace_store import Vocabulary
from tests.simulated_gpu import simulated_gpu

Umls = tuple[ModelFile, Vocabulary, TripleTable]
ROWS, TRIPLES, WIDTH = 9, 60, 7
TABLES = {"e": 4, "r": 1}
"""Reads by each training triple."""


@dataclass
class Made:
    """Random gradients in rows of two tables; some triples read a row twice, some rows are read by nearly all."""

    shard: int

    @cached_property
    def lists(self) -> RowLists:
        rng = np.random.default_rng(self.shard)
        tables: dict[str, list[RowList]] = {table: [] for table in TABLES}
        for table, reads in TABLES.items():
            row = np.minimum(rng.integers(0, ROWS, (TRIPLES, reads)), rng.integers(0, ROWS, (TRIPLES, reads)))
            row[::3, -1] = row[::3, 0]
            grad = rng.standard_normal((TRIPLES, reads, WIDTH)).astype(np.float32)
            for start in range(0, TRIPLES, self.shard):
                part = slice(start, start + self.shard)
                given = Reads(
                    {table: range(reads)}, {table: WIDTH}, torch.from_numpy(row[part]), torch.from_numpy(grad[part])
                )
                stored = {name: codes.numpy() for name, codes in read_codes(given).items()}
                listed = list_reads(stored[f"{table}.row"], ROWS)
                arrays = stored | {f"{table}.{name}": array for name, array in listed.items()}
                tables[table].append(RowList.of(start, table, arrays))
        return RowLists(tables)

    @cached_property
    def weighted(self) -> RowLists:
        return self.lists.weighted(np.random.default_rng(2).random((TRIPLES, 1)).astype(np.float32))

    def resident(self, device: torch.device) -> ResidentRows:
        tables = self.lists.tables.items()
        return ResidentRows(
            {table: [ResidentList.moved(piece, device) for piece in pieces] for table, pieces in tables}
        )

    def moments(self, on: ResidentRows | None = None) -> dict[str, Moments]:
        found = {}
        for table in self.lists.tables:
            (found[table],) = moments(self.lists, table, on)
        return found

    @cached_property
    def queries(self) -> Mapping[str, RowQueries]:
        rng = np.random.default_rng(1)
        index = rng.integers(0, ROWS, (5, 3))
        return {table: RowQueries.merged(index, rng.standard_normal((5, 3, WIDTH))) for table in TABLES}


@pytest.fixture(params=[TRIPLES, 17], ids=["whole", "shards"])
def made(request: pytest.FixtureRequest) -> Made:
    return Made(request.param)


@pytest.mark.parametrize("together", [1 << 20, 2 * WIDTH * 5])
def test_influences_on_all_training_triples(
    made: Made, device: torch.device, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And which of them read a row of the test triple, whatever the number of reads at a time."""
    monkeypatch.setattr(resident, "piece_floats", lambda device: together)
    for lists, tests in ((made.lists, range(5)), (made.weighted, range(1, 3))):
        there = made.resident(device).weighted(lists)
        found, linked = (each.cpu().numpy() for each in there.influences(made.queries, tests, TRIPLES))
        for test in tests:
            every = np.arange(TRIPLES)
            wanted = lists.influences(made.queries, np.full(TRIPLES, test), every)
            np.testing.assert_allclose(found[test - tests.start], wanted, rtol=1e-12, atol=1e-12)
            readers = {
                int(triple)
                for table, queries in made.queries.items()
                for _, triples in made.lists.readers(table, queries.row[queries.query == test])
                for triple in triples
            }
            assert set(np.flatnonzero(linked[test - tests.start])) == readers


def test_moments_and_the_readers_of_rows(made: Made, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of a row by one triple are added up; empty places have no gradient, and do not matter."""
    monkeypatch.setattr(resident, "piece_floats", lambda device: 2 * WIDTH * 5)
    there, rows = made.resident(device), np.array([3, 0, 5])
    for table in TABLES:
        triples, grads = (each.cpu().numpy() for each in there.padded(table, rows))
        wanted_triples, wanted = made.lists.padded(table, rows)
        for number, row in enumerate(rows.tolist()):
            np.testing.assert_allclose(there.moment(table, row).cpu(), made.lists.moment(table, row), atol=1e-9)
            by_triple = np.zeros((TRIPLES, WIDTH))
            np.add.at(by_triple, triples[number], grads[number])
            own = wanted_triples[number] >= 0
            dense = np.zeros_like(by_triple)
            dense[wanted_triples[number][own]] = wanted[number][own]
            np.testing.assert_allclose(by_triple, dense, atol=1e-12)
            assert (np.abs(grads[number]).sum(1) > 0).sum() == own.sum()


def test_preconditioned_gradients_and_self_influences(made: Made, device: torch.device) -> None:
    """Rows that more triples read than they have numbers are among them, and rows that fewer do; one wait for all."""
    here, there = Preconditioner(made.lists, made.moments(), np.ones(1)), made.resident(device)
    assert all(0 < len(found.row) < ROWS for found in here.moments.values())
    on_gpu = Preconditioner(made.lists, made.moments(there), np.ones(1), there)
    for table, changed in on_gpu.changed(made.queries, 2.0).items():
        np.testing.assert_allclose(changed.grad, here.changed(made.queries, 2.0)[table].grad, atol=1e-6)
    for plain in (made.lists, made.weighted):
        found, wanted = (preconditioned_self_influences(each, plain, TRIPLES, 0.5) for each in (on_gpu, here))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_host_waits_once_for_the_gradients_of_a_batch_and_for_all_self_influences() -> None:
    """However many rows there are."""
    made = Made(17)
    with simulated_gpu() as gpu:
        there = made.resident(torch.device("cuda"))
        preconditioner = Preconditioner(made.lists, made.moments(there), np.ones(1), there)
        gpu.reset()
        preconditioner.changed(made.queries, None)
        assert gpu.waits == {"synchronize": 1}
        gpu.reset()
        preconditioned_self_influences(preconditioner, made.lists, TRIPLES, None)
        assert gpu.waits == {"synchronize": 1}


def test_a_gpu_that_is_too_full_leaves_them_on_the_cpu(
    umls: Umls, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says where they are; answers are the same."""
    model, vocabulary, table = umls
    few = TripleTable(table.ids[:60], table.train_index[:60], 0)
    build(tmp_path, model, vocabulary, few, BuildConfig(dim=8, landmarks=40, device="cpu"))
    answers = []
    caplog.set_level("INFO", "kgtrace_indexer")
    for free, where in ((1 << 37, "in the GPU's memory"), (0, "on the CPU: the GPU is too full")):
        caplog.clear()
        with simulated_gpu(free):
            attributor = open_index(tmp_path, device="cuda")
            answers.append(attributor.query(few.ids[:2].astype(np.int64), top_k=5).attributions)
        for what in ("stored gradients of embedding rows", "codes"):
            assert any(what in line and line.endswith(where) for line in caplog.messages)
    for one, other in zip(*answers, strict=True):
        assert one.train_index.tolist() == other.train_index.tolist()
        np.testing.assert_allclose(one.influence, other.influence, rtol=1e-5)
