"""A service under load while generations come and go."""

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build
from kgtrace_store import IndexRoot, Vocabulary

Umls = tuple[ModelFile, Vocabulary, TripleTable]
KEY = "admin-key-for-this-test-alone"
RELOADS = 50
SHARE = 0.7
"""Of what the service can answer, which the load asks for."""
SECONDS = 10.0
"""How long the quiet service is measured."""
CONNECTIONS = 16
IN_FLIGHT = 100


@pytest.fixture(scope="module")
def root(umls: Umls, tmp_path_factory: pytest.TempPathFactory) -> IndexRoot:
    """Two generations whose answers tell them apart: the rows of one are even, those of the other odd."""
    model, vocabulary, table = umls
    folder = tmp_path_factory.mktemp("index")
    for odd in (0, 1):
        numbered = TripleTable(table.ids, 2 * np.arange(len(table.ids)) + odd, 0)
        build(folder, model, vocabulary, numbered, BuildConfig(dim=16, landmarks=512, device="cpu"))
    return IndexRoot(folder)


@pytest.fixture
def service(root: IndexRoot) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running ``kgtrace serve`` and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("kgtrace")), "serve", "--index", str(root.path), "--port", str(port)]
    command += ["--threads", "1", "--device", "cpu"]
    command += ["--queue-length", str(2 * IN_FLIGHT), "--admin-key", KEY, "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while ask(port, "GET", "/readyz")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process, port
        process.terminate()


def ask(port: int, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
    """Send one request; status 0 when nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


@dataclass
class Load:
    """Asks about random training triples, at a rate or as fast as the connections allow."""

    port: int
    triples: list[list[int]]
    parity: dict[str, int]
    """Of the rows that each generation names."""
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    generations: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._chance = random.Random(0)
        self._lock = threading.Lock()

    def run(self, seconds: float | threading.Event, rate: float | None) -> float:
        """Return how many answers came in a second."""
        begun = time.perf_counter()
        end = begun + (seconds if isinstance(seconds, float) else 600.0)
        done = seconds if isinstance(seconds, threading.Event) else threading.Event()
        before = len(self.seconds)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            if rate is None:
                list(pool.map(lambda _: self._until(end), range(CONNECTIONS)))
            else:
                at = begun
                while at < end and not done.is_set():
                    at += self._chance.expovariate(rate)
                    time.sleep(max(0.0, at - time.perf_counter()))
                    pool.submit(self._one, at)
        for connection in self._connections:
            connection.close()
        return (len(self.seconds) - before) / (time.perf_counter() - begun)

    def p99(self) -> float:
        """Return the 99 % quantile in seconds, and begin anew."""
        found = float(np.quantile(self.seconds, 0.99))
        self.seconds.clear()
        return found

    def _until(self, end: float) -> None:
        while time.perf_counter() < end:
            self._one(time.perf_counter())

    def _one(self, due: float) -> None:
        try:
            problem = self._asked()
        except Exception as e:
            problem = repr(e)
            self._local.connection = None
        with self._lock:
            self.seconds.append(time.perf_counter() - due)
            if problem:
                self.failures.append(problem)

    def _asked(self) -> str | None:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self._connections.append(connection)
        body = json.dumps({"triples": [self._chance.choice(self.triples)], "top_k": 5})
        connection.request("POST", "/v1/influences", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            return f"{response.status}: {answer}"
        generation = answer["generation"]
        self.generations[generation] += 1
        rows = {found["train_index"] % 2 for found in answer["results"][0]["influences"]}
        if rows != {self.parity[generation]} or response.headers["X-Kgtrace-Generation"] != generation:
            return f"mixed: rows {rows}, header {response.headers['X-Kgtrace-Generation']}, body {generation}"
        return None


@pytest.mark.slow
def test_reloads_under_load(umls: Umls, root: IndexRoot, service: tuple[subprocess.Popen[str], int]) -> None:
    """While the service is asked 70 % of what it can answer, no request fails and no answer mixes generations."""
    _, port = service
    ids = [status.id for status in root.generations()]
    triples = [{"head": h, "relation": r, "tail": t} for h, r, t in umls[2].ids[:500].tolist()]
    load = Load(port, triples, {id_: odd for odd, id_ in enumerate(ids)})
    capacity = load.run(3.0, None)
    load.seconds.clear()
    load.run(SECONDS, SHARE * capacity)
    quiet = load.p99()
    done = threading.Event()
    runner = threading.Thread(target=load.run, args=(done, SHARE * capacity))
    runner.start()
    try:
        for i in range(RELOADS):
            wanted = ids[i % 2]
            status, answer = ask(port, "POST", "/v1/admin/publish", {"generation": wanted}, KEY)
            assert status == 200, answer
            assert answer["serving"] == wanted
            time.sleep(0.5)
    finally:
        done.set()
        runner.join()
    busy = load.p99()
    print(
        f"capacity {capacity:.0f}/s; {sum(load.generations.values())} answers, {len(load.failures)} failures, "
        f"p99 quiet {1000 * quiet:.1f} ms, during {RELOADS} reloads {1000 * busy:.1f} ms ({busy / quiet:.1f} ×)"
    )
    assert load.failures == []
    assert min(load.generations[id_] for id_ in ids) > 0


@pytest.mark.slow
def test_sigterm_with_requests_in_flight(umls: Umls, service: tuple[subprocess.Popen[str], int]) -> None:
    """Told to stop while 100 requests wait, the service answers them all before it ends."""
    process, port = service
    head, relation, tail = umls[2].ids[0].tolist()
    body = {"triples": [{"head": head, "relation": relation, "tail": tail}], "exact": True}
    answered = threading.Event()

    def one(_: int) -> int:
        status, _answer = ask(port, "POST", "/v1/influences", body)
        answered.set()
        return status

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        statuses = [pool.submit(one, i) for i in range(IN_FLIGHT)]
        assert answered.wait(60)
        waiting = sum(not status.done() for status in statuses)
        process.send_signal(signal.SIGTERM)
        found = Counter(status.result() for status in statuses)
    assert process.wait(60) == 0
    print(f"{waiting} of {IN_FLIGHT} were waiting when told to stop; statuses {dict(found)}")
    assert found == {200: IN_FLIGHT}
    assert waiting > IN_FLIGHT // 2
