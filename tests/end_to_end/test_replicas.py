"""Replicas behind HAProxy, with the settings that ``docker/haproxy.cfg`` documents."""

import asyncio
import shutil
from pathlib import Path

import pytest
from benchmarks.replicas import DISTURBANCES, REPLICAS, Replicas, measure
from benchmarks.service import request

from tests.end_to_end.conftest import Umls
from tests.end_to_end.service import TRIPLES, two_generations


@pytest.mark.slow
def test_no_request_fails(umls: Umls, tmp_path: Path) -> None:
    """While each replica is killed, then drained, and while generations are published and rolled back."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    root = two_generations(umls, tmp_path / "index")
    requests = [request(triple) for triple in umls[2].ids[:TRIPLES].tolist()]
    with Replicas(root.path, tmp_path, REPLICAS) as replicas:
        numbers = {"rate": 20, "seconds": 2, "times": REPLICAS, "minutes": 2}
        phases = asyncio.run(measure(root, replicas, requests, list(DISTURBANCES), **numbers))
    print({name: (phase["answers"], phase["failures"], phase["in_hand"]) for name, phase in phases.items()})
    assert {name: phase["first_failure"] for name, phase in phases.items()} == dict.fromkeys(phases)
    assert {name: phase["in_hand"]["first_failure"] for name, phase in phases.items()} == dict.fromkeys(phases)
    assert all(phase["answers"] > 0 for phase in phases.values())
