"""The examples, run as their readers run them."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from .conftest import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "explain_a_prediction.ipynb"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("KGTRACE_")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}
KEY = "s3cret"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of model and index that the pipeline made, and what it printed."""
    folder = tmp_path_factory.mktemp("nations")
    done = run(sys.executable, EXAMPLES / "pykeen_pipeline.py", "--folder", folder, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def address(trained: tuple[Path, str]) -> Iterator[str]:
    """A service of that index, which asks for a key."""
    command = ["kgtrace", "serve", "--index", trained[0] / "index", "--port", "0", "--deadline", "600"]
    environment = ENVIRONMENT | {"KGTRACE_READ_KEY": KEY}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 600)[0]
            told = process.stdout.readline().split(" at ")[1].split()[0]
            wait_until(lambda: httpx.get(f"{told}/readyz", timeout=600).status_code == 200)
            yield told
        finally:
            process.terminate()


def test_the_pipeline_ends_in_an_answer(trained: tuple[Path, str]) -> None:
    """It trains, builds, publishes, and explains a prediction."""
    folder, printed = trained
    assert (folder / "model" / "trained_model.pkl").is_file()
    assert "1,592 triples" in printed
    assert "egypt  embassy  uk" in printed
    assert "certified exact" in printed


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_curl_gets_an_answer_from_every_route(address: str) -> None:
    """Seven questions, seven JSON objects of the same generation."""
    done = run("sh", EXAMPLES / "ask.sh", address, "egypt", "embassy", "uk", KGTRACE_READ_KEY=KEY)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == done.stderr.count("# ") == 7
    assert len({answer["generation"] for answer in answers}) == 1
    opponents = answers[4]["results"][0]["influences"]
    for found in opponents:
        assert {found["triple"][end]["label"] for end in ("head", "tail")} & {"egypt", "uk"}
        assert found["influence"] < 0


@needs_curl
def test_curl_stops_at_the_first_refusal(address: str) -> None:
    """Without the key nothing is told, and the exit code says so."""
    done = run("sh", EXAMPLES / "ask.sh", address, "egypt", "embassy", "uk")
    assert done.returncode != 0
    assert json.loads(done.stdout)["status"] == 401


def test_the_client_explains_what_it_predicts(address: str) -> None:
    """The best new tail, five training triples, three relations; and the nearest label where one is misspelt."""
    done = run(sys.executable, EXAMPLES / "ask.py", address, "egypt", "embassy", KGTRACE_READ_KEY=KEY)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("egypt embassy ")
    assert len(rest) == 5 + 1 + 3
    assert rest[5].startswith("certified: ")
    misspelt = run(sys.executable, EXAMPLES / "ask.py", address, "egypt", "ebassy", KGTRACE_READ_KEY=KEY)
    assert (misspelt.returncode, misspelt.stderr) == (
        1,
        "unknown relation 'ebassy'; nearest: 'embassy', 'attackembassy'\n",
    )


def test_the_quick_start_leads_to_an_answer(tmp_path: Path) -> None:
    """Its training, for one epoch, and its commands up to the first answer."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    training = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (commands,) = re.findall(r"```\n\. PATH_OF_THE_CLONE/\.venv/bin/activate\n(.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(training.replace('"num_epochs": 20', '"num_epochs": 1'))
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "egypt  embassy  uk" in done.stdout
    assert "certified exact" in done.stdout


def test_the_notebook_tells_its_story(tmp_path: Path) -> None:
    """Every cell runs (training is shorter), the answer is certified, pictures are drawn; the file has no outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    assert "EPOCHS = 20\n" in cells[0].source
    cells[0].source = cells[0].source.replace("EPOCHS = 20\n", "EPOCHS = 2\n")
    NotebookClient(notebook, timeout=600).execute(env=environment)
    outputs = [output for cell in cells for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "certified: True" in printed
    assert "among the first 100:" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
