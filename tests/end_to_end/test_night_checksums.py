"""The tests of damage are worth something: without any one of the checks, one of them fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

CHECKS = {
    # Each place that compares a checksum, and each that says that it should be done: file, what it says, what it would
    # say without.
    "size of a file": ("store/kgtrace_store/generation.py", "if actual.bytes != recorded.bytes:", "if False:"),
    "checksum of a file": ("store/kgtrace_store/generation.py", "if actual.sha256 != recorded.sha256:", "if False:"),
    "names of files": ("store/kgtrace_store/generation.py", "sorted(present ^ set(self.manifest.files))", "()"),
    "checksum of a manifest": ("store/kgtrace_store/manifest.py", "if recorded != computed:", "if False:"),
    "opening": ("store/kgtrace_store/generations.py", "opened.verify()", "pass"),
    "opening by default": ("store/kgtrace_store/generations.py", "verify: bool = True", "verify: bool = False"),
    "publishing": ("store/kgtrace_store/generations.py", "with self.open(generation)", "with self._open(generation)"),
    "reading back": ("store/kgtrace_store/staging.py", "written.verify()", "pass"),
    "resuming": (
        "store/kgtrace_store/staging.py",
        "FileRecord.of(folder / layout.PARTS / name) == FileRecord(size, digest)",
        "True",
    ),
    "resuming rows": (
        "store/kgtrace_store/staging.py",
        "_checksum_of_rows(folder / layout.STAGED, rows) == digest",
        "True",
    ),
    "resuming what": ("store/kgtrace_store/journal.py", "if begun[name] != job[name]", "if False"),
    "answering": ("indexer/kgtrace_indexer/query/opening.py", "verify: bool = True", "verify: bool = False"),
    "model": (
        "indexer/kgtrace_indexer/inputs/model_file.py",
        "(actual := model.fingerprint()) != fingerprint",
        "False",
    ),
}

COMPARISON = re.compile(r"(sha256|checksum|fingerprint|FileRecord\.of).*(==|!=)|\.verify\(\)$")
"""Lines that look like one."""

TESTS = [
    "tests/store/test_manifest.py",
    "tests/store/test_generations.py",
    "tests/store/test_pruning.py",
    "tests/store/test_staging.py",
    "tests/indexer/inputs/test_model_file.py",
    "tests/indexer/inputs/test_state_dicts.py",
    "tests/indexer/inputs/test_converted_models.py",
    "tests/indexer/inputs/test_hostile_models.py",
    "tests/end_to_end/test_night_damage.py",
]


def test_no_check_is_forgotten() -> None:
    """Every line that looks like a comparison of checksums is among those that are left out in turn."""
    known = {(path, text) for path, text, _ in CHECKS.values()}
    for folder in ("store", "indexer"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                if COMPARISON.search(line):
                    name = path.relative_to(REPOSITORY).as_posix()
                    assert any(name == file and text in line for file, text in known), f"{name}: {line}"


@pytest.mark.slow
def test_nothing_fails_with_every_check(tmp_path: Path) -> None:
    """What fails below does so for the lack of a check."""
    done = run_tests(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_every_check_is_needed(check: str, tmp_path: Path) -> None:
    """Leaving out any comparison of checksums, or any request for one, fails a test."""
    done = run_tests(tmp_path, *CHECKS[check])
    failed = re.search(r"^FAILED (.*)", done.stdout, re.MULTILINE)
    print(f"without it fails {failed[1] if failed else None}")
    assert failed, done.stdout + done.stderr


def run_tests(
    folder: Path, name: str | None = None, text: str = "", without: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the tests on a copy of the packages, in which a text of a file is replaced, to the first one that fails."""
    packages = [REPOSITORY / package for package in ("store", "indexer", "server")]
    for package in packages:
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    if name is not None:
        source = (folder / name).read_text()
        assert source.count(text) == 1
        (folder / name).write_text(source.replace(text, without))
    path = os.pathsep.join(str(folder / package.name) for package in packages)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--basetemp", folder / "tests"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [*command, *TESTS], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
