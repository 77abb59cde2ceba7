"""Many test triples into one file: interrupted anywhere, it becomes the same file in the end."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from kgtrace_server import tables
from kgtrace_server.cli import bulk, parser as cli
from kgtrace_server.schema.answer import from_json
from kgtrace_server.schema.answers import Influences
from kgtrace_store import durable, locks
from tests.faults import Killed, interrupted
from tests.server.conftest import ENTITIES, RELATIONS

FORMATS = (".json", ".csv", ".parquet")


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    """150 test triples: three blocks."""
    path = tmp_path / "test.tsv"
    lines = [f"{ENTITIES[i % 7]}\t{RELATIONS[i % 3]}\t{ENTITIES[i * 5 % 7]}\n" for i in range(150)]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def ask(attributor: Any, test_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``kgtrace query`` on the test file."""
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
    monkeypatch.setattr(cli, "parser", cache(cli.parser))  # some tests call it hundreds of times

    def run(output: Path, *options: str) -> int:
        call = ["query", "--index", "x", "--test", str(test_file), "--top-k", "3", "--output", str(output)]
        return cli.main([*call, *options])

    return run


def partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


@pytest.mark.parametrize("ending", FORMATS)
def test_files_hold_every_block(ask: Any, attributor: Any, tmp_path: Path, ending: str) -> None:
    """In the order of the test triples, with labels and names in every row, and nothing is left beside the file."""
    output = tmp_path / f"out{ending}"
    assert ask(output) == 0
    assert [len(call["triples"]) for call in attributor.calls] == [64, 64, 22]
    assert not partial(output).exists()
    if ending == ".json":
        answer = json.loads(output.read_text())
        assert output.read_text() == json.dumps(answer, ensure_ascii=False, indent=2) + "\n"
        assert answer["seconds"]["search"] == pytest.approx(0.6)
        rows = list(from_json(Influences, output.read_bytes()).rows(range(150)))
    elif ending == ".parquet":
        rows = pyarrow.parquet.read_table(output).to_pylist()
    else:
        assert output.read_text().count("\n") == 1 + 450
        return
    assert [(row["test_index"], row["position"]) for row in rows] == [(i, p) for i in range(150) for p in (1, 2, 3)]
    assert {row["test_head_label"] for row in rows} == set(ENTITIES)
    assert {row["train_head_name"] for row in rows if row["train_head"] == 0} == {"Aspirin®"}


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        (".csv", "before"),
        (".csv", "half"),
        (".csv", "after"),
        (".csv", "fail"),
        (".json", "half"),
        (".parquet", "half"),
        (".jsonl", "half"),
        (".jsonld", "half"),
        (".graphml", "half"),
    ],
)
def test_whatever_is_interrupted_is_finished(ask: Any, attributor: Any, tmp_path: Path, ending: str, how: str) -> None:
    """Killed at any step, or out of space: the next run computes what is missing, and the file is the same."""
    whole, output = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    assert ask(whole) == 0
    at, done = 0, False
    while not done:
        with interrupted(at, how) as operations:
            try:
                done = ask(output) == 0 and len(operations) <= at
            except Killed:
                assert not output.exists() or output.read_bytes() == whole.read_bytes()
        attributor.calls.clear()
        finished = len(list(partial(output).glob("[0-9]*.json"))) if (partial(output) / "question.json").exists() else 0
        assert ask(output) == 0
        assert len(attributor.calls) == 3 - finished
        assert output.read_bytes() == whole.read_bytes()
        assert sorted(path.name for path in tmp_path.glob("out*")) == [output.name]
        output.unlink()
        at += 1
    assert at > 12


