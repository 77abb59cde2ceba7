"""What a scheduler or a training pipeline calls."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kgtrace_indexer import ModelFile, TripleTable
from kgtrace_server.cli import parser as cli
from kgtrace_server.http.app import create_app
from kgtrace_server.http.serving import loader
from kgtrace_server.settings import Settings
from kgtrace_store import IndexRoot, Vocabulary, layout
from tests.end_to_end.conftest import Night
from tests.server.conftest import Client

REPOSITORY = Path(__file__).parents[2]
HOOK = REPOSITORY / "docker" / "nightly.sh"
SMALL = ("--dim", "4", "--landmarks", "32", "--device", "cpu")


def run_hook(root: Path, model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the hook."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KGTRACE_INDEX": str(root), "KGTRACE_KEEP": "1"}
    return subprocess.run(
        ["sh", HOOK, model, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_the_hook_builds_publishes_and_prunes(umls_folder: Path, tmp_path: Path) -> None:
    """Each night leaves a live generation and the verdict; one that fails leaves the live generation and a reason."""
    for seed in ("1", "2"):
        done = run_hook(tmp_path, umls_folder, "--seed", seed, *SMALL)
        assert done.returncode == 0, done.stderr
        assert "is live" in done.stdout
    root = IndexRoot(tmp_path)
    (only,) = root.generations()
    assert only.live
    assert json.loads((tmp_path / "gate-report.json").read_bytes())["agreement"]["overlap"] > 0.9
    failed = run_hook(tmp_path, tmp_path / "absent", *SMALL)
    assert failed.returncode == 1
    assert "absent" in failed.stderr
    assert root.current() == only.id


def test_the_agreement_of_each_night_is_listed(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the gate found is kept with each generation, for the command line and the service to show."""
    root = shutil.copytree(night.begun, tmp_path / "root")
    night.build(root)
    first, second = (status.id for status in IndexRoot(root).generations())
    gate = root / layout.GENERATIONS / second / layout.GATE
    verdict = json.loads(gate.read_bytes())["agreement"]
    wanted = {name: verdict[name] for name in ("generation", "overlap", "top_k", "triples")}
    assert wanted["generation"] == first
    assert 0 < wanted["overlap"] <= 1

    def listed() -> list[Any]:
        assert cli.main(["list", "--index", str(root), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["generations"]
        settings = Settings(index=root, device="cpu")
        assert Client(create_app(loader(settings), settings)).get("/v1/generations").json()["generations"] == found
        return [generation["agreement"] for generation in found]

    assert listed() == [None, wanted]
    assert cli.main(["list", "--index", str(root)]) == 0
    assert f"{wanted['overlap']:.0%}" in capsys.readouterr().out
    gate.write_bytes(b"[" * 100_000)
    assert listed() == [None, None]


def test_append_from_the_command_line(
    umls: tuple[ModelFile, Vocabulary, TripleTable],
    tmp_path: Path,
    umls_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """New lines extend the live generation; a second time there is nothing to append, and that is said in a line."""
    _, vocabulary, table = umls
    lines = [
        f"{vocabulary.entities[h]}\t{vocabulary.relations[r]}\t{vocabulary.entities[t]}\n" for h, r, t in table.ids
    ]
    (tmp_path / "old.tsv").write_text("".join(lines[:200]))
    (tmp_path / "all.tsv").write_text("".join(lines[:210]))
    maps = umls_folder / "training_triples"
    old = ["--train", str(tmp_path / "old.tsv"), "--entity-to-id", str(maps / "entity_to_id.tsv.gz")]
    old += ["--relation-to-id", str(maps / "relation_to_id.tsv.gz"), "--index", str(tmp_path / "index")]
    assert cli.main(["build", "--model", str(umls_folder), *old, *SMALL]) == 0
    append = ["append", "--train", str(tmp_path / "all.tsv"), "--index", str(tmp_path / "index"), "--device", "cpu"]
    capsys.readouterr()
    assert cli.main([*append, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["triples"], found["skipped"], found["published"]) == (210, 200, True)
    assert cli.main(append) == 1
    assert "nothing to append" in capsys.readouterr().err
