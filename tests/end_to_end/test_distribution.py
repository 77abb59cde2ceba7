"""What is published: what wheel and source distribution hold, and that they run where nothing else is installed."""

import email
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("kgtrace", "kgtrace_indexer", "kgtrace_server", "kgtrace_store")


@pytest.fixture(scope="module")
def dist() -> Path:
    """The folder that `make dist-check` has built."""
    if "KGTRACE_DIST" not in os.environ:
        pytest.skip("run by `make dist-check`, which builds what is looked at")
    return (ROOT / os.environ["KGTRACE_DIST"]).resolve()


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def source(dist: Path) -> Path:
    (found,) = dist.glob("*.tar.gz")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    """Four typed packages, the licence, and no test, picture or cache."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    (information,) = folders - set(PACKAGES)
    assert information.endswith(".dist-info")
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert f"{information}/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".ipynb", ".md"))]


def test_the_metadata_tells_what_it_is(wheel: Path) -> None:
    """Version, licence and extras; and no link of the description leads to a file that only the repository has."""
    told = metadata(wheel)
    assert told["Version"] == version("kgtrace")
    assert told["License-Expression"] == "Apache-2.0"
    assert {"cpu", "gpu", "pykeen"} <= set(told.get_all("Provides-Extra", []))
    assert re.findall(r"\]\((?!https://)[^)]*\)", str(told.get_payload())) == []


def test_the_source_holds_what_builds_and_tests_it(source: Path) -> None:
    """Code, tests, documentation, examples; nothing that was built, and nothing that only we need."""
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    top = {name.split("/")[0] for name in names}
    assert {
        "store",
        "indexer",
        "server",
        "tests",
        "docs",
        "examples",
        "tools",
        "Makefile",
        "LICENSE",
        "PKG-INFO",
    } <= top
    assert not top & {".ci", ".venv", "site", "dist", "kgtrace-demo"}


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_it_runs_where_nothing_else_is_installed(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Installed with the extras that it names, the demo trains, indexes, serves and answers; types are found."""
    distribution: Path = request.getfixturevalue(kind)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KGTRACE_", "PYTHON"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    venv.create(tmp_path / "clean", with_pip=True)
    programs = tmp_path / "clean" / "bin"
    constraints = ROOT / "constraints.txt"
    run(programs / "pip", "install", "--quiet", "--constraint", constraints, f"{distribution}[cpu,pykeen]")
    assert run(programs / "kgtrace", "--version") == f"kgtrace {version('kgtrace')}\n"
    answer = run(programs / "kgtrace", "demo", "--once")
    assert "alga  interacts_with  human" in answer
    assert "certified exact" in answer
    (tmp_path / "typed.py").write_text("from kgtrace_server import Client\nreveal_type(Client.index)\n")
    checked = run(sys.executable, "-m", "mypy", "--python-executable", programs / "python", "typed.py")
    assert "IndexInfo" in checked
