"""Calls of the command line, right and wrong, failures, and the verbs for generations."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kgtrace_indexer import BuildConfig
from kgtrace_indexer.names import PRECONDITIONS
from kgtrace_server.cli import inputs, parser as cli
from kgtrace_server.cli.verbs import operate
from kgtrace_store import IndexRoot
from kgtrace_store.errors import BadRequest
from tests.server.cli.command import KGTRACE, run
from tests.server.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("no_environment")


VERBS = (
    "build",
    "append",
    "convert",
    "query",
    "explain",
    "tracin",
    "self-influence",
    "evaluate",
    "mcp",
    "serve",
    "verify",
    "list",
    "publish",
    "rollback",
    "prune",
    "push",
    "demo",
    "completion",
)


# Calls.


WRONG_CALLS: list[tuple[list[str], str]] = [
    ([], "required: VERB"),
    (["foretell"], "invalid choice: 'foretell'"),
    (["explain", "--index", "x"], "required: --triple"),
    (["explain", "--index", "x", "--triple", "a", "b", "c", "--max-facts", "0"], "'0' is not an integer of at least 1"),
    (["explain", "--index", "x", "--triple", "a", "b", "c", "--mode", "enough"], "invalid choice: 'enough'"),
    (
        [
            "explain",
            "--index",
            "x",
            "--triple",
            "a",
            "b",
            "c",
            "--without",
            "a",
            "b",
            "d",
            "--connected",
            "--max-facts",
            "2",
        ],
        "--without names the set, and nothing is looked for: leave --max-facts, --connected out",
    ),
    (["query", "--index", "x"], "one of the arguments --triple --test is required"),
    (["query", "--triple", "a", "b", "c"], "required: --index"),
    (["query", "--index", "x", "--triple", "a", "b"], "expected 3 arguments"),
    (["query", "--index", "x", "--triple", "a", "b", "c", "--top-k", "0"], "'0' is not an integer of at least 1"),
    (["query", "--index", "x", "--triple", "a", "b", "c", "--test", "f"], "not allowed with"),
    (["query", "--index", "x", "--triple", "a", "b", "c", "--test-indices", "0"], "of --test FILE"),
    (["query", "--index", "x", "--triple", "a", "b", "c", "--order", "best"], "invalid choice: 'best'"),
    (["build", "--index", "x"], "required: --model"),
    (["build", "--model", "x"], "required: --index"),
    (["build", "--model", "x", "--index", "x", "--batch-size", "many"], "'many' is not an integer"),
    (["build", "--model", "x", "--index", "x", "--entity-to-id", "e"], "say what the labels of --train FILE mean"),
    (["build", "--model", "x", "--index", "x", "--stratify-by", "head"], "give --sample-rate P below 1, too"),
    (["convert", "model"], "required: OUT"),
    (["evaluate", "--model", "x"], "required: --test"),
    (["publish", "--index", "x"], "required: ID"),
    (["prune", "--index", "x", "--keep", "0"], "'0' is not an integer of at least 1"),
    (["mcp"], "give --index ROOT, set KGTRACE_INDEX, or give --url URL"),
    (["mcp", "--index", "x", "--url", "http://x"], "not allowed with"),
    (["mcp", "--index", "x", "--port", "1"], "say where --http listens"),
    (["serve"], "give --index ROOT or set KGTRACE_INDEX"),
    (["serve", "--port", "http"], "'http' is not an integer from 0 to 65535"),
]


@pytest.mark.parametrize(("call", "words"), WRONG_CALLS)
def test_wrong_calls_exit_2(capsys: pytest.CaptureFixture[str], call: list[str], words: str) -> None:
    """And say what was wrong."""
    with pytest.raises(SystemExit) as raised:
        cli.main(call)
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


def test_a_wrong_variable_is_a_wrong_call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named."""
    monkeypatch.setenv("KGTRACE_PORT", "http")
    with pytest.raises(SystemExit) as raised:
        cli.main(["serve", "--index", "x"])
    assert raised.value.code == 2
    assert "KGTRACE_PORT: 'http' is not" in capsys.readouterr().err


