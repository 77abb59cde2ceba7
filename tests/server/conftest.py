"""A small index in memory, and HTTP without a network."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from kgtrace_indexer.answers import Aggregation, Answer, Attribution, Completions, Restriction, Seconds
from kgtrace_indexer.index.neighbours import Neighbours, graph_of
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.names import Direction, Group, Order, Outcome, Score
from kgtrace_indexer.query.aggregate import GroupSums
from kgtrace_indexer.query.completions import complete
from kgtrace_indexer.query.reasons import Reasons
from kgtrace_server.http.app import create_app
from kgtrace_server.schema import answer
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import BadRequest, IdOutOfRange, MissingInverseRelations
from kgtrace_store.generations import IndexRoot
from kgtrace_store.manifest import Manifest
from kgtrace_store.vocabulary import Vocabulary
from tests.server.explainer import FakeExplainer
from tests.server.waiting import PATIENCE

ENTITIES = ("aspirin", "ibuprofen", "headache", "fever", "7", "Zürich", "a/b?c=d")
RELATIONS = ("treats", "located in", "2")
GENERATION = "20261123T020000Z-1a2b3c"


class FakeAttributor:
    """Influence 1/(1 + i) of training triple i, with alternating sign, a tenth preconditioned; score −e of entity e."""

    score: Score = "tracin"

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(ENTITIES, RELATIONS, {0: "Aspirin®"}, {})
        self.manifest = Manifest(
            generation=GENERATION,
            created_at=(datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds").replace("+00:00", "Z"),
            fingerprint="1a2b3c" * 10,
            configuration={"loss": "bce", "layers": ["all"], "dim": 64, "landmarks": 2048, "seed": 0},
            counts={"triples": 20, "entities": len(ENTITIES), "relations": len(RELATIONS)},
            files={},
            provenance={"interaction": "ConvE"},
        )
        grid = np.arange(20)
        self.triples = np.stack([grid % 5, grid % 3, (grid * 3) % 5], 1).astype(np.int32)
        self.influence = (1 / (1 + grid) * np.where(grid % 2, -1, 1)).astype(np.float32)
        norms, own = np.ones(20, np.float32), (grid % 7 / 2).astype(np.float32)
        self.training = TrainingSet(
            self.triples, grid + 100, {"tracin": norms}, {"tracin": own, "preconditioned": own[::-1]}, self.triples
        )
        self.reasons = Reasons(self.training, lambda: Neighbours(self.triples, graph_of(self.triples)))
        self.wanted: Callable[[], bool] = lambda: True
        self.before_query: Callable[[], None] = lambda: None
        self.calls: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.triples)

    def loss(self, score: Score) -> str:
        return {"tracin": "ce-1vsall", "preconditioned": "removal"}[score]

    def _influence(self, score: Score) -> np.ndarray:
        return self.influence / 10 if score == "preconditioned" else self.influence

    def query(
        self,
        triples: np.ndarray,
        *,
        top_k: int = 10,
        order: Order = "proponents",
        exact: bool = False,
        max_candidates: int | None = None,
        restriction: Restriction = Restriction(),  # noqa: B008
        direction: Direction = "tail",
        score: Score = "tracin",
        damping: float | None = None,
        outcome: Outcome = "logit",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        self.wanted = wanted
        self.before_query()
        asked = {"triples": triples, "exact": exact, "max_candidates": max_candidates}
        self.calls.append({**asked, "damping": damping, "outcome": outcome})
        if direction == "head":
            raise MissingInverseRelations("the model has no inverse relations: only tails can be explained")
        if top_k < 1:
            raise BadRequest(f"top_k is {top_k}")
        if (triples < 0).any():
            raise IdOutOfRange("negative id")
        influence = self._influence(score)
        allowed = np.ones(20, bool) if (mask := self.training.allowed(restriction)) is None else mask
        if restriction.within_hops == 1:
            allowed &= np.isin(self.triples[:, [0, 2]], triples[0, [0, 2]]).any(1)
        key = {"proponents": -influence, "opponents": influence, "absolute": -abs(influence)}[order]
        rows = np.argsort(key, kind="stable")
        rows = rows[allowed[rows]][:top_k]
        cut = max_candidates is not None and not exact
        attributions = [
            Attribution(
                triple=(int(h), int(r), int(t)),
                score=1.5,
                rank=1,
                in_training=False,
                loss=0.25,
                self_influence=2.0,
                certified=not cut,
                bound_gap=float("inf") if cut else 0.0,
                candidates=20,
                exact_terms=len(rows),
                train_index=rows.astype(np.int64) + 100,
                triples=self.triples[rows],
                influence=influence[rows],
                cosine=influence[rows],
                tracin=self._influence("tracin")[rows],
                preconditioned=self._influence("preconditioned")[rows],
                notes=self.notes,
            )
            for h, r, t in triples.tolist()
        ]
        return Answer(attributions, Seconds(0.1, 0.2, 0.3))

    def complete(
        self, triples: np.ndarray, *, top_k: int = 10, direction: Direction = "tail", filtered: bool = False
    ) -> list[Completions]:
        self.before_query()
        self.calls.append({"triples": triples, "top_k": top_k, "filtered": filtered})
        if direction == "head":
            raise MissingInverseRelations("the model has no inverse relations: only tails can be predicted")
        if top_k < 1:
            raise BadRequest(f"top_k is {top_k}")
        scores = -torch.arange(len(ENTITIES), dtype=torch.float32)
        known = [self.triples[(self.triples[:, :2] == triple[:2]).all(1), 2] for triple in triples]
        return [complete(t, 2, scores, k, top_k=top_k, filtered=filtered) for t, k in zip(triples, known, strict=True)]

    def aggregate(
        self,
        triples: np.ndarray,
        by: Group,
        *,
        top_k: int = 10,
        order: Order = "proponents",
        exact: bool = False,
        restriction: Restriction = Restriction(),  # noqa: B008
        direction: Direction = "tail",
        score: Score = "tracin",
        damping: float | None = None,
        outcome: Outcome = "logit",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Aggregation:
        self.wanted = wanted
        self.before_query()
        asked = {"triples": triples, "exact": exact, "within_hops": restriction.within_hops}
        self.calls.append({**asked, "damping": damping, "outcome": outcome})
        if direction == "head":
            raise MissingInverseRelations("the model has no inverse relations: only tails can be explained")
        if top_k < 1:
            raise BadRequest(f"top_k is {top_k}")
        mask = self.training.allowed(restriction)
        rows = np.arange(20) if mask is None else np.flatnonzero(mask)
        groups = rows if by == "triple" else self.triples[rows, ("head", "relation", "tail").index(by)].astype(np.int64)
        sums = GroupSums(max(len(ENTITIES), 20))
        slack = torch.zeros(len(rows)) if exact else torch.full((len(rows),), 0.25)
        sums.add(torch.from_numpy(groups), torch.from_numpy(len(triples) * self._influence(score)[rows]), slack)
        return sums.best(order, top_k)


def patient(**settings: Any) -> Settings:
    """Return settings whose deadline no machine is too slow for, unless they say otherwise."""
    return Settings(**{"deadline": PATIENCE, **settings})


class Client:
    """Sends requests to an application, with its lifespan, from ordinary test functions."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://kgtrace.test") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.send("GET", path, **arguments)

    def post(self, path: str, body: Any = None, **arguments: Any) -> httpx.Response:
        return self.send("POST", path, json=body, **arguments)

    def post_raw(self, path: str, content: Any, content_type: str | None = "application/json") -> httpx.Response:
        headers = {} if content_type is None else {"Content-Type": content_type}
        return self.send("POST", path, content=content, headers=headers)


