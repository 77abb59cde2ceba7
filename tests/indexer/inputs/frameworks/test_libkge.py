"""LibKGE's checkpoints, made by its own classes (tests/fixtures/frameworks/make_libkge.py)."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer import read_model
from kgtrace_indexer.inputs.model_reader import read_checkpoint
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_store.errors import UnreadableModel, UnsupportedModel
from tests.indexer.inputs.frameworks.checks import FIXTURES, assert_answers, assert_computes, said

RECIPROCAL = ["ComplEx-reciprocal", "RESCAL-reciprocal"]


@pytest.mark.parametrize("name", ["TransE", "RotatE", *RECIPROCAL])
def test_computes_as_the_framework(models: Path, name: str) -> None:
    """A checkpoint's scores of tails and heads, and gradients, are those of the framework's model."""
    path = models / f"libkge-{name}.pt"
    model = read_model(path, num_relations=5, embedding_dim=8)
    assert model.inverse_triples == (name in RECIPROCAL)
    assert_computes(model, said("libkge")[name])
    assert read_checkpoint(path, model).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", ["TransE", "ComplEx-reciprocal"])
def test_answers(models: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built, from a data set in LibKGE's layout, and asked from the command line."""
    lines = (FIXTURES / "train.tsv").read_text()
    (tmp_path / "train.del").write_text("".join(line.translate({ord(x): None for x in "ert"}) for line in lines))
    for kind, letter, count in (("entity", "e", 30), ("relation", "r", 5)):
        (tmp_path / f"{kind}_ids.del").write_text("".join(f"{i}\t{letter}{i}\n" for i in range(count)))
    ids = ["--entity-to-id", str(tmp_path / "entity_ids.del"), "--relation-to-id", str(tmp_path / "relation_ids.del")]
    flags = ["--train", str(tmp_path / "train.del"), "--ids", *ids]
    assert_answers(models / f"libkge-{name}.pt", tmp_path, capsys, flags=flags, data=False)


def saved(path: Path, options: dict[str, Any], model: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a checkpoint whose configuration is of a class like LibKGE's."""
    module = types.ModuleType("kge.config")
    config = type("Config", (), {"__module__": "kge.config"})
    module.Config = config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kge", types.ModuleType("kge"))
    monkeypatch.setitem(sys.modules, "kge.config", module)
    instance = config()
    instance.options = options  # type: ignore[attr-defined]
    torch.save({"type": "train", "model": model, "config": instance}, path)
    return path


def state(relations: int = 5, width: int = 8, **more: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what LibKGE saves of a model."""
    tables = {"_entity_embedder": torch.ones(30, 8), "_relation_embedder": torch.ones(relations, width)}
    return {f"{name}.embeddings.weight": table for name, table in tables.items()} | more, {}


CONFIG = {"model": "complex", "complex": {"class_name": "ComplEx"}}
RECIPROCALLY = {"model": "reciprocal_relations_model", "complex": {"class_name": "ComplEx"}}
RECIPROCALLY["reciprocal_relations_model"] = {"base_model": {"type": "complex"}}


@pytest.mark.parametrize(
    ("options", "model", "error", "message"),
    [
        (
            {"model": "conve", "conve": {"class_name": "ConvE"}},
            state(),
            UnsupportedModel,
            "'ConvE' of LibKGE, which is",
        ),
        ({"model": "transe", "transe": {"class_name": "TransE"}}, state(), UnsupportedModel, "record l_norm of its Tr"),
        ({"model": "complex"}, state(), UnreadableModel, "does not describe its model 'complex'"),
        (CONFIG, state(width=4), UnsupportedModel, "an entity has 8 numbers and a relation 4"),
        (CONFIG, state(lin=torch.ones(3)), UnsupportedModel, "is no ComplEx of LibKGE: it also has 'lin'"),
        (CONFIG, ({}, {}), UnsupportedModel, "it lacks '_entity_embedder._embeddings.weight, _relation_embedder"),
        (CONFIG, None, UnreadableModel, "without a model"),
        (RECIPROCALLY, state(relations=5), UnreadableModel, "an odd number of relation rows, 5"),
    ],
)
def test_refusals(
    options: dict[str, Any],
    model: object,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not read, or is missing, is named."""
    path = saved(tmp_path / "checkpoint_best.pt", options, model, monkeypatch)
    with pytest.raises(error, match=message):
        read_model(path)


def test_distmult(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score is Σ h r t."""
    options = {"model": "distmult", "distmult": {"class_name": "DistMult"}}
    model = read_model(saved(tmp_path / "checkpoint_best.pt", options, state(), monkeypatch))
    with torch.inference_mode():
        scores = scoring_model(model, torch.device("cpu")).tail_scores(torch.tensor([3]), torch.tensor([2]))
    assert scores.tolist() == [[8.0] * 30]


def test_earlier_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables had other names in checkpoints of earlier versions."""
    model = read_model(saved(tmp_path / "checkpoint_best.pt", CONFIG, state(), monkeypatch))
    assert (model.num_entities, model.num_relations, model.inverse_triples) == (30, 5, False)
