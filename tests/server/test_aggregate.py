"""Influence summed by relation, head or tail, or of each training triple: labels in, labelled sums out."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from kgtrace_indexer import open_index
from kgtrace_server import Client as HttpClient, LocalClient
from kgtrace_server.cli import main
from kgtrace_server.http.app import create_app
from kgtrace_server.schema import examples
from kgtrace_server.schema.answer import to_json
from kgtrace_server.schema.answers import Aggregate
from kgtrace_server.schema.fields import FIELDS, MAX_TRIPLES
from kgtrace_server.schema.questions import AggregateRequest
from kgtrace_server.service import Service
from tests.server.conftest import GENERATION, Client, assert_documented, patient

Check = Callable[..., dict[str, Any]]
PATH = "/v1/aggregate"
TRIPLE = ["aspirin", "treats", "headache"]


@pytest.mark.parametrize("by", ["relation", "head", "tail"])
def test_sums_are_answered_as_documented(client: Client, attributor: Any, by: str) -> None:
    """Each group's count and sums are those of its training triples, and all of them make up the total."""
    body = client.post(PATH, {"triple": TRIPLE, "by": by, "exact": True}).json()
    assert_documented(Aggregate, body)
    assert (body["generation"], body["by"], body["exact"], body["certified"]) == (GENERATION, by, True, True)
    assert body["triple"]["head"]["label"] == "aspirin"
    column = attributor.triples[:, ("head", "relation", "tail").index(by)]
    for group in body["groups"]:
        influence = attributor.influence[column == group["group"]["id"]].astype(np.float64)
        assert group["count"] == len(influence)
        assert group["sum"] == pytest.approx(influence.sum())
        assert group["positive"] == pytest.approx(influence.clip(0).sum())
        assert group["negative"] == pytest.approx(influence.clip(max=0).sum())
        assert group["error"] == 0
    for part in ("count", "sum", "positive", "negative"):
        assert body["total"][part] == pytest.approx(sum(group[part] for group in body["groups"]))
    sums = [group["sum"] for group in body["groups"]]
    assert sums == sorted(sums, reverse=True)


def test_estimates_say_how_far_they_may_be_off(client: Client) -> None:
    """What is not exact has an error, and a ranking that the errors leave open is not certified."""
    body = client.post(PATH, {"triple": TRIPLE, "by": "relation"}).json()
    assert body["exact"] is False
    assert body["certified"] is False
    assert [group["error"] for group in body["groups"]] == [group["count"] / 4 for group in body["groups"]]


def test_every_option_reaches_the_attributor(make_client: Callable[..., Client], attributor: Any) -> None:
    """Order, number, filter and neighbourhood change the answer."""
    body = {
        "triple": {"head": 0, "relation": "treats", "tail": 2},
        "by": "head",
        "top_k": 2,
        "order": "opponents",
        "exact": True,
        "filter": {"must": {"relation": ["treats"]}, "must_not": {"head": ["aspirin"]}},
        "within_hops": 3,
        "direction": "tail",
    }
    answer = make_client().post(PATH, body).json()
    sums = [group["sum"] for group in answer["groups"]]
    assert sums == sorted(sums)
    assert len(sums) == 2
    assert (
        answer["total"]["count"]
        == ((attributor.triples[:, 1] == 0) & (attributor.triples[:, 0] != 0).astype(bool)).sum()
    )
    assert attributor.calls[-1]["within_hops"] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"by": "entity"}, "by"),
        ({"by": None}, "by"),
        ({"triple": ["asprin", "treats", "headache"]}, "'aspirin'"),
        ({"triple": [0, 0]}, "has 2 items"),
        ({"triple": [0, 0, 99]}, "out of range"),
        ({"top_k": 0}, "top_k"),
        ({"within_hops": 0}, "within_hops"),
        ({"within_hops": 17}, "16"),
        ({"direction": "head"}, "no inverse relations"),
        ({"filter": {"must": {"head": ["nobody"]}}}, "'nobody'"),
        ({"order": "best"}, "order"),
        ({"max_candidates": 3}, "unknown field"),
        ({"triples": [TRIPLE]}, "exactly one of triple and triples"),
        ({"triple": None}, "exactly one of triple and triples"),
        ({"triple": None, "triples": []}, "triples"),
        ({"triple": None, "triples": [TRIPLE] * 257}, "256"),
        ({"triple": None, "triples": [TRIPLE, ["asprin", "treats", "headache"]]}, "'aspirin'"),
    ],
)
def test_wrong_questions_are_unprocessable(
    client: Client, assert_problem: Check, change: dict[str, Any], words: str
) -> None:
    """422 that says what to change."""
    assert_problem(client.post(PATH, {"triple": TRIPLE, "by": "relation", **change}), 422, words)


