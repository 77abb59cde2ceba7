"""Milvus searches instead of FAISS, from the command line to the service; answers are the same."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient

from kgtrace_indexer import BuildConfig, ModelFile, Restriction, TripleTable, build, open_index
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_server.cli import main
from kgtrace_server.http import serving
from kgtrace_server.http.app import create_app
from kgtrace_store import IndexRoot, Vocabulary, milvus as store
from kgtrace_store.errors import SearchUnavailable
from kgtrace_store.milvus import ALIAS, Milvus, MilvusSearch
from tests.indexer.models.zoo import Save, factory, nations, save
from tests.milvus_server import milvus_server
from tests.server.conftest import Client, patient

__all__ = ["nations", "save"]  # fixtures

Umls = tuple[ModelFile, Vocabulary, TripleTable]
COUNT = 2000
CONFIG = BuildConfig(dim=8, landmarks=128, precondition="none")  # only its gate is faster so
SCORES = ("tracin", "preconditioned")
ORDERS = ("proponents", "opponents", "absolute")
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server."""
    with milvus_server(tmp_path_factory.mktemp("milvus")) as uri:
        yield uri


@pytest.fixture(scope="module", params=[None, 700], ids=["whole", "in shards"])
def root(request: pytest.FixtureRequest, umls: Umls, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index root."""
    model, vocabulary, table = umls
    root = tmp_path_factory.mktemp("index")
    some = TripleTable(table.ids[:COUNT], table.train_index[:COUNT], 0)
    build(root, model, vocabulary, some, replace(CONFIG, shard_size=request.param))
    return root


@pytest.fixture(scope="module")
def attributors(root: Path, uri: str) -> tuple[Attributor, Attributor]:
    """The same generation, searched by FAISS and by Milvus."""
    return open_index(root, device="cpu"), open_index(root, device="cpu", milvus=Milvus(uri))


def check(attributors: tuple[Attributor, Attributor], queries: np.ndarray, **options: Any) -> None:
    """Compare answers: all certified, whole, filtered by the engine, and where only we can filter."""
    triples = attributors[0].training.triples
    relations = {int(r) for r in triples[:4, 1]}
    for restriction in (
        Restriction(),
        Restriction(must={"relation": relations}, must_not={"head": {int(triples[0, 0])}}),
        Restriction(must={"relation": relations}, within_hops=1),
        Restriction(must={"relation": set()}),
    ):
        faiss, milvus = (
            each.query(queries, top_k=12, restriction=restriction, **options).attributions for each in attributors
        )
        for a, b in zip(faiss, milvus, strict=True):
            assert a.certified
            assert b.certified
            np.testing.assert_array_equal(a.train_index, b.train_index)
            np.testing.assert_allclose(a.influence, b.influence, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("order", ORDERS)
def test_answers_are_those_of_faiss(
    umls: Umls, attributors: tuple[Attributor, Attributor], order: str, score: str
) -> None:
    """By either score, for several test triples at once."""
    check(attributors, umls[2].ids[-6:].astype(np.int64), order=order, score=score)


@pytest.mark.parametrize("most", [16_384, 5])
def test_models_without_dense_layers(
    save: Save, nations: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Lists of two checkpoints, in shards, of heads as well; with more entries than Milvus returns at a time."""
    monkeypatch.setattr(store, "_MOST", most)
    model = save("ComplEx", True).model
    model = replace(model, checkpoints=((0.5, save("ComplEx", True, trained=True).model), (2.0, model)))
    build(tmp_path, model, *nations, BuildConfig(dim=8, landmarks=40, shard_size=25))
    attributors = open_index(tmp_path, device="cpu"), open_index(tmp_path, device="cpu", milvus=Milvus(uri))
    queries = factory(False).mapped_triples.numpy()[[0, 400, 900]]
    for score, order, direction in zip((*SCORES, SCORES[1]), ORDERS, ("tail", "head", "head"), strict=True):
        check(attributors, queries, order=order, direction=direction, score=score)


@pytest.mark.parametrize("options", [{"projection": "gaussian"}, {"loss": "ce-1vsall"}], ids=str)
def test_an_index_without_lists(save: Save, nations: Any, uri: str, tmp_path: Path, options: dict[str, str]) -> None:
    """It has one collection, and is searched there."""
    config = BuildConfig(dim=8, landmarks=40, precondition="none", **options)
    generation = build(tmp_path, save("ComplEx", False).model, *nations, config).generation
    attributors = open_index(tmp_path, device="cpu"), open_index(tmp_path, device="cpu", milvus=Milvus(uri))
    name = f"kgtrace_{generation.replace('-', '_')}"
    assert [each for each in MilvusClient(uri=uri).list_collections() if each.startswith(name)] == [name]
    queries = factory(False).mapped_triples.numpy()[[0, 400]]
    faiss, milvus = (each.query(queries, top_k=5).attributions for each in attributors)
    for a, b in zip(faiss, milvus, strict=True):
        assert a.certified == b.certified
        np.testing.assert_array_equal(a.train_index, b.train_index)


@pytest.mark.parametrize("score", SCORES)
def test_a_filter_reaches_the_engine(
    umls: Umls, attributors: tuple[Attributor, Attributor], monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    """It is asked with the condition, and for none but what meets it."""
    asked: list[str] = []
    search = Milvus.search
    monkeypatch.setattr(Milvus, "search", lambda *args: (asked.append(args[4]), search(*args))[1])
    head, relation, tail = umls[2].ids[0].tolist()
    restriction = Restriction(must={"relation": {relation}}, must_not={"tail": {1, 2}})
    attributors[1].query(umls[2].ids[:1].astype(np.int64), restriction=restriction, score=score)
    rows = (head, 2 * relation, tail)  # of relations every second one is inverse
    lists = {""} if score == "tracin" else {f"row == {row} and " for row in rows}
    assert set(asked) == {f"{each}relation in [{relation}] and tail not in [1, 2]" for each in lists}


def test_a_build_sends_a_generation_before_it_is_live(
    umls_folder: Path, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The alias names it then; a query finds it there; pruning removes it there, too."""
    milvus = ["--search", "milvus", "--milvus-uri", uri]
    small = ["--dim", "8", "--landmarks", "128", "--sample-rate", "0.2", "--device", "cpu", "--json", *milvus]
    command = ["build", "--model", str(umls_folder), "--index", str(tmp_path), *small]
    built = []
    for seed in ("0", "1"):
        assert main([*command, "--seed", seed]) == 0
        built.append(json.loads(capsys.readouterr().out)["generation"])
    names = [f"kgtrace_{generation.replace('-', '_')}" for generation in built]
    client = MilvusClient(uri=uri)
    assert set(names) <= set(client.list_collections())
    assert {name for name in client.list_collections() if name.startswith(names[0])} == {
        names[0], f"{names[0]}_rows_0", f"{names[0]}_rows_1",
    }  # fmt: skip
    assert client.describe_alias(ALIAS)["collection_name"] == names[1]
    query = ["query", "--index", str(tmp_path), "--triple", "0", "0", "1", "--device", "cpu", "--json"]
    assert main(query) == 0
    faiss = json.loads(capsys.readouterr().out)["results"]
    assert main([*query, *milvus]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == faiss
    assert main(["prune", "--index", str(tmp_path), "--keep", "1", *milvus]) == 0
    assert not [name for name in client.list_collections() if name.startswith(names[0])]
    assert client.has_collection(names[1])


def test_a_generation_that_cannot_be_sent_is_not_published(
    umls_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is there all the same, and the message says how to go on."""
    command = ["build", "--model", str(umls_folder), "--index", str(tmp_path), "--sample-rate", "0.1", "--dim", "8"]
    assert main([*command, "--search", "milvus", "--milvus-uri", NOWHERE]) == 1
    (generation,) = IndexRoot(tmp_path).generations()
    error = capsys.readouterr().err
    assert f"kgtrace: Milvus at {NOWHERE}: " in error
    assert f"generation {generation.id} is built, but not live: kgtrace publish {generation.id}" in error
    assert IndexRoot(tmp_path).current() is None


def test_wrong_calls_are_told(umls_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an address, and without anything to search."""
    command = ["build", "--model", str(umls_folder), "--index", str(tmp_path), "--search", "milvus"]
    for more, told in (
        ([], "search by milvus needs its address: give --milvus-uri URI or set KGTRACE_MILVUS_URI"),
        (["--milvus-uri", NOWHERE, "--projection", "none"], "--projection none leaves --search milvus nothing to"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *more])
        assert told in capsys.readouterr().err


def test_the_service_loads_generations_into_milvus(root: Path, uri: str) -> None:
    """What it loads is sent there if need be, and the alias follows; when Milvus fails, answers are 503."""
    settings = patient(index=root, device="cpu", search="milvus", milvus_uri=uri)
    live = IndexRoot(root).current()
    assert live is not None
    client = Client(create_app(serving.loader(settings)(live), settings))
    alias = MilvusClient(uri=uri).describe_alias(ALIAS)["collection_name"]
    assert alias == f"kgtrace_{live.replace('-', '_')}"
    asked: dict[str, Any] = {"triples": [{"head": 0, "relation": 0, "tail": 1}]}
    for score in SCORES:
        asked["score"] = score
        assert client.post("/v1/influences", asked).json()["results"][0]["certified"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MilvusSearch, "search", _gone)
            refused = client.post("/v1/influences", asked)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["type"].endswith("#search-unavailable")


def _gone(*_: object) -> None:
    raise SearchUnavailable("Milvus at http://somewhere: gone")
