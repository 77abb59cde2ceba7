"""Models of one's own, by the code that the documentation shows."""

import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kgtrace_indexer import (
    Attributor,
    BuildConfig,
    ModelFile,
    TripleTable,
    build,
    open_index,
)
from kgtrace_indexer.gradients.layers import Selection, select_layers
from kgtrace_indexer.gradients.losses import Loss
from kgtrace_indexer.gradients.terms import Rows, Terms
from kgtrace_indexer.models import protocol as models
from kgtrace_indexer.models.autograd import AutogradModel, Reading
from kgtrace_indexer.models.protocol import ScoringModel, register_model
from kgtrace_store import Vocabulary
from kgtrace_store.errors import UnsupportedModel
from tests.indexer.models.zoo import DOCS, nations

__all__ = ["nations"]  # fixtures


class Score(nn.Module):
    """The score of the rows that a network has looked up."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (h[0] * r[0] * self.mix(t[0])).sum(-1)


def explainable(model: ModelFile, device: torch.device) -> AutogradModel:
    tables = {name: model.tensors[name].to(device) for name in ("entity.weight", "relation.weight")}
    score = Score(tables["entity.weight"].shape[1])
    score.load_state_dict({f"mix.{part}": model.tensors[f"score.mix.{part}"] for part in ("weight", "bias")})
    entity, relation = Reading("entity.weight"), Reading("relation.weight")
    return AutogradModel(tables, head=[entity], relation=[relation], tail=[entity], score=score.to(device))


class ByHand:
    """DistMult: s = Σ h r t."""

    def __init__(self, model: ModelFile, device: torch.device) -> None:
        self.entity, self.relation = (model.tensors[name].to(device) for name in ("entity.weight", "relation.weight"))

    @property
    def device(self) -> torch.device:
        return self.entity.device

    def select(self, layers: Sequence[str]) -> Selection:
        return select_layers(layers, [["entity.weight"], ["relation.weight"]])

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: Loss, selection: Selection
    ) -> Terms:
        h, r, t = self.entity[head], self.relation[relation], self.entity[tail]
        value, slope = loss((h * r * t).sum(1))
        uses = {"entity.weight": [Rows(tail, slope[:, None] * h * r)]}
        if selection.head_use:
            uses["entity.weight"].append(Rows(head, slope[:, None] * r * t))
        uses["relation.weight"] = [Rows(relation, slope[:, None] * h * t)]
        return Terms(per_triple, value, {}, {}, {table: uses[table] for table in uses if table in selection})

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        return (self.entity[head] * self.relation[relation]) @ self.entity.T


class Network(nn.Module):
    """A KGE in plain PyTorch, as its author trains it."""

    def __init__(self, entities: int, relations: int, dim: int, score: nn.Module | None) -> None:
        super().__init__()
        self.entity, self.relation, self.score = nn.Embedding(entities, dim), nn.Embedding(relations, dim), score

    def forward(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        h, r, t = self.entity(head), self.relation(relation), self.entity(tail)
        return (h * r * t).sum(-1) if self.score is None else self.score([h], [r], [t])


def _own_index(root: Path, nations: tuple[Vocabulary, TripleTable], score: nn.Module | None, kind: str) -> Network:
    """Index a random network of one's own."""
    vocabulary, table = nations
    torch.manual_seed(0)
    network = Network(len(vocabulary.entities), len(vocabulary.relations), 6, score)
    model = ModelFile(
        interaction=kind,
        tensors=network.state_dict(),
        num_entities=len(vocabulary.entities),
        num_relations=len(vocabulary.relations),
        inverse_triples=False,
        modules={},
        loss={},
        source="own training code",
    )
    build(root, model, vocabulary, table, BuildConfig(loss="bce", precondition="none", dim=8, landmarks=40))
    return network


def _check_own_index(root: Path, network: Network, table: TripleTable) -> None:
    """Compare certified answers with autograd on the network."""

    def gradient(triple: np.ndarray) -> Tensor:
        network.zero_grad()
        torch.nn.functional.softplus(-network(*torch.as_tensor(triple.astype(np.int64)))).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    query = table.ids[:1].astype(np.int64)
    found = open_index(root, device="cpu").query(query, top_k=5).attributions[0]
    truth = torch.stack([gradient(t) for t in table.ids]) @ gradient(query[0])
    assert found.certified
    np.testing.assert_allclose(found.influence, truth.topk(5).values, rtol=1e-4)
    rows = [table.train_index.tolist().index(i) for i in found.train_index]
    np.testing.assert_allclose(truth[rows], found.influence, rtol=1e-4)
    _check_own_heads(open_index(root, device="cpu"), network, query)


