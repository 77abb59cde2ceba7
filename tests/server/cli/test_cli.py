"""Arguments in, exit codes and one line out."""

import argparse
import csv
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
from kgtrace_server.schema.answers import Influences, from_json
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service
from kgtrace_store import IndexRoot
from kgtrace_store.errors import BadRequest, UnreadableModel
from kgtrace_store.vocabulary import Vocabulary
from tests.server.waiting import PATIENCE

KGTRACE = (sys.executable, "-c", "from kgtrace_server.cli import main; raise SystemExit(main())")

VERBS = (
    "build",
    "append",
    "convert",
    "query",
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


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KGTRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def _fake(attributor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Calls.


WRONG_CALLS: list[tuple[list[str], str]] = [
    ([], "required: VERB"),
    (["explain"], "invalid choice: 'explain'"),
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


# Queries.


@pytest.mark.usefixtures("_fake")
def test_query_answers_what_the_service_answers(capsys: pytest.CaptureFixture[str], service: Service) -> None:
    """JSON on request; every option counts."""
    call = ["--triple", "aspirin", "treats", "headache", "--triple", "aspirin", "located in", "7", "--top-k", "4"]
    options = [
        "--order",
        "absolute",
        "--relation",
        "treats",
        "located in",
        "--not-head",
        "ibuprofen",
        "--not-tail",
        "7",
    ]
    code, out, _ = run(capsys, "query", "--index", "x", *call, *options, "--json")
    expected = service.influences(
        InfluenceRequest.of(
            triples=[(0, 0, 2), (0, 1, 4)],
            top_k=4,
            order="absolute",
            must={"relation": [0, 1]},
            must_not={"head": [1], "tail": [4]},
        )
    )
    assert code == 0
    assert from_json(Influences, out.encode()) == expected
    code, out, _ = run(capsys, "query", "--index", "x", *call)
    assert code == 0
    assert out.startswith("Aspirin®  treats  headache\n")


@pytest.mark.usefixtures("_fake")
def test_query_reads_test_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Rows are chosen by number or from the start; files name them."""
    test = tmp_path / "test.tsv"
    test.write_text("aspirin\ttreats\theadache\n\nfever\t2\t7\nibuprofen\ttreats\tfever\n")
    out = tmp_path / "out.csv"
    common = ("query", "--index", "x", "--test", str(test), "--top-k", "1", "--output", str(out))

    def rows() -> list[list[str]]:
        return [line.split(",")[:3] for line in out.read_text().splitlines()[1:]]

    assert run(capsys, *common, "--test-indices", "2", "0")[:2] == (0, f"{out}: 2 influences on 2 test triples\n")
    assert rows() == [["2", "1", "ibuprofen"], ["0", "0", "aspirin"]]
    assert run(capsys, *common, "--max-test-triples", "2")[0] == 0
    assert [row[0] for row in rows()] == ["0", "1"]
    assert run(capsys, *common)[0] == 0
    assert len(rows()) == 3
    code, _, err = run(capsys, *common, "--test-indices", "3")
    assert code == 1
    assert "--test-indices 3" in err


@pytest.mark.usefixtures("_fake")
def test_skipped_test_triples_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On standard error, and in whatever JSON there is; without --skip-unknown the first one is an error."""
    test = tmp_path / "test.tsv"
    test.write_text("aspirin\ttreats\theadache\natlantis\ttreats\tfever\nfever\tflies\t7\nfever\t2\tlemuria\n")
    out = tmp_path / "out.json"
    call = ("query", "--index", "x", "--test", str(test), "--top-k", "1")
    said = f"kgtrace: warning: 3 of 4 lines of {test} name unknown entities or relations: they were skipped\n"
    code, printed, err = run(capsys, *call, "--skip-unknown", "--json")
    assert (code, err) == (0, said)
    assert json.loads(printed)["skipped_test_triples"] == 3
    assert len(json.loads(printed)["results"]) == 1
    code, printed, err = run(capsys, *call, "--skip-unknown", "--output", str(out), "--json")
    assert (code, err) == (0, said)
    assert json.loads(printed)["skipped_test_triples"] == json.loads(out.read_bytes())["skipped_test_triples"] == 3
    code, printed, err = run(capsys, *call)
    assert (code, printed) == (1, "")
    assert "line 2: unknown entity 'atlantis'" in err
    test.write_text("aspirin\ttreats\theadache\n")
    code, printed, err = run(capsys, *call, "--skip-unknown", "--json")
    assert (code, err, json.loads(printed)["skipped_test_triples"]) == (0, "", 0)
    assert "skipped_test_triples" not in json.loads(run(capsys, *call, "--json")[1])


@pytest.mark.usefixtures("_fake")
def test_test_triples_may_be_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In files, where the call says so; labels that are made of digits do not matter then."""
    test = tmp_path / "test.del"
    test.write_text("4\t2\t0\n")
    code, out, _ = run(capsys, "query", "--index", "x", "--test", str(test), "--ids", "--json")
    triple = json.loads(out)["results"][0]["triple"]
    assert (code, [triple[field]["id"] for field in ("head", "relation", "tail")]) == (0, [4, 2, 0])


@pytest.mark.usefixtures("_fake")
def test_labels_may_begin_with_a_dash(capsys: pytest.CaptureFixture[str], attributor: Any) -> None:
    """The three arguments after --triple are labels, whatever they look like, and --relation=LABEL takes one."""
    entities = ("--help", "--top-k", "-x y", "--triple", "-1", "--", "a")
    attributor.vocabulary = Vocabulary(entities, ("-[treats]->", "-r", "r"))
    triples = [("--help", "-[treats]->", "--top-k"), ("-x y", "-r", "--triple"), ("-1", "r", "--"), ("a", "r", "a")]
    asked = [text for triple in triples for text in ("--triple", *triple)]
    code, out, _ = run(capsys, "query", "--index", "x", *asked, "--top-k", "2", "--json")
    found = [result["triple"] for result in json.loads(out)["results"]]
    assert code == 0
    assert [tuple(t[field]["label"] for field in ("head", "relation", "tail")) for t in found] == triples
    options = ["--relation=-[treats]->", "--relation=-r", "--not-head=--help", "--not-head", "a", "-1"]
    assert run(capsys, "query", *asked, *options, "--index", "x", "--top-k", "20", "--json")[0] == 0
    code, out, _ = run(capsys, "query", *asked[:4], *options, "--index", "x", "--top-k", "20", "--json")
    rows = [found["triple"] for found in json.loads(out)["results"][0]["influences"]]
    assert rows
    assert {row["relation"]["label"] for row in rows} == {"-[treats]->", "-r"}
    assert not {row["head"]["label"] for row in rows} & {"--help", "a", "-1"}
    with pytest.raises(SystemExit):
        cli.main(["query", "--index", "x", "--triple", "a", "r"])
    assert "--triple: expected 3 arguments" in capsys.readouterr().err


@pytest.mark.usefixtures("_fake")
def test_terminals_are_given_no_control_characters(
    capsys: pytest.CaptureFixture[str], attributor: Any, tmp_path: Path
) -> None:
    """A label that would colour, move or reorder text is shown with escapes; JSON and CSV hold it as it is."""
    red, tab, back = "\x1b[31mred\x1b[0m", "lung\tcancer\r\nx", "\u202egpj.exe"
    attributor.vocabulary = Vocabulary(
        (red, tab, back, "\x9b2J", "Zürich", "日本", "n"), ("r", "s", "t"), {6: "\x07name"}
    )
    out = tmp_path / "out.csv"
    call = ("query", "--index", "x", "--triple", red, "r", tab, "--top-k", "20")
    code, shown, _ = run(capsys, *call)
    assert code == 0
    assert shown.startswith(r"\x1b[31mred\x1b[0m  r  lung\tcancer\r\nx" + "\n")
    assert r"\u202egpj.exe" in shown
    ranked = run(capsys, "self-influence", "--index", "x", "--top-k", "20")[1]
    assert "Zürich" in shown + ranked
    assert {c for c in shown + ranked if not c.isprintable()} == {"\n"}
    triple = json.loads(run(capsys, *call, "--json")[1])["results"][0]["triple"]
    assert (triple["head"]["label"], triple["tail"]["label"]) == (red, tab)
    assert run(capsys, *call, "--output", str(out))[0] == 0
    with out.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert {row["test_head_label"] for row in rows} == {red}
    assert {row["test_tail_label"] for row in rows} == {tab}
    for text in ("\x1b[2J", "x\x1b]0;name", "\x07nam"):
        code, _, err = run(capsys, "query", "--index", "x", "--triple", text, "r", tab)
        assert code == 1
        assert {c for c in err if not c.isprintable()} == {"\n"}


@pytest.mark.usefixtures("_fake")
def test_many_test_triples_are_asked_in_batches(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, attributor: Any
) -> None:
    """The answer is one, the progress is told on standard error."""
    test = tmp_path / "test.tsv"
    test.write_text("aspirin\ttreats\theadache\n" * 150)
    code, out, err = run(capsys, "query", "--index", "x", "--test", str(test), "--top-k", "1", "--json")
    assert code == 0
    answer = json.loads(out)
    assert len(answer["results"]) == 150
    assert [len(call["triples"]) for call in attributor.calls] == [64, 64, 22]
    assert answer["seconds"]["search"] == pytest.approx(0.6)
    assert err.splitlines()[-1].startswith("query: 150 of 150 test triples (100 %)")


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--triple", "asprin", "treats", "headache"], "unknown entity 'asprin'; nearest: 'aspirin'"),
        (["--triple", "99", "treats", "headache"], "unknown entity '99'; digits are labels here, not ids"),
        (["--triple", "fever", "2", "7", "--head", "nobody"], "unknown entity 'nobody'"),
        (["--triple", "fever", "2", "7", "--direction", "head"], "no inverse relations"),
        (["--triple", "fever", "2", "7", "--output", "x.txt"], "must end in .json or .csv"),
        (["--triple", "fever", "2", "7", "--output", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["--test", "/nope.tsv"], "/nope.tsv"),
    ],
)
def test_query_failures_say_what_to_do(capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    """Exit 1 and one line."""
    code, out, err = run(capsys, "query", "--index", "x", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err


def test_build_without_training_data_says_what_to_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state dict carries no triples."""
    (tmp_path / "model.pt").write_bytes(b"")
    code, _, err = run(capsys, "build", "--model", str(tmp_path / "model.pt"), "--index", str(tmp_path / "i"))
    assert code == 1
    assert "pass --train, --entity-to-id and --relation-to-id" in err
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    "call",
    [
        ["build", "--model", "nofile", "--index", "i"],
        ["evaluate", "--model", "nofile", "--test", "t"],
        ["tracin", "--model-path", "nofile", "--mode", "self"],
        ["convert", "nofile", "out"],
    ],
)
def test_a_missing_model_is_named(call: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is not taken for a model without triples."""
    assert run(capsys, *call) == (1, "", "kgtrace: cannot read model nofile: No such file or directory\n")


@pytest.mark.parametrize(
    ("report", "words"), [(".", "is a folder: name a file"), ("nofolder/gate.json", "there is no folder")]
)
def test_reports_that_cannot_be_written_are_told_at_once(
    report: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read."""
    more = ["--index", str(tmp_path / "index"), "--gate-report", str(tmp_path / report)]
    for call in (["build", "--model", "nofile"], ["append", "--train", "nofile"]):
        code, out, err = run(capsys, *call, *more)
        assert (code, out) == (1, "")
        assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_report_may_lie_in_an_index_root_that_is_yet_to_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first build makes it; here it goes on to find that there is no model."""
    root = tmp_path / "index"
    call = ["build", "--model", "nofile", "--index", str(root), "--gate-report", str(root / "gate.json")]
    assert "cannot read model" in run(capsys, *call)[2]


def test_a_folder_without_triples_says_how_to_save_them(tmp_path: Path) -> None:
    """As a replicated hyper-parameter search leaves it; a folder above it names it."""
    replicate = tmp_path / "replicates" / "replicate-00000"
    replicate.mkdir(parents=True)
    (replicate / "trained_model.pkl").touch()
    args = argparse.Namespace(
        model=replicate, train=None, entity_to_id=None, relation_to_id=None, names=None, lang="en"
    )
    with pytest.raises(BadRequest, match=r"carries no training_triples.*save_training=True: pass --train"):
        inputs.training_data(args)
    args.model = tmp_path
    with pytest.raises(UnreadableModel, match=r"holds no model.*; pass .*replicates/replicate-00000$"):
        inputs.training_data(args)
