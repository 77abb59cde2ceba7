"""``kgtrace evaluate``: one run of it, and what it says, writes and draws."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kgtrace_indexer import read_training_folder
from kgtrace_server.cli import evaluation, parser as cli, plots

TRAINING, TEST = 120, 4


@pytest.fixture(scope="module")
def arguments(umls_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A call on few triples: the model's own id maps, and files of labels."""
    folder = tmp_path_factory.mktemp("evaluate")
    vocabulary, table = read_training_folder(umls_folder / "training_triples")
    for name, ids in (("train.tsv", table.ids[:TRAINING]), ("test.tsv", table.ids[TRAINING : 3 * TRAINING])):
        lines = [
            f"{vocabulary.entities[head]}\t{vocabulary.relations[relation]}\t{vocabulary.entities[tail]}\n"
            for head, relation, tail in ids
        ]
        (folder / name).write_text("".join(lines))
    files = ["--train", str(folder / "train.tsv"), "--test", str(folder / "test.tsv")]
    return ["evaluate", "--model", str(umls_folder), *files, "--max-test-triples", str(TEST), "--device", "cpu"]


@pytest.fixture(scope="module")
def run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str, list[str]]:
    """Where it wrote, the document, standard output, and what was left beside the output."""
    folder = tmp_path_factory.mktemp("out")
    output = folder / "found.json"
    with pytest.MonkeyPatch.context() as patch, (folder / "stdout").open("w+") as stdout:
        patch.setattr("kgtrace_indexer.evaluation.configurations.RATES", (0.5, 1.0))
        patch.setattr("kgtrace_indexer.evaluation.configurations.DIMENSIONS", (8, 16))
        patch.setattr(sys, "stdout", stdout)
        code = cli.main([*arguments, "--top-k", "3", "--output", str(output), "--plots", str(folder / "plots")])
        stdout.seek(0)
        text = stdout.read()
    assert code == 0
    left = sorted(path.name for path in folder.iterdir())
    return folder, json.loads(output.read_text()), text, left


def test_the_document_says_what_was_measured_and_of_what(run: Any) -> None:
    """Every group of configurations, the index with its certificate, the plain loop; and no work folder is left."""
    _, content, _, left = run
    assert left == ["found.json", "plots", "stdout"]
    assert (content["training_triples"], content["test_triples"], content["top_k"]) == (TRAINING, TEST, 3)
    assert {found["group"] for found in content["configurations"]} == {"preset", "dimension", "sample rate", "layers"}
    assert content["index"]["overlap"] == 1
    assert content["index"]["certified"] == TEST
    loop = content["plain_loop"]
    assert loop["seconds_a_query"] == pytest.approx(loop["seconds_a_triple"] * TRAINING)
    for found in content["configurations"]:
        assert found["times_faster"] == pytest.approx(loop["seconds_a_query"] / found["seconds_a_query"])
        assert 0 <= found["overlap"] <= 1


def test_the_table_has_a_line_for_each_configuration(run: Any) -> None:
    """With the numbers of the document, and notes on how they came about."""
    _, content, text, _ = run
    _, blank, _, loop, index, *lines = text.splitlines()
    assert blank == ""
    assert loop.startswith("plain loop ")
    assert index.startswith("kgtrace index ")
    for found, line in zip(content["configurations"], lines, strict=False):
        assert line[len("kgtrace index") :].strip().startswith(found["name"])
        assert [f"{found[name]:.2f}" for name in ("overlap", "pearson", "spearman")] == line.split()[-5:-2]
    assert lines[len(content["configurations"])] == ""
    assert f"certified {TEST} of {TEST}" in text
    assert "plain loop: a forward and a backward pass for each training triple" in text
    assert text == evaluation.table(content) + "".join(f"{path}\n" for path in sorted((run[0] / "plots").glob("*.png")))


def test_without_a_plain_loop_speeds_stand_alone(run: Any, tmp_path: Path) -> None:
    """A model that PyKEEN cannot run has seconds, and queries a second, and no ratio."""
    content = {
        **run[1],
        "plain_loop": None,
        "index": {**run[1]["index"], "times_faster": None},
        "configurations": [{**found, "times_faster": None} for found in run[1]["configurations"]],
    }
    text = evaluation.table(content)
    assert not [line for line in text.splitlines() if line.startswith("plain loop  ")]
    assert "plain loop: not run" in text
    plots.write(content, tmp_path)
    assert "queries a second" in (tmp_path / "accuracy-speed.svg").read_text()


def test_pictures_name_what_they_show(run: Any) -> None:
    """As PNG, and as SVG whose text is text."""
    folder, content, _, _ = run
    for name in ("accuracy-speed", "overlap-dimension", "overlap-sample-rate"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        svg = ElementTree.parse(folder / "plots" / f"{name}.svg")
        shown = " ".join(" ".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text"))
        assert f"{TEST} of {TEST} certified exact" in shown
        assert f"{TRAINING} training triples" in shown
        if name == "accuracy-speed":
            for found in content["configurations"]:
                assert found["name"] in shown or found["group"] not in ("preset", "layers")


def test_the_same_document_gives_the_same_pictures(run: Any, tmp_path: Path) -> None:
    """Byte for byte, so that a picture changes in a repository only when what it shows does."""
    folder, content, _, _ = run
    for path in plots.write(content, tmp_path):
        assert path.read_bytes() == (folder / "plots" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--fresh"], "beside --output FILE"),
        (["--max-test-triples", "0"], "'0' is not an integer of at least 1"),
        (["--learning-rates", "0.1"], "give them too"),
    ],
)
def test_wrong_calls_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(SystemExit) as raised:
        cli.main([*arguments, *more])
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


def test_outputs_that_cannot_be_written_are_told_at_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another ending than .json; plots into a file; plots without matplotlib, whose extra is named."""
    assert cli.main([*arguments, "--output", str(tmp_path / "found.csv")]) == 1
    assert "ends in '.csv', must end in .json\n" in capsys.readouterr().err
    taken = tmp_path / "plots"
    taken.touch()
    assert cli.main([*arguments, "--plots", str(taken)]) == 1
    assert f"cannot write {taken}: File exists" in capsys.readouterr().err
    taken.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main([*arguments, "--plots", str(tmp_path)]) == 1
    assert "pip install 'kgtrace[plots]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_kept_until_all_is_drawn(
    run: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that cannot be drawn cost no second measurement."""
    work = tmp_path / "found.json.partial"

    def measure(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir(exist_ok=True)

    monkeypatch.setattr("kgtrace_indexer.evaluation.evaluate", measure)
    monkeypatch.setattr(evaluation, "document", lambda *_, **__: run[1])
    call = [*arguments, "--output", str(tmp_path / "found.json"), "--plots", str(tmp_path / "plots")]
    (tmp_path / "plots" / "accuracy-speed.png").mkdir(parents=True)
    assert cli.main(call) == 1
    assert work.is_dir()
    (tmp_path / "plots" / "accuracy-speed.png").rmdir()
    assert cli.main(call) == 0
    assert not work.exists()
