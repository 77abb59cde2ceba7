"""What a scheduler or a training pipeline calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kgtrace_indexer import ModelFile, TripleTable
from kgtrace_server import cli
from kgtrace_store import IndexRoot, Vocabulary

REPOSITORY = Path(__file__).parents[2]
HOOK = REPOSITORY / "docker" / "nightly.sh"
SMALL = ("--dim", "4", "--landmarks", "32", "--device", "cpu")


def night(root: Path, model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
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
        done = night(tmp_path, umls_folder, "--seed", seed, *SMALL)
        assert done.returncode == 0, done.stderr
        assert "is live" in done.stdout
    root = IndexRoot(tmp_path)
    (only,) = root.generations()
    assert only.live
    assert json.loads((tmp_path / "gate-report.json").read_bytes())["agreement"]["overlap"] > 0.9
    failed = night(tmp_path, tmp_path / "absent", *SMALL)
    assert failed.returncode == 1
    assert "absent" in failed.stderr
    assert root.current() == only.id


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


def test_deployment_files_name_what_exists() -> None:
    """The scripts, targets and commands that the deployment files call are there."""
    dockerfile = (REPOSITORY / "docker" / "Dockerfile").read_text()
    compose = (REPOSITORY / "docker" / "compose.yaml").read_text()
    for target in ("indexer", "server"):
        assert f"FROM base AS {target}" in dockerfile
        assert f"target: {target}" in compose
    assert "./nightly.sh:/nightly.sh:ro" in compose
    timer = (REPOSITORY / "docker" / "systemd" / "kgtrace-nightly.timer").read_text()
    assert "OnCalendar=" in timer
    for text in (compose, dockerfile, (REPOSITORY / "docker" / "kubernetes.yaml").read_text()):
        assert "://" not in "".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", "CMD")))
