"""Models from registries, and indexes to one: the libraries of both, over loopback and from a folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kgtrace_indexer import BuildConfig, build
from kgtrace_server.cli import parser as cli
from kgtrace_store import IndexRoot
from tests.hub_server import TOKEN, Hub, hub_server

CALLS = """
import contextlib, io, json, sys
from kgtrace_server.cli import main
outcomes = []
for call in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(call)
    outcomes.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(outcomes))
"""
REGISTER = """
import sys, mlflow
client = mlflow.MlflowClient()
with mlflow.start_run() as run:
    mlflow.log_artifacts(sys.argv[1], "model")
client.create_registered_model("umls")
client.create_model_version("umls", run.info.artifact_uri + "/model", run.info.run_id)
client.set_registered_model_alias("umls", "champion", "1")
"""
Outcome = tuple[int, str, str]
Calls = Callable[..., list[Outcome]]


def program(text: str, *arguments: str, input_: str = "", **environment: str) -> str:
    """Run a program of its own, since the libraries read the environment when they are imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KGTRACE_", "HF_", "MLFLOW_"))}
    command = [sys.executable, "-c", text, *arguments]
    ran = subprocess.run(command, input=input_, env=clean | environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


@pytest.fixture
def on_hub(hub: Hub, tmp_path: Path) -> Calls:
    """Runs verbs, with a token for the Hub and nothing in its cache."""

    def run(*calls: list[str], **environment: str) -> list[Outcome]:
        home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return [
            tuple(each) for each in json.loads(program(CALLS, input_=json.dumps(calls), **home | quiet | environment))
        ]

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BUILD = ["build", "--dim", "4", "--landmarks", "32", "--device", "cpu", "--json"]


def test_a_model_on_the_hub_is_read_as_a_folder_is(
    hub: Hub, on_hub: Calls, umls_folder: Path, umls: Any, tmp_path: Path
) -> None:
    """The same index; its provenance names the commit, whose files are asked for once."""
    hub.repositories["me/umls"] = files_of(umls_folder)
    commit = hub.commit("me/umls")
    root = IndexRoot(tmp_path / "index")
    ((code, out, err),) = on_hub([*BUILD, "--index", str(root.path), "--model", "hf://me/umls"])
    assert (code, json.loads(out)["published"]) == (0, True), err
    with root.open() as generation:
        assert generation.manifest.provenance["model"] == f"hf://me/umls@{commit}"
        found = generation.manifest.fingerprint
    build(tmp_path / "expected", *umls, BuildConfig(dim=4, landmarks=32, device="cpu"))
    with IndexRoot(tmp_path / "expected").open() as generation:
        assert found == generation.manifest.fingerprint
    offline = ["convert", f"hf://me/umls@{commit}", str(tmp_path / "converted")]
    ((code, _, err),) = on_hub(offline, HF_HUB_OFFLINE="1")
    assert code == 0, err
    assert (tmp_path / "converted" / "model.safetensors").is_file()


def test_the_hub_is_refused_in_one_line(on_hub: Calls, umls_index: Path, tmp_path: Path) -> None:
    """No repository, no permission, no network: exit 1, and the address is named."""
    wanted = [*BUILD, "--index", str(tmp_path / "index"), "--model", "hf://me/nothing"]
    push = ["push", str(umls_index), "hf://me/refused"]
    outcomes = [
        *on_hub(wanted, push, HF_TOKEN="wrong"),
        *on_hub(wanted, push, HF_ENDPOINT="http://127.0.0.1:9"),  # where nobody listens
    ]
    for (code, out, err), address in zip(outcomes, ["hf://me/nothing", "hf://me/refused"] * 2, strict=True):
        assert (code, out) == (1, "")
        assert err.startswith(f"kgtrace: cannot use {address}: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "index").exists()


def test_an_index_is_pushed_with_a_card(hub: Hub, on_hub: Calls, umls: Any, tmp_path: Path) -> None:
    """The repository is an index root of that generation alone; it is private, and its card says how to open it."""
    root = IndexRoot(tmp_path / "index")
    for seed in (1, 2):
        build(root.path, *umls, BuildConfig(dim=4, landmarks=32, device="cpu", seed=seed))
    older, live = (status.id for status in root.generations())
    address = "hf://me/index"
    first, second = on_hub(
        ["push", str(root.path), address, "--generation", older], ["push", str(root.path), address, "--json"]
    )
    assert first[0] == second[0] == 0, (first, second)
    assert [asked["visibility"] for asked in hub.created[-2:]] == ["private"] * 2
    files = dict(hub.repositories["me/index"])
    assert json.loads(second[1]) == {
        "pushed": address,
        "commit": f"{hub.address}/me/index/commit/{hub.commit('me/index')}",
    }
    card = files.pop("README.md").decode()
    assert files.pop("CURRENT") == f"{live}\n".encode()
    assert files == {
        f"generations/{live}/{name}": content for name, content in files_of(root.path / "generations" / live).items()
    }
    metadata, _, text = card.removeprefix("---\n").partition("---\n")
    assert "library_name: kgtrace\n" in metadata
    for words in ("| model | ConvE |", "| training triples | 5,216 |", live, '"seed": 2', "hf download me/index"):
        assert words in text
    download = tmp_path / "download"
    fetch = "import huggingface_hub, sys; huggingface_hub.snapshot_download('me/index', local_dir=sys.argv[1])"
    program(fetch, str(download), HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_TELEMETRY="1")
    with IndexRoot(download).open() as generation:
        assert generation.id == live


def test_a_registered_model_of_mlflow_is_read_as_a_folder_is(umls_folder: Path, tmp_path: Path) -> None:
    """By version and by alias; a copy that is gone afterwards, and one line for a version that is not there."""
    store = {"MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    program(REGISTER, str(umls_folder), **store | quiet)
    before = files_of(tmp_path / "store")
    root = IndexRoot(tmp_path / "index")
    calls = [
        [*BUILD, "--index", str(root.path), "--model", "mlflow:/umls/1"],
        ["convert", "mlflow:/umls@champion", str(tmp_path / "converted")],
        ["convert", "mlflow:/umls/2", str(tmp_path / "nothing")],
    ]
    built, converted, missing = json.loads(program(CALLS, input_=json.dumps(calls), **store | quiet))
    assert (built[0], converted[0]) == (0, 0), (built, converted)
    with root.open() as generation:
        assert generation.manifest.provenance["model"] == "mlflow:/umls/1"
    assert (tmp_path / "converted" / "model.json").is_file()
    assert missing[0] == 1
    assert "kgtrace: cannot use mlflow:/umls/2: " in missing[2]
    assert files_of(tmp_path / "store") == before
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["push", "ROOT", "me/index"], "'me/index' is not hf://OWNER/REPO"),
        (["push", "ROOT", "mlflow:/a/1"], "'mlflow:/a/1' is not hf://OWNER/REPO"),
        (["push", "ROOT", "hf://index"], "'hf://index' is not hf://OWNER/REPO"),
        (["build", "--index", "ROOT", "--model", "mlflow:/a"], "'mlflow:/a' is not mlflow:/NAME/VERSION"),
    ],
)
def test_a_wrong_address_is_a_wrong_call(capsys: pytest.CaptureFixture[str], call: list[str], words: str) -> None:
    """Exit 2, before anything is imported or asked."""
    with pytest.raises(SystemExit) as raised:
        cli.main(call)
    assert raised.value.code == 2
    assert words in capsys.readouterr().err
