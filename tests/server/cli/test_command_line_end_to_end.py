"""The whole way a user goes: convert, build, verify, query, serve, ask over HTTP."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from kgtrace_server.cli import parser as cli
from tests.server.waiting import PATIENCE, wait_until

KGTRACE = (sys.executable, "-c", "from kgtrace_server.cli import main; raise SystemExit(main())")

get = partial(httpx.get, timeout=PATIENCE)
post = partial(httpx.post, timeout=PATIENCE)


@contextmanager
def listening(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``kgtrace serve`` on a free port; give the process and its address."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KGTRACE_")}
    with subprocess.Popen(
        [*KGTRACE, "serve", "--port", "0", "--deadline", str(PATIENCE), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], PATIENCE)[0], "no address line"
            address = process.stdout.readline().split(" at ")[1].split()[0]
            assert process.stdout.readline() == f"dashboard: {address}/\n"
            yield process, address
        finally:
            process.kill()


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The same, once the index is loaded."""
    with listening(*arguments) as (process, address):
        wait_until(lambda: get(f"{address}/readyz").status_code == 200)
        yield process, address


@pytest.fixture(scope="module")
def root(umls_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index built by the command line from a PyKEEN folder."""
    root = tmp_path_factory.mktemp("cli") / "index"
    assert cli.main(["build", "--model", str(umls_folder), "--index", str(root), "--dim", "16"]) == 0
    return root


def test_build_reports_and_publishes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was built is live, and listed with its counts."""
    assert cli.main(["list", "--index", str(root), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    (generation,) = listed["generations"]
    assert generation["live"]
    assert generation["model"] == "ConvE"
    assert generation["counts"]["triples"] == 5216


def test_a_converted_model_builds_the_same_index(
    root: Path, umls_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pickle is not needed any more; the influences are the same."""
    converted, other = tmp_path / "converted", tmp_path / "index"
    assert cli.main(["convert", str(umls_folder), str(converted)]) == 0
    triples = umls_folder / "training_triples"
    call = ["build", "--model", str(converted), "--index", str(other), "--dim", "16", "--no-publish", "--json"]
    maps = ["--entity-to-id", str(triples / "entity_to_id.tsv.gz")]
    maps += ["--relation-to-id", str(triples / "relation_to_id.tsv.gz")]
    capsys.readouterr()
    assert cli.main([*call, *maps, "--train", str(triples / "numeric_triples.tsv.gz")]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["published"] is False
    assert "triples" in captured.err.splitlines()[-1]
    query = ["query", "--triple", "0", "0", "1", "--json"]
    assert cli.main([*query, "--index", str(other)]) == 1
    assert report["generation"] in capsys.readouterr().err
    assert cli.main(["publish", report["generation"], "--index", str(other)]) == 0
    capsys.readouterr()
    answers = []
    for index in (root, other):
        assert cli.main([*query, "--index", str(index)]) == 0
        answers.append(json.loads(capsys.readouterr().out)["results"])
    assert answers[0] == answers[1]


def test_the_service_answers_what_the_command_line_answers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One engine, two ways in; and it ends as asked."""
    body = {"triples": [[0, 0, 1], [5, 3, 7]], "top_k": 5, "order": "absolute"}
    call = ["query", "--index", str(root), "--top-k", "5", "--order", "absolute", "--json"]
    assert cli.main([*call, "--triple", "0", "0", "1", "--triple", "5", "3", "7"]) == 0
    expected = json.loads(capsys.readouterr().out)
    with serving("--index", str(root), "--threads", "1") as (process, address):
        answer = post(f"{address}/v1/influences", json=body)
        assert answer.status_code == 200
        assert answer.headers["X-Kgtrace-Generation"] == expected["generation"]
        served = answer.json()
        for result, wanted in zip(served["results"], expected["results"], strict=True):
            assert result["certified"]
            assert [f["train_index"] for f in result["influences"]] == [f["train_index"] for f in wanted["influences"]]
            assert [f["influence"] for f in result["influences"]] == pytest.approx(
                [f["influence"] for f in wanted["influences"]], rel=1e-4
            )
        exact = post(f"{address}/v1/influences", json={**body, "exact": True}).json()
        for result, wanted in zip(exact["results"], served["results"], strict=True):
            assert [f["train_index"] for f in result["influences"]] == [f["train_index"] for f in wanted["influences"]]
        assert get(f"{address}/v1/index").json()["counts"]["triples"] == 5216
        assert "date" in answer.headers
        assert "server" not in answer.headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_requests_in_flight_are_answered_before_the_service_ends(root: Path) -> None:
    """SIGTERM during a query does not lose the query."""
    body = {"triples": [[i % 100, i % 40, (7 * i) % 100] for i in range(256)], "exact": True}
    with serving("--index", str(root)) as (process, address), ThreadPoolExecutor(1) as thread:
        query = thread.submit(post, f"{address}/v1/influences", json=body)
        wait_until(lambda: "kgtrace_batch_requests_count 1.0" in get(f"{address}/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert query.result().status_code == 200
        assert process.wait(PATIENCE) == 0


def test_the_service_says_why_it_has_no_index(tmp_path: Path) -> None:
    """It listens, and its probe tells."""
    with listening("--index", str(tmp_path / "nope"), "--log-level", "error") as (_, address):
        probe = get(f"{address}/readyz")
        assert probe.status_code == 503
        assert "build one first" in probe.json()["detail"]


def test_a_sound_index_is_verified(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check is reported, and all pass."""
    assert cli.main(["verify", "--index", str(root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert len(report["checks"]) >= 3
    assert cli.main(["verify", "--index", str(root), report["generation"]]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_a_damaged_index_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One flipped bit: exit 1, naming the file."""
    copy = tmp_path / "index"
    shutil.copytree(root, copy)
    (gradients,) = copy.glob("generations/*/gradients.h5")
    data = bytearray(gradients.read_bytes())
    data[len(data) // 2] ^= 1
    gradients.write_bytes(data)
    for call in (["verify"], ["query", "--triple", "0", "0", "1"]):
        assert cli.main([*call, "--index", str(copy)]) == 1
        captured = capsys.readouterr()
        assert "gradients.h5 has sha256" in captured.err
        assert captured.err.count("\n") == 1
