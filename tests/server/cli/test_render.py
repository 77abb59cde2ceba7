"""Answers as text and files."""

import csv
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from kgtrace_server.cli import render
from kgtrace_server.schema.answer import from_json, to_json
from kgtrace_server.schema.answers import Explanation, Influences
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest, MissingExtra


@pytest.fixture
def answer(service: Service) -> Influences:
    return service.influences(
        InfluenceRequest.of(triples=[("aspirin", "treats", "headache"), ("fever", "2", "7")], top_k=3)
    )


def test_tables_are_aligned(answer: Influences) -> None:
    """Names where there are, numbers to the right, one row an influence."""
    text = render.influences(answer)
    first, second = text.split("\n\n")
    lines = first.splitlines()
    assert lines[0] == "Aspirin®  treats  headache"
    assert "certified" in lines[1]
    assert len(lines) == 2 + 1 + 3
    column = lines[2].index("head ")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines[3:])
    assert lines[3].split()[:4] == ["1", "1", "0.1", "1"]
    assert second.startswith("fever  2  7\n")


@pytest.mark.parametrize(("rank", "shown"), [(2, "rank 2, "), (7.5, "rank 7.5, ")])
def test_ranks_are_whole_unless_scores_tie(service: Service, attributor: Any, rank: float, shown: str) -> None:
    """2 and not 2.0, as JSON and as text."""
    asked, query = InfluenceRequest.of(triples=[(0, 0, 0)]), attributor.query

    def ranked(*triples: Any, **options: Any) -> Any:
        answer = query(*triples, **options)
        return replace(answer, attributions=[replace(one, rank=float(rank)) for one in answer.attributions])

    attributor.query = ranked
    answer = service.influences(asked)
    assert shown in render.influences(answer)
    assert f'"rank": {rank},' in to_json(answer, indent=2).decode()


def test_uncertified_and_empty_answers_say_so(service: Service) -> None:
    """A reader cannot take a cut-short answer for a proved one."""
    assert "not certified" in render.influences(
        service.influences(InfluenceRequest.of(triples=[(0, 0, 0)], max_candidates=0))
    )
    nothing = InfluenceRequest.of(triples=[(0, 0, 0)], must={"head": ["Zürich"]})
    assert "no training triple may be named" in render.influences(service.influences(nothing))


def test_notes_are_shown(answer: Influences) -> None:
    """Each in a line below the test triple."""
    assert "note:" not in render.influences(answer)
    first, *others = answer.results
    answer = replace(answer, results=(replace(first, notes=("first", "second")), *others))
    assert render.influences(answer).splitlines()[2:4] == ["  note: first", "  note: second"]


def written(ending: str, answers: list[Influences], test_indices: list[int]) -> bytes:
    sink = io.BytesIO()
    count = render.write_influences(sink, ending, answers, np.array(test_indices))
    assert count == sum(len(result.influences) for answer in answers for result in answer.results)
    return sink.getvalue()


def test_json_files_hold_the_answer(answer: Influences) -> None:
    """The same object as over HTTP, as if it had been written in one go; labels stay readable."""
    content = written(".json", [answer], [0, 1])
    assert content == to_json(answer, indent=2) + b"\n"
    assert "Aspirin®" in content.decode()
    twice = from_json(Influences, written(".json", [answer, answer], [0, 1, 2, 3]))
    assert twice.results == answer.results * 2
    assert asdict(twice.seconds) == {stage: spent * 2 for stage, spent in asdict(answer.seconds).items()}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tabular_files_hold_a_row_for_each_influence(answer: Influences, ending: str) -> None:
    """Ids, labels, names and numbers, in the order of the answer."""
    content = written(ending, [answer], [4, 9])
    if ending == ".csv":
        rows = list(csv.DictReader(io.StringIO(content.decode())))
    else:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        rows = [{name: "" if value is None else str(value) for name, value in row.items()} for row in table.to_pylist()]
    assert [*rows[0]] == list(Influences.COLUMNS)
    assert [(row["test_index"], row["position"]) for row in rows] == [(t, p) for t in "49" for p in "123"]
    assert rows[0] == {
        "test_index": "4",
        "test_head": "0",
        "test_head_label": "aspirin",
        "test_head_name": "Aspirin®",
        "test_relation": "0",
        "test_relation_label": "treats",
        "test_relation_name": "",
        "test_tail": "2",
        "test_tail_label": "headache",
        "test_tail_name": "",
        "certified": "True",
        "position": "1",
        "train_index": "100",
        "train_head": "0",
        "train_head_label": "aspirin",
        "train_head_name": "Aspirin®",
        "train_relation": "0",
        "train_relation_label": "treats",
        "train_relation_name": "",
        "train_tail": "0",
        "train_tail_label": "aspirin",
        "train_tail_name": "Aspirin®",
        "influence": "1.0",
        "cosine": "1.0",
        "tracin": "1.0",
        "preconditioned": "0.1",
        "reason": "same-head-relation",
        "because": "has the same head and relation, and the tail Aspirin®",
    }


def test_lines_hold_one_explanation_each(answer: Influences) -> None:
    """With the generation, the score that ranks and the row of the test triple; everything else is as in JSON."""
    lines = written(".jsonl", [answer, answer], [4, 9, 11, 12]).splitlines()
    assert [json.loads(line)["test_index"] for line in lines] == [4, 9, 11, 12]
    for line, result in zip(lines, answer.results * 2, strict=True):
        content = json.loads(line)
        assert {name: content[name] for name in ("generation", "ranked_by", "outcome")} == answer.origin
        assert from_json(Explanation, line) == result


def test_empty_answers_have_the_same_columns(service: Service) -> None:
    """A program that reads the file need not care."""
    nothing = service.influences(InfluenceRequest.of(triples=[(0, 0, 0)], must={"head": ["Zürich"]}))
    table = pyarrow.parquet.read_table(io.BytesIO(written(".parquet", [nothing], [0])))
    assert table.num_rows == 0
    assert table.column_names == list(Influences.COLUMNS)


def test_unusable_outputs_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another ending, a folder, a missing folder, a missing library."""
    with pytest.raises(BadRequest, match=r"ends in '\.txt', must end in \.json or \.csv or \.parquet"):
        render.check_format(tmp_path / "out.txt")
    with pytest.raises(BadRequest, match=r"ends in '\.csv', must end in \.json$"):
        render.check_format(tmp_path / "out.csv", (".json",))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BadRequest, match=r"folder\.json is a folder: name a file"):
        render.check_format(tmp_path / "folder.json")
    with pytest.raises(BadRequest, match="there is no folder"):
        render.check_format(tmp_path / "missing" / "out.json")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"kgtrace\[parquet\]"):
        render.check_format(tmp_path / "out.parquet")
