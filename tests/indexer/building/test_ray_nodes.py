"""A build on two Ray nodes, of which one is lost."""

import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kgtrace_indexer import ModelFile, TripleTable, build
from kgtrace_indexer.building import parts
from kgtrace_store import Vocabulary
from tests.indexer.building.test_workers import CONFIG, PART, TRIPLES, assert_same, descendants

MEMORY = 80 << 20
"""Bytes of a node's object store, about the least that Ray takes."""
SECONDS = 120
"""After which a build waits for a lost node, and the tests are ended."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes for one actor each, beside a head for none."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'kgtrace[scale]'")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def _bounded() -> Iterator[None]:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # Ray hears no signal while it waits
    yield
    faulthandler.cancel_dump_traceback_later()


class LosingNode:
    """Kill all processes of a node, as soon as one part is there."""

    def __init__(self, node: Any) -> None:
        self.raylet = node.all_processes["raylet"][0].process.pid
        self.killed: list[int] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done < total and not self.killed:
            self.killed = [self.raylet, *descendants(self.raylet)]
            for process in self.killed:
                os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("_bounded")
def test_a_lost_node_costs_its_part(
    umls: tuple[ModelFile, Vocabulary, TripleTable],
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other one takes it up, without waiting for room in place of the lost one; paths need not be absolute."""
    from kgtrace_indexer.building.ray_workers import RayWorkers

    monkeypatch.setattr(parts, "_PART", PART)
    monkeypatch.chdir(tmp_path)
    model, vocabulary, table = umls
    few = TripleTable(table.ids[:TRIPLES], table.train_index[:TRIPLES], 0)
    build(Path("alone"), model, vocabulary, few, CONFIG)
    progress = LosingNode(cluster.list_all_nodes()[-1])
    build(Path("shared"), model, vocabulary, few, CONFIG, workers=RayWorkers(cluster.address), progress=progress)
    assert len(progress.killed) > 1
    assert_same(Path("alone"), Path("shared"))
