"""A model without inverse relations, PyKEEN's default: heads are predicted, ranked and explained at every door."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index, read_model
from kgtrace_server import LocalClient
from kgtrace_server.cli import main
from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_store import Vocabulary
from tests.server.conftest import Client, patient

TRIPLE = (3, 5, 9)


@pytest.fixture(scope="module")
def original() -> Any:
    """DistMult as PyKEEN makes it, without inverse relations."""
    from pykeen.datasets import Nations
    from pykeen.models import DistMult

    return DistMult(triples_factory=Nations().training, embedding_dim=8, random_seed=0).eval()


@pytest.fixture(scope="module")
def source(original: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFile, Vocabulary, TripleTable]:
    """What `build` needs of it."""
    from pykeen.datasets import Nations

    torch.save(original, (folder := tmp_path_factory.mktemp("plain")) / "trained_model.pkl")
    training = Nations().training
    ids = training.mapped_triples.numpy()[::10]
    vocabulary = Vocabulary(tuple(training.entity_to_id), tuple(training.relation_to_id), {}, {})
    return read_model(folder), vocabulary, TripleTable(ids, np.arange(len(ids)), 0)


@pytest.fixture(scope="module")
def index(source: tuple[ModelFile, Vocabulary, TripleTable], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its index."""
    root = tmp_path_factory.mktemp("index")
    build(root, *source, BuildConfig(dim=8, landmarks=40))
    return root


def test_heads_at_every_door(index: Path, original: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions are PyKEEN's; the command line, HTTP and the client in process explain them alike, and certified."""
    _, relation, tail = TRIPLE
    wanted = original.predict_h(torch.tensor([[relation, tail]]))[0].sort(descending=True)
    service = Client(create_app(Service(open_index(index, device="cpu")), patient()))  # type: ignore[arg-type]
    asked = {"relation": relation, "tail": tail, "top_k": 14}
    predicted = service.post("/v1/predictions", asked).json()
    assert predicted == service.get("/v1/predictions", params=asked).json()
    assert [one["entity"]["id"] for one in predicted["predictions"]] == wanted.indices.tolist()
    np.testing.assert_allclose([one["score"] for one in predicted["predictions"]], wanted.values.detach(), rtol=1e-5)
    local = LocalClient(index, device="cpu")
    assert [one.entity.id for one in local.predictions(**asked).predictions] == wanted.indices.tolist()
    body = {"triples": [TRIPLE], "direction": "head"}
    (explained,) = service.post("/v1/influences", body).json()["results"]
    assert main(["query", "--index", str(index), "--triple", *map(str, TRIPLE), "--direction", "head", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == [explained]
    (in_process,) = local.influences([TRIPLE], direction="head", exact=True).results
    assert explained["certified"]
    assert [one["train_index"] for one in explained["influences"]] == [one.train_index for one in in_process.influences]
    (rank,) = (one["rank"] for one in predicted["predictions"] if one["entity"]["id"] == TRIPLE[0])
    assert explained["rank"] == rank == in_process.rank
    summed = service.post("/v1/aggregate", {"triple": TRIPLE, "by": "head", "direction": "head"}).json()
    assert summed["triple"] == explained["triple"]


def test_a_loss_of_tails_has_no_heads(
    source: tuple[ModelFile, Vocabulary, TripleTable],
    tmp_path: Path,
    assert_problem: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An index under such a loss predicts heads, but refuses to explain them, and says what to do."""
    build(tmp_path, *source, BuildConfig(loss="ce-1vsall", dim=8, landmarks=40))
    service = Client(create_app(Service(open_index(tmp_path, device="cpu")), patient()))  # type: ignore[arg-type]
    assert len(service.post("/v1/predictions", {"relation": 5, "tail": 9}).json()["predictions"]) == 10
    response = service.post("/v1/influences", {"triples": [TRIPLE], "direction": "head"})
    assert_problem(response, 422, "build the index with another loss")
    assert main(["query", "--index", str(tmp_path), "--triple", *map(str, TRIPLE), "--direction", "head"]) == 1
    assert "ask for direction 'tail'" in capsys.readouterr().err