def _check_own_heads(attributor: Attributor, network: Network, query: np.ndarray) -> None:
    """Compare the model's best heads with the network's own scores, triple by triple."""
    _, relation, tail = torch.as_tensor(query[0])
    every = torch.arange(len(attributor.vocabulary.entities))
    with torch.no_grad():
        wanted = network(every, relation.expand(len(every)), tail.expand(len(every))).sort(descending=True)
    (found,) = attributor.complete(query, top_k=len(every), direction="head")
    assert found.entities.tolist() == wanted.indices.tolist()
    np.testing.assert_allclose(found.scores, wanted.values, rtol=1e-5, atol=1e-6)
    heads, tails = (attributor.query(query, direction=direction).attributions[0] for direction in ("head", "tail"))
    np.testing.assert_array_equal(heads.influence, tails.influence)


@pytest.mark.parametrize(("kind", "factory_", "score"), [("Plain", explainable, Score(6)), ("ByHand", ByHand, None)])
def test_a_model_of_ones_own(
    nations: tuple[Vocabulary, TripleTable],
    kind: str,
    factory_: Callable[[ModelFile, torch.device], ScoringModel],
    score: nn.Module | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plain PyTorch model is registered, indexed, reopened and explained exactly."""
    monkeypatch.setattr(models, "_REGISTERED", {})
    with pytest.raises(UnsupportedModel, match=f"no model of the name {kind} is registered here.*register_model"):
        _own_index(tmp_path, nations, score, kind)
    register_model(kind, factory_)
    _check_own_index(tmp_path, _own_index(tmp_path, nations, score, kind), nations[1])


class Twice(Score):
    """Passes two inputs a triple through one layer, whose gradient then is no single rank-1 term."""

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (self.mix(h[0]) * r[0] * self.mix(t[0])).sum(-1)


def test_a_layer_that_is_called_twice(
    nations: tuple[Vocabulary, TripleTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that samples pass more than once are differentiated triple by triple."""
    monkeypatch.setattr(models, "_REGISTERED", {"Twice": explainable})
    monkeypatch.setattr(sys.modules[__name__], "Score", Twice)
    _check_own_index(tmp_path, _own_index(tmp_path, nations, Twice(6), "Twice"), nations[1])


class First(nn.Module):
    """Sums over the first dimension after the samples', which is the embeddings' for single triples alone."""

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (h[0] * r[0] * t[0]).sum(1)


class Uneven(nn.Module):
    """Scores single triples otherwise than many."""

    def forward(self, h: Sequence[Tensor], r: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
        return (h[0] * r[0] * t[0]).sum(-1) * (h[0].dim() if h[0].dim() == 3 else 1)


@pytest.mark.parametrize(
    ("score", "width", "message"),
    [
        (First(), 14, "by itself, but .* among all tails"),
        (First(), 15, "cannot score all tails"),
        (Uneven(), 5, "by itself"),
    ],
)
def test_a_score_that_depends_on_the_dimensions_is_refused(
    nations: tuple[Vocabulary, TripleTable],
    score: nn.Module,
    width: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores of all tails must be those of single triples, also where the shape is right by chance."""
    vocabulary, table = nations
    generator = torch.Generator().manual_seed(0)
    sizes = {"e": len(vocabulary.entities), "r": len(vocabulary.relations)}
    tensors = {name: torch.randn(rows, width, generator=generator) for name, rows in sizes.items()}

    def made(model: ModelFile, device: torch.device) -> AutogradModel:
        entity = [Reading("e")]
        return AutogradModel(model.tensors, head=entity, relation=[Reading("r")], tail=entity, score=score)

    monkeypatch.setattr(models, "_REGISTERED", {"Wrong": made})
    model = ModelFile("Wrong", tensors, sizes["e"], sizes["r"], False, {}, {}, "own training code")
    with pytest.raises(UnsupportedModel, match=rf"Wrong .*{message}.*\(m, n\)"):
        build(tmp_path, model, vocabulary, table, BuildConfig())
    assert not (tmp_path / "CURRENT").exists()


def test_samples_that_are_mixed_are_refused() -> None:
    """A batch norm that normalizes by the batch at hand makes scores depend on it."""
    score = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    entity = Reading("entity.weight")
    with pytest.raises(UnsupportedModel, match="batch norm 0 has no running statistics"):
        AutogradModel({"entity.weight": torch.ones(4, 3)}, head=[entity], relation=[], tail=[entity], score=score)


def test_an_installed_model_is_found(
    nations: tuple[Vocabulary, TripleTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that offers a model as an entry point needs no registration."""

    def offered(*, group: str, name: str) -> list[EntryPoint]:
        assert group == "kgtrace.models"
        return [EntryPoint("ByHand", f"{__name__}:ByHand", group)] if name == "ByHand" else []

    monkeypatch.setattr(models, "entry_points", offered)
    _check_own_index(tmp_path, _own_index(tmp_path, nations, None, "ByHand"), nations[1])


def test_documented_code_is_tested() -> None:
    """Every class that the documentation shows, and what stands with it, is in this file."""
    blocks = re.findall(r"```python\n(class .*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    assert all(block.strip() in Path(__file__).read_text(encoding="utf-8") for block in blocks)