def test_finished_blocks_are_not_computed_again(
    ask: Any, attributor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails at its second block, however it was asked, leaves the first; progress goes on from there."""
    output = tmp_path / "out.csv"

    def fail() -> None:
        if len(attributor.calls) == 1:
            raise KeyboardInterrupt

    attributor.before_query = fail
    assert ask(output) == cli.INTERRUPTED
    assert sorted(path.name for path in partial(output).iterdir()) == ["000000.json", "lock", "question.json"]
    assert not output.exists()
    attributor.before_query = lambda: None
    attributor.calls.clear()
    capsys.readouterr()
    assert ask(output) == 0
    assert [len(call["triples"]) for call in attributor.calls] == [64, 22]
    captured = capsys.readouterr()
    assert captured.out == f"{output}: 450 influences on 150 test triples\n"
    assert captured.err.splitlines()[-1].startswith("query: 150 of 150 test triples (100 %)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-k", "4"], "top_k was 3, is 4"),
        (["--order", "absolute"], 'order was "proponents", is "absolute"'),
        (["--relation", "treats"], "must was {}"),
        (["--max-test-triples", "149"], "test triples was"),
        (["--within-hops", "1"], "within_hops was null, is 1"),
        (["--exact"], "exact was false, is true"),
        (["--precondition", "fisher"], 'score was null, is "preconditioned"'),
        (["--damping", "2"], "damping was null, is 2.0"),
        (["--damping", "auto"], 'damping was null, is "auto"'),
    ],
)
def test_another_question_is_refused_until_told_to_begin_anew(
    ask: Any, attributor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    """What is left of a run is neither mixed into another one's file nor thrown away unasked."""
    output = tmp_path / "out.csv"
    with interrupted(12, "before"), pytest.raises(Killed):
        ask(output)
    left = sorted(partial(output).glob("0*.json"))
    assert left
    assert ask(output, *options) == 1
    assert words in capsys.readouterr().err
    assert sorted(partial(output).glob("0*.json")) == left
    assert ask(output, *options, "--fresh") == 0
    expected = tmp_path / "expected.csv"
    assert ask(expected, *options) == 0
    assert output.read_bytes() == expected.read_bytes()


def test_another_generation_is_another_question(
    ask: Any, attributor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks of two nights' models do not make one answer."""
    output = tmp_path / "out.csv"
    with interrupted(12, "before"), pytest.raises(Killed):
        ask(output)
    shutil.move(partial(output) / "question.json", tmp_path / "question.json")
    question = json.loads((tmp_path / "question.json").read_text())
    (partial(output) / "question.json").write_text(json.dumps({**question, "generation": "20261122T020000Z-4d5e6f"}))
    assert ask(output) == 1
    assert 'generation was "20261122T020000Z-4d5e6f", is "20261123T020000Z-1a2b3c"' in capsys.readouterr().err


@pytest.mark.parametrize("name", ["question.json", "000000.json"])
def test_a_damaged_journal_is_refused(ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """It is named, and begun anew when told to."""
    output = tmp_path / "out.csv"
    with interrupted(12, "before"), pytest.raises(Killed):
        ask(output)
    (partial(output) / name).write_bytes(b"{")
    assert ask(output) == 1
    assert f"{name} cannot be read" in capsys.readouterr().err
    assert ask(output, "--fresh") == 0


def test_one_process_writes_a_file(ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second one is told so, and disturbs nothing."""
    output = tmp_path / "out.csv"
    durable.make_folder(partial(output))
    with locks.builder(partial(output) / "lock"):
        assert ask(output) == 1
    assert f"another process is writing {output}" in capsys.readouterr().err
    assert ask(output) == 0


def test_fresh_is_about_a_file(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one it is a wrong call."""
    with pytest.raises(SystemExit):
        cli.main(["query", "--index", "x", "--triple", "a", "b", "c", "--fresh"])
    assert "beside --output FILE" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [*FORMATS, ".jsonl", ".jsonld"])
def test_memory_does_not_grow_with_the_test_triples(
    ask: Any, attributor: Any, test_file: Path, tmp_path: Path, ending: str
) -> None:
    """Six times as many take hardly more."""
    line = test_file.read_text().splitlines(keepends=True)

    def peak(blocks: int) -> int:
        test_file.write_text("".join(line[:64] * blocks))
        tracemalloc.start()
        assert ask(tmp_path / f"out{blocks}{ending}", "--top-k", "5") == 0
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        attributor.calls.clear()
        return most

    peak(1)  # what is imported and cached once does not count
    assert peak(12) < 1.5 * peak(2)


def test_large_answers_come_in_small_blocks(service: Any) -> None:
    """The more influences a test triple has, the fewer are explained at a time."""

    for top_k, block in ((10, 64), (1024, 64), (2000, 32), (10**9, 1)):
        asked = bulk.Bulk(service, {"top_k": top_k}, np.zeros((130, 3), np.int64), np.arange(130))
        assert asked.block == block
        assert len(asked) == -(-130 // block)


def test_parquet_comes_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one size whatever the blocks', so that a reader needs no more memory than the writer."""
    monkeypatch.setattr(tables, "_ROW_GROUP", 10)
    rows = [{"number": i, "text": str(i)} for i in range(37)]
    for size in (1, 4, 37):
        with (tmp_path / "x.parquet").open("wb") as sink:
            blocks = [rows[start : start + size] for start in range(0, 37, size)]
            assert tables.write_parquet(sink, {"number": "integer", "text": "text"}, blocks) == 37
        written = pyarrow.parquet.ParquetFile(tmp_path / "x.parquet")
        groups = [written.metadata.row_group(i).num_rows for i in range(written.metadata.num_row_groups)]
        assert groups == [10, 10, 10, 7]
        assert written.read().to_pylist() == rows


def test_a_real_answer_is_the_same_after_a_kill(
    umls_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bit of every influence: blocks are computed in the same company as without the kill."""
    monkeypatch.setattr(bulk, "_BLOCK", 2)
    test = tmp_path / "test.tsv"
    test.write_text("head\trelation\ttail\n" + "".join(f"{i}\t{i % 9}\t{(7 * i) % 100}\n" for i in range(5)))
    call = ["query", "--index", str(umls_index), "--test", str(test), "--top-k", "5", "--device", "cpu", "--output"]
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert cli.main([*call, str(whole)]) == 0
    with interrupted(12, "before"), pytest.raises(Killed):
        cli.main([*call, str(output)])
    assert list(partial(output).glob("0*.json"))
    assert cli.main([*call, str(output)]) == 0
    assert output.read_bytes() == whole.read_bytes()
