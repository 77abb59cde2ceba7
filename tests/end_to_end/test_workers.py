"""``kgtrace serve --workers``: several processes behind one port."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kgtrace_server.calls import AT_LEAST
from kgtrace_store import IndexRoot
from tests.end_to_end.conftest import Umls, wait_until
from tests.end_to_end.service import KEY, PATIENCE, Server, serving, two_generations

WORKERS = 2
ASKED = 40
"""More than ever go to one process alone."""
INFLUENCES = "/v1/influences"
ANSWERED = f"kgtrace_request_seconds_count method=POST route={INFLUENCES} status=200"
LOADED = "kgtrace_reloads_total result=ok"


@pytest.fixture(scope="module")
def root(umls: Umls, tmp_path_factory: pytest.TempPathFactory) -> IndexRoot:
    """Two generations."""
    return two_generations(umls, tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def server(root: IndexRoot) -> Iterator[Server]:
    """A command that goes on running."""
    with running(root) as server:
        yield server


@contextmanager
def running(root: IndexRoot) -> Iterator[Server]:
    """Run the command until the block ends; all of its processes have loaded the index."""
    with serving(root, "--workers", str(WORKERS), "--threads", str(WORKERS)) as server:
        wait_until(lambda: server.metrics()[LOADED] == WORKERS)
        yield server


def workers(server: Server) -> set[int]:
    """Return the processes that answer: children of the command, as the resource tracker is, which they share."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def influences(server: Server, *, triples: int = 1, exact: bool = False, **headers: str) -> tuple[int, Any]:
    """Ask for explanations; return status and generation."""
    body = {"triples": [[i, 0, i] for i in range(triples)], "top_k": 1, "exact": exact}
    status, answer = server.ask("POST", INFLUENCES, body, headers=headers)
    return status, json.loads(answer).get("generation")


def test_processes_count_together(server: Server) -> None:
    """Whichever is scraped, `/metrics` says what all have done; memory and time are those of all."""
    before = server.metrics()
    alone = {pid: Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in workers(server)}
    assert len(alone) == WORKERS
    with ThreadPoolExecutor(WORKERS) as pool:
        assert {status for status, _ in pool.map(lambda _: influences(server), range(ASKED))} == {200}
    answered = before.get(ANSWERED, 0) + ASKED
    wait_until(lambda: server.metrics()[ANSWERED] == answered)  # a request is counted after its answer
    scrapes = [server.metrics() for _ in range(ASKED)]
    assert {found[ANSWERED] for found in scrapes} == {answered}
    assert {found["kgtrace_queue_seconds_count"] - before["kgtrace_queue_seconds_count"] for found in scrapes} == {
        ASKED
    }
    assert {found[LOADED] for found in scrapes} == {before[LOADED]}
    pages = sum(int(resident) for resident in alone.values())
    assert all(found["process_resident_memory_bytes"] > 0.9 * pages * os.sysconf("SC_PAGE_SIZE") for found in scrapes)
    assert {found["kgtrace_queue_depth"] for found in scrapes} == {0}


def test_who_knows_a_generation_gets_no_older_one(root: IndexRoot, server: Server) -> None:
    """From the answer of the route that publishes on, whichever process is asked."""
    older, newer = (status.id for status in root.generations())
    for _ in range(3):
        for wanted in (older, newer):
            assert server.ask("POST", "/v1/admin/publish", {"generation": wanted}, {"X-API-Key": KEY})[0] == 200
            asked = [influences(server, **{AT_LEAST: wanted}) for _ in range(ASKED)]
            assert {status for status, _ in asked} == {200}
            assert min(generation for _, generation in asked) >= wanted
    assert set(asked) == {(200, newer)}


def test_a_process_that_is_killed_is_replaced(server: Server) -> None:
    """Meanwhile the others answer; the new one takes no request before it has loaded, and nothing counted is lost."""
    before = server.metrics()
    killed, kept = workers(server)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in workers(server))
    asked = 0
    while server.metrics()[LOADED] == before[LOADED]:
        assert influences(server)[0] == 200
        asked += 1
    assert kept in workers(server)
    assert len(workers(server)) == WORKERS
    assert [influences(server)[0] for _ in range(ASKED)] == [200] * ASKED
    wait_until(lambda: server.metrics()[ANSWERED] == before.get(ANSWERED, 0) + asked + ASKED)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_with_requests_in_flight(root: IndexRoot, number: int, code: int) -> None:
    """All are answered, by all processes, before the command ends; none of them is left."""
    with running(root) as server, ThreadPoolExecutor(2 * ASKED) as pool:
        processes = workers(server)
        scans = [pool.submit(influences, server, triples=64, exact=True) for _ in range(2 * ASKED)]
        wait_until(lambda: server.taken() + server.waiting() == 2 * ASKED)
        waiting = server.waiting()
        server.process.send_signal(number)
        statuses = Counter(scan.result()[0] for scan in scans)
        assert server.process.wait(PATIENCE) == code
    print(f"{waiting:.0f} of {2 * ASKED} were waiting when told to stop")
    assert waiting > 0
    assert statuses == {200: 2 * ASKED}
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


@pytest.mark.slow
def test_processes_end_with_the_one_that_watches_them(root: IndexRoot) -> None:
    """Even where it could not tell them to."""
    with running(root) as server:
        processes = workers(server)
        server.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/livez")