def test_the_index_may_come_from_the_environment(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variable serves all verbs."""
    monkeypatch.setenv("KGTRACE_INDEX", str(root))
    code, out, _ = run(capsys, "list", "--json")
    assert code == 0
    assert len(json.loads(out)["generations"]) == 2


def test_waiting_threads_sleep(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP finds that in the environment when a verb loads it."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cli.main(["list", "--index", str(root)]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """Exit 0, with every argument explained."""
    with pytest.raises(SystemExit) as raised:
        cli.main([verb, "--help"])
    assert raised.value.code == 0
    assert f"usage: kgtrace {verb}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, for scripts to read."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"kgtrace {version('kgtrace')}\n"


LIGHT_CALLS = """
import contextlib, io, json, os, sys
from kgtrace_server.cli import main
calls, slow, root = json.load(sys.stdin)
found = []
for call in calls:
    os.environ.pop("KGTRACE_INDEX", None)
    if {"list", "publish", "rollback", "prune"} & set(call[:1]) and "--index" not in call:
        os.environ["KGTRACE_INDEX"] = root
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(call)
        except SystemExit as e:
            code = e.code or 0
    found.append([code, sorted(set(slow) & set(sys.modules))])
print(json.dumps(found))
"""
SLOW = [
    "faiss",
    "fastapi",
    "h5py",
    "huggingface_hub",
    "mcp",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "pykeen",
    "pymilvus",
    "torch",
    "uvicorn",
]
"""Modules that take a tenth of a second or more to import, and seconds together."""


def test_calls_that_need_no_model_import_nothing_slow(root: Path) -> None:
    """Help, wrong calls, and the verbs that look after generations answer at once."""
    calls: list[tuple[list[str], int]] = [
        (["--help"], 0),
        (["--version"], 0),
        *(([verb, "--help"], 0) for verb in VERBS),
        (["completion", "bash"], 0),
        (["list"], 0),
        (["list", "--json"], 0),
        (["rollback"], 0),
        (["publish", IndexRoot(root).generations()[0].id], 0),
        (["publish", "none"], 1),
        (["prune", "--keep", "1"], 0),
        *((call, 2) for call, _ in WRONG_CALLS),
        (["query", "--index", "x", "--triple", "a", "b", "c", "--fresh"], 2),
        (["query", "--index", "x", "--triple", "a", "b", "c", "--search", "milvus"], 2),
        (["append", "--index", "x", "--train", "t", "--search", "milvus"], 2),
        (["build", "--model", "x", "--index", "x", "--learning-rates", "1"], 2),
        (["build", "--model", "x", "--index", "x", "--projection", "none", "--search", "milvus"], 2),
        (["tracin", "--model-path", "x", "--test", "t", "--stratify-by", "head"], 2),
        (["evaluate", "--model", "x", "--test", "t", "--entity-to-id", "e"], 2),
        (["evaluate", "--model", "x", "--test", "t"], 1),
    ]
    asked = json.dumps([[call for call, _ in calls], SLOW, str(root)])
    ran = subprocess.run([sys.executable, "-c", LIGHT_CALLS], input=asked, capture_output=True, text=True, check=True)
    for (call, code), (got, modules) in zip(calls, json.loads(ran.stdout), strict=True):
        assert (got, modules) == (code, []), call


def test_build_has_the_defaults_of_its_configuration() -> None:
    """The help tells them without importing it; ``auto`` leaves the batch size to it."""
    args = cli.parser().parse_args(["build", "--model", "m", "--index", "i", "--batch-size", "auto"])
    default = BuildConfig()
    for name in inputs.CONFIGURATION:
        assert getattr(args, name) == getattr(default, name)
    assert tuple(args.layers) == default.layers
    assert args.batch_size is None
    assert args.score is default.precondition is None
    others = {"layers", "batch_size", "precondition"}
    assert {field.name for field in fields(BuildConfig)} == {*inputs.CONFIGURATION, *others}


def test_scores_have_an_old_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    """``--precondition`` says the same, is not shown in the help, and does not go with ``--score``."""
    calls = {
        "build": ["--model", "m", "--index", "i"],
        "query": ["--index", "i", "--triple", "a", "b", "c"],
        "self-influence": ["--index", "i"],
    }
    for verb, call in calls.items():
        for old, score in PRECONDITIONS.items():
            for spelling in (["--precondition", old], ["--score", score]):
                assert cli.parser().parse_args([verb, *call, *spelling]).score == score
        for wrong, words in (
            (["--precondition", "tracin"], "invalid choice: 'tracin' (choose from none, fisher)"),
            (["--score", "fisher"], "invalid choice: 'fisher'"),
            (["--score", "tracin", "--precondition", "none"], "not allowed with argument --score"),
        ):
            with pytest.raises(SystemExit):
                cli.main([verb, *call, *wrong])
            assert words in capsys.readouterr().err
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        shown = capsys.readouterr().out
        assert "--score {tracin,preconditioned}" in shown
        assert "--precondition" not in shown


# Failures.


def failing(error: BaseException) -> Any:
    def fail(_: argparse.Namespace) -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadRequest("dim is 0, must be at least 1"), "kgtrace: dim is 0, must be at least 1\n"),
        (BadRequest("two\n  lines"), "kgtrace: two lines\n"),
        (
            ZeroDivisionError("division by zero"),
            "kgtrace: unexpected ZeroDivisionError: division by zero: "
            "run it again with --debug to see where, and report it\n",
        ),
    ],
)
def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    """Exit 1, one line on standard error, no traceback, nothing on standard output."""
    monkeypatch.setattr(operate, "rollback", failing(error))
    assert run(capsys, "rollback", "--index", "x") == (1, "", line)


@pytest.mark.parametrize("call", [["--debug", "rollback", "--index", "x"], ["rollback", "--index", "x", "--debug"]])
def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, call: list[str]) -> None:
    """Before or after the verb, the error passes through with its traceback."""
    monkeypatch.setattr(operate, "rollback", failing(BadRequest("x")))
    with pytest.raises(BadRequest):
        cli.main(call)


def test_interruptions_are_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits as a shell would say, without a word."""
    monkeypatch.setattr(operate, "rollback", failing(KeyboardInterrupt()))
    assert run(capsys, "rollback", "--index", "x") == (130, "", "")


def test_a_reader_that_went_away_is_no_failure(root: Path) -> None:
    """``kgtrace list | head -0`` complains about nothing."""
    with subprocess.Popen(
        [*KGTRACE, "list", "--index", str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


# Generations.


def test_generations_are_listed_published_rolled_back_and_pruned(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The live one is marked, and every change is reported."""
    old, new = (status.id for status in IndexRoot(root).generations())
    at = ("--index", str(root))
    code, out, _ = run(capsys, "list", *at)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [lines[1][0], lines[1][-2:]] == [old, ["7", "ConvE"]]
    assert lines[2][:2] == ["*", new]
    assert run(capsys, "rollback", *at) == (0, f"generation {old} is live again\n", "")
    assert json.loads(run(capsys, "publish", new, *at, "--json")[1]) == {"live": new}
    assert run(capsys, "prune", "--keep", "1", *at) == (0, f"removed {old}\n", "")
    assert run(capsys, "prune", "--keep", "1", *at) == (0, "nothing to remove\n", "")
    code, _, err = run(capsys, "rollback", *at)
    assert code == 1
    assert err.startswith("kgtrace: ")
    assert err.count("\n") == 1


def test_a_damaged_generation_is_listed_with_its_problem(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not hide the others."""
    (old, new) = IndexRoot(root).generations()
    (root / "generations" / old.id / "manifest.json").write_text("{")
    code, out, _ = run(capsys, "list", "--index", str(root))
    assert code == 0
    assert "unreadable" in out
    assert new.id in out


@pytest.mark.parametrize("verb", ["list", "prune"])
def test_a_missing_root_is_named(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error, or a folder of something else, does not look like an empty index; and nothing is made there."""
    for path in (tmp_path / "nope", tmp_path):
        assert run(capsys, verb, "--index", str(path)) == (
            1,
            "",
            f"kgtrace: there is no index root {path}: build one first\n",
        )
    assert list(tmp_path.iterdir()) == []
