"""A running ``kgtrace serve``, asked over the loopback interface."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from kgtrace_indexer import BuildConfig, TripleTable, build
from kgtrace_store import IndexRoot
from tests.end_to_end.conftest import Umls, wait_until

KEY = "admin-key-for-this-test-alone"
TRIPLES = 500
PATIENCE = 600.0
"""Seconds that are never needed, not even on a machine that does a hundred other things."""


def two_generations(umls: Umls, folder: Path) -> IndexRoot:
    """Build two generations whose answers tell them apart: the rows of one are even, those of the other odd."""
    model, vocabulary, table = umls
    for odd in (0, 1):
        numbered = TripleTable(table.ids[:TRIPLES], 2 * np.arange(TRIPLES) + odd, 0)
        build(folder, model, vocabulary, numbered, BuildConfig(dim=8, landmarks=128, device="cpu"))
    return IndexRoot(folder)


@dataclass
class Server:
    """The process, and where it listens."""

    process: subprocess.Popen[str]
    port: int

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether it answers from an index."""
        return self.ask("GET", "/readyz")[0] == 200

    def metrics(self) -> dict[str, float]:
        """Return every sample by name and labels: ``kgtrace_rejections_total reason=key``."""
        families = text_string_to_metric_families(self.ask("GET", "/metrics")[1].decode())
        return {
            sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def waiting(self) -> float:
        """Return how many requests are queued."""
        return self.metrics()["kgtrace_queue_depth"]

    def taken(self) -> float:
        """Return how many requests were queued and have been taken from the queue."""
        return self.metrics()["kgtrace_queue_seconds_count"]


@contextmanager
def serving(root: IndexRoot, *flags: str) -> Iterator[Server]:
    """Run the command on a free port until the block ends; it is ready."""
    command = [str(Path(sys.executable).with_name("kgtrace")), "serve", "--index", str(root.path), "--port", "0"]
    command += ["--device", "cpu", "--deadline", str(PATIENCE), "--admin-key", KEY, "--log-level", "warning", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            server = Server(process, int(process.stdout.readline().split(":")[2].split()[0]))
            wait_until(server.ready)
            yield server
        finally:
            process.terminate()
