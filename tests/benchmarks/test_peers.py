"""The benchmark beside peers: its problems say what we say, and its tables what was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.peers import __main__ as command, report
from benchmarks.peers.environments import REQUIREMENTS
from benchmarks.peers.methods import FULL, OURS, ROWS, TOP_K
from benchmarks.peers.problem import draw, table_of, write_problem
from benchmarks.peers.protocol import TASKS, Problem, Request
from benchmarks.peers.runners.loop import choose

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_store import Vocabulary

TRAIN, TEST = 40, 3


@pytest.fixture(scope="module")
def problem(
    umls_folder: Path, umls: tuple[ModelFile, Vocabulary, TripleTable], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Both layers of the small model."""
    folder = tmp_path_factory.mktemp("problem")
    ids = draw(umls[2].ids, TRAIN + TEST, seed=0)
    model = torch.load(umls_folder / "trained_model.pkl", weights_only=False).eval()
    write_problem(folder, model, ids[:TRAIN], ids[TRAIN:])
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_the_loop_over_the_problem_computes_our_influences(
    task: str, problem: Path, umls: tuple[ModelFile, Vocabulary, TripleTable], tmp_path: Path
) -> None:
    """Plain autograd on the layer that peers are given, and our exact query on the model, agree on every influence."""
    config = BuildConfig(
        layers=tuple(OURS[task]["layers"]), loss=OURS[task]["loss"], directions="forward", projection="none"
    )
    build(tmp_path / "index", umls[0], umls[1], table_of(problem), config)
    test = np.load(problem / "test.npy")
    answers = open_index(tmp_path / "index").query(test, top_k=TRAIN, exact=True).attributions
    loop = choose(asked(problem, tmp_path, task, {"method": "layer"}))
    loop.load()
    influences = loop.scan(TEST, TRAIN, 1).numpy()
    for row, answer in zip(influences, answers, strict=True):
        assert sorted(answer.train_index) == list(range(TRAIN))
        np.testing.assert_allclose(row[answer.train_index], answer.influence, rtol=1e-4, atol=1e-5 * abs(row).max())


def asked(problem: Path, folder: Path, task: str, options: dict[str, Any]) -> Request:
    """Return a request for everything that the small problem has."""
    return Request(
        problem=problem, folder=folder, model=folder, task=task, options=options, tune=False, batch_sizes=[1],
        tuned_on=0, triples=TRAIN, stored=TRAIN, singles=1, batches=[], compared=TEST, top_k=TOP_K,
    )  # fmt: skip


def test_fewer_triples_are_the_first_ones(problem: Path) -> None:
    """A runner that can afford fewer triples reads the same inputs and tails as one that reads all."""
    whole, part = Problem.read(problem, "output", TRAIN), Problem.read(problem, "output", 7)
    for a, b in ((whole.train.first(7), part.train), (whole.test, part.test)):
        assert torch.equal(a[:][0], b[:][0])
        assert torch.equal(a[:][1], b[:][1])


def test_recall_counts_what_was_named_of_the_exact_answer() -> None:
    """Recall is the share of the exact top k; the error is in relation to the query's largest influence."""
    exact = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 5.0]], np.float32)
    found = report.compare(exact, np.array([[0, 2], [3, 2]]), exact + np.float32(0.4))
    assert found["recall"] == 0.75
    assert found["relative_error"] == pytest.approx(0.1)


def test_a_row_that_failed_says_why() -> None:
    """It has no figure, and the table is as wide as without it."""
    build = {"triples": 10, "seconds": 2.0, "peak_bytes": 0, "bytes_a_triple": 4.0, "batch_size": 1}
    query = {"single_seconds": 0.5, "batch_seconds": {"64": 0.1}, "extrapolated": False, "copies": True}
    rows = {"a": {"title": "A", "build": build, "query": query}, "b": {"title": "B", "error": "no wheel"}}
    lines = report.table({"rows": rows}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "5" in lines[2]
    assert "500 ms ‡" in lines[2]
    assert "failed: `no wheel`" in lines[3]
    assert not any(cell.strip() for cell in lines[3].split("|")[3:-1])


@pytest.mark.parametrize("name", sorted({row.environment for row in ROWS if row.environment}))
def test_environments_are_pinned(name: str) -> None:
    """Every requirement of a peer names one version."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().split()
    assert lines
    assert all("==" in line for line in lines)


def test_the_page_shows_what_was_measured() -> None:
    """Its tables are those that follow from the results in the repository; nobody edits a figure."""
    files = {task: command.results(task, "cpu") for task in TASKS}
    found = {task: json.loads(file.read_text()) for task, file in files.items() if file.exists()}
    _, shown, _ = report.PAGE.read_text().split(report.MARK)
    assert shown == f"\n{report.measured(found)}"
    assert all(
        row["build"]["triples"] <= FULL.train for f in found.values() for row in f["rows"].values() if "build" in row
    )