def assert_documented(kind: type[answer.Answer], content: Any) -> None:
    """Check that JSON has the fields of an answer, and no others."""
    assert json.loads(answer.to_json(answer.from_json(kind, json.dumps(content).encode()))) == content


def fake_service(attributor: FakeAttributor) -> Service:
    """Return a service whose answers come from no model."""
    return Service(attributor, FakeExplainer(attributor.training))  # type: ignore[arg-type]


@pytest.fixture
def attributor() -> FakeAttributor:
    return FakeAttributor()


@pytest.fixture
def service(attributor: FakeAttributor) -> Service:
    return fake_service(attributor)


@pytest.fixture(scope="session")
def client() -> Client:
    """A client of an application with default settings, for tests that leave it as it is."""
    return Client(create_app(fake_service(FakeAttributor()), patient()))


@pytest.fixture
def make_client(service: Service) -> Callable[..., Client]:
    """A client of an application of this test alone, with other settings."""
    return lambda **settings: Client(create_app(service, patient(**settings)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An index root with two empty generations, the newer one live."""
    index_root = IndexRoot(tmp_path / "index")
    for digit in "ab":
        with index_root.stage(digit * 64) as staging:
            generation = staging.commit(configuration={}, counts={"triples": 7}, provenance={"interaction": "ConvE"})
        index_root.publish(generation)
    return index_root.path


@pytest.fixture
def assert_problem() -> Callable[..., dict[str, Any]]:
    """Checks that a response is a problem document of a status, and returns it."""

    def check(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == "application/problem+json"
        body: dict[str, Any] = json.loads(response.content)
        assert set(body) - {"unknown", "nearest"} == {"type", "title", "status", "detail"}
        assert body["status"] == status
        for word in words:
            assert word in body["detail"]
        assert "Traceback" not in response.text
        assert response.headers["X-Request-Id"]
        assert response.headers["X-Kgtrace-Generation"]
        return body

    return check