def test_estimates_of_a_real_index_hold_the_exact_sums(umls_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exact sum lies within the error of its estimate; an index without bounds always computes the exact ones."""
    attributor = open_index(umls_index, device="cpu")
    service = Service(attributor)
    exact = service.aggregate(AggregateRequest.of(triples=[(3, 5, 9)], by="relation", top_k=100, exact=True))
    estimated = service.aggregate(AggregateRequest.of(triples=[(3, 5, 9)], by="relation", top_k=100))
    assert exact.exact
    assert exact.certified
    assert not estimated.exact
    estimates = {group.group: group for group in estimated.groups}
    assert len(estimates) == len(exact.groups)
    for group in exact.groups:
        estimate = estimates[group.group]
        assert estimate.count == group.count
        for part in ("sum", "positive", "negative"):
            assert abs(getattr(estimate, part) - getattr(group, part)) <= estimate.error
    monkeypatch.setattr(attributor, "_retrievals", {})
    assert service.aggregate(AggregateRequest.of(triples=[(3, 5, 9)], by="relation", top_k=100)) == exact


def test_one_triple_can_be_asked_about_in_the_address(client: Client) -> None:
    """A GET answers what the same POST does; everything in an address is text."""
    head, relation, tail = TRIPLE
    options = {"by": "tail", "top_k": 3, "order": "absolute", "exact": True, "within_hops": 2, "direction": "tail"}
    asked = {"head": head, "relation": relation, "tail": tail, **options}
    assert client.get(PATH, params=asked).json() == client.post(PATH, {"triple": TRIPLE, **options}).json()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"by": "entity"}, "by"), ({"by": None}, "by"), ({"tail": "headach"}, "'headache'"), ({"x": "1"}, "x: unknown")],
)
def test_wrong_parameters_are_named(client: Client, assert_problem: Check, change: dict[str, Any], words: str) -> None:
    """422, and which one."""
    asked = {"head": "aspirin", "relation": "treats", "tail": "headache", "by": "relation", **change}
    assert_problem(client.get(PATH, params={k: v for k, v in asked.items() if v is not None}), 422, words)


# Over several test triples.

SEVERAL = [TRIPLE, ["fever", "2", "7"], [0, 0, 3]]


@pytest.mark.parametrize("by", ["relation", "triple"])
def test_influences_on_several_test_triples_are_summed(client: Client, attributor: Any, by: str) -> None:
    """Three test triples have three times the sums of one; by triple each group is a training triple with its row."""
    body = client.post(PATH, {"triples": SEVERAL, "by": by, "exact": True, "top_k": 4}).json()
    assert_documented(Aggregate, body)
    assert (body["triple"], body["test_triples"]) == (None, 3)
    assert body["total"]["sum"] == pytest.approx(3 * attributor.influence.sum())
    one = client.post(PATH, {"triples": [TRIPLE], "by": by, "exact": True, "top_k": 4}).json()
    assert one == client.post(PATH, {"triple": TRIPLE, "by": by, "exact": True, "top_k": 4}).json()
    assert one["triple"]["head"]["label"] == "aspirin"
    for many, alone in zip(body["groups"], one["groups"], strict=True):
        assert (many["group"], many["train_index"]) == (alone["group"], alone["train_index"])
        assert many["sum"] == pytest.approx(3 * alone["sum"])
        if by == "triple":
            row = many["train_index"] - 100
            assert [many["group"][field]["id"] for field in FIELDS] == attributor.triples[row].tolist()
            assert alone["sum"] == pytest.approx(attributor.influence[row])


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (("a", "r", "b"), {"triple": ["a", "r", "b"]}),
        ([1, 2, 3], {"triple": [1, 2, 3]}),
        ([("a", "r", 3)], {"triples": [["a", "r", 3]]}),
        ((["a", "r", "b"], [1, 2, 3]), {"triples": [["a", "r", "b"], [1, 2, 3]]}),
        ([], {"triples": []}),
    ],
)
def test_clients_tell_one_triple_from_several(asked: Any, sent: dict[str, Any]) -> None:
    """By what the first item is; what is neither is left to the service to refuse."""
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, content=to_json(examples.AGGREGATE))

    with HttpClient("http://kgtrace.test", transport=httpx.MockTransport(answer)) as client:
        assert client.aggregate(asked, "relation").test_triples == 1
    assert {name: bodies[0][name] for name in ("triple", "triples") if name in bodies[0]} == sent


@pytest.mark.parametrize("by", ["head", "triple"])
def test_clients_and_files_hold_the_same_sums(
    umls_index: Path, tmp_path: Path, by: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """HTTP, the client in process and the command line agree; it takes a file of more test triples than a request."""
    attributor = open_index(umls_index, device="cpu")
    ids = np.asarray(attributor.training.triples[::18], np.int64)
    assert len(ids) > MAX_TRIPLES
    few = ids[:5].tolist()
    over_http = Client(create_app(Service(attributor), patient()))
    answer = over_http.post(PATH, {"triples": few, "by": by, "top_k": 3, "score": "preconditioned"}).json()
    local = LocalClient(umls_index, device="cpu").aggregate(few, by, top_k=3, score="preconditioned")
    assert [found.influence.sum for found in local.groups] == [found["sum"] for found in answer["groups"]]
    assert (local.test_triples, local.triple, len(local.to_dataframe())) == (5, None, 3)
    assert list(local.to_dataframe().columns) == list(local.columns)

    names = attributor.vocabulary
    lines = ["\t".join((names.entities[h], names.relations[r], names.entities[t])) for h, r, t in ids.tolist()]
    (file := tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    asked = ["query", "--index", str(umls_index), "--test", str(file), "--aggregate", by, "--top-k", "3", "--exact"]
    assert main([*asked, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["test_triples"] == len(ids)
    truth = attributor.exact_influences(ids, np.arange(len(attributor))).sum(1, dtype=np.float64)
    if by == "head":
        truth = np.bincount(attributor.training.triples[:, 0], truth)
    np.testing.assert_allclose([found["sum"] for found in whole["groups"]], np.sort(truth)[::-1][:3], rtol=1e-3)
    for ending in (".json", ".csv", ".parquet"):
        output = tmp_path / f"sums{ending}"
        assert main([*asked, "--output", str(output)]) == 0
        assert f"{output}: 3 sums over {len(ids)} test triples" in capsys.readouterr().out
    assert json.loads((tmp_path / "sums.json").read_text()) == whole
    with (tmp_path / "sums.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [float(row["sum"]) for row in rows] == [found["sum"] for found in whole["groups"]]
    table = pyarrow.parquet.read_table(tmp_path / "sums.parquet").to_pylist()
    key = "train_index" if by == "triple" else "group"
    assert [str(row[key]) for row in table] == [row[key] for row in rows]
    assert main(asked) == 0
    page = capsys.readouterr().out.splitlines()
    assert page[0] == f"{len(ids)} test triples"
    assert "exact; order certified" in page[1]
    assert len(page) == 2 + 1 + 3


@pytest.mark.parametrize("options", [["--max-candidates", "3"], ["--fresh", "--output", "x.json"]])
def test_sums_are_not_cut_short(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    """Options of single answers are refused as wrong calls."""
    with pytest.raises(SystemExit) as exit_:
        main(["query", "--index", "x", "--triple", "0", "0", "0", "--aggregate", "head", *options])
    assert exit_.value.code == 2
    assert "leave --max-candidates and --fresh out" in capsys.readouterr().err
