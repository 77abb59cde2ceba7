"""``kgtrace query``, and the models and training data that verbs read."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kgtrace_server.cli import inputs, parser as cli
from kgtrace_server.schema.answer import from_json
from kgtrace_server.schema.answers import Influences
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest, UnreadableModel
from kgtrace_store.vocabulary import Vocabulary
from tests.server.cli.command import run

pytestmark = pytest.mark.usefixtures("no_environment")


@pytest.mark.usefixtures("fake")
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


@pytest.mark.usefixtures("fake")
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


@pytest.mark.usefixtures("fake")
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


@pytest.mark.usefixtures("fake")
def test_test_triples_may_be_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In files, where the call says so; labels that are made of digits do not matter then."""
    test = tmp_path / "test.del"
    test.write_text("4\t2\t0\n")
    code, out, _ = run(capsys, "query", "--index", "x", "--test", str(test), "--ids", "--json")
    triple = json.loads(out)["results"][0]["triple"]
    assert (code, [triple[field]["id"] for field in ("head", "relation", "tail")]) == (0, [4, 2, 0])


@pytest.mark.usefixtures("fake")
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


@pytest.mark.usefixtures("fake")
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


@pytest.mark.usefixtures("fake")
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


@pytest.mark.usefixtures("fake")
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
